# SPDX-License-Identifier: Apache-2.0
"""Does a mode hold on probes that it was not discovered on?

  1. A mode's fresh failures are held against those of fresh probes outside all modes: a one-sided
     test with the image as the unit.
  2. One Benjamini-Hochberg level holds over all modes of the audit. A mode that passes is
     confirmed.
  3. One that does not pass is not confirmed if its planned number of probes was asked, or if its
     rate is shown to be below what discovery promised. Otherwise there were too few.

Fresh probes are drawn by one proposer. The first ones are asked whatever they are; they tell the
rate outside the modes. After these a question is asked only if it may fall under a mode that lacks
probes, so that they count for the modes alone, in the order in which they were drawn, up to the
planned number. A mode that is too rare for it gets fewer (`few`), worded as its finds. Both numbers
are fixed beforehand and depend on no outcome.
"""

from collections.abc import Collection, Sequence
import dataclasses
import math
from typing import Literal

from auditdm_jax.audit import rates
from auditdm_jax.audit.mode import Mode
from auditdm_jax.audit.rates import Rate

Status = Literal["confirmed", "not confirmed", "too few"]


@dataclasses.dataclass(frozen=True)
class ConfirmConfig:
  """What fresh probes are to show of a mode.

  Attributes:
    level: false discovery rate over the modes of an audit.
    half_width: of the interval of a rate that the number of probes of a mode is planned for.
    min_n: fewest fresh probes that may confirm a mode. Where nearly nothing fails outside the
      modes, one failure in two would do so.
  """

  level: float = 0.05
  half_width: float = 0.1
  min_n: int = 8

  @property
  def planned(self) -> int:
    """Probes of each mode."""
    return rates.plan_rate(half_width=self.half_width)

  @property
  def few(self) -> int:
    """Probes of a mode that is too rare for as many as planned: enough to confirm it."""
    return min(2 * self.min_n, self.planned)


@dataclasses.dataclass(frozen=True)
class FreshProbe:
  """A fresh probe as the modes see it.

  Attributes:
    image_id: its image, or the one that this was made from.
    mode_id: of the mode that it falls under.
    possible: ids of the modes that its question may fall under.
    failed: whether the target failed; None without a consensus.
    for_all: whether it was asked whatever it is.
    probe_id: of the probe, where it is needed.
  """

  image_id: str
  mode_id: str | None
  possible: frozenset[str]
  failed: bool | None
  for_all: bool = True
  probe_id: str = ""


@dataclasses.dataclass(frozen=True)
class ModeTest:
  """What fresh probes say of a mode.

  Attributes:
    fresh: its failure rate on them.
    base: the failure rate of fresh probes outside all modes.
    ratio: of both; None where nothing failed outside.
    ratio_ci95: its 95 % interval.
    q: of the test that the rate is above the base, over all modes.
    images: that its probes are about.
    consensus: the share of questions with a consensus, among those that may fall under the mode.
    needs: probes that the planned number lacks.
  """

  mode_id: str
  status: Status
  fresh: Rate
  base: Rate
  ratio: float | None
  ratio_ci95: tuple[float, float]
  q: float
  images: int
  consensus: Rate
  needs: int


def confirm(
  modes: Sequence[Mode],
  probes: Sequence[FreshProbe],
  *,
  config: ConfirmConfig = ConfirmConfig(),
) -> list[ModeTest]:
  """Tests each mode on fresh probes.

  Args:
    modes: of one audit, all of them: the level holds over these.
    probes: in the order in which they were drawn.
    config: level and plan.
  """
  rest = [p for p in probes if p.for_all and p.mode_id is None and p.failed is not None]
  own = {m.mode_id: counted(m.mode_id, probes, planned=config.planned) for m in modes}
  p_values = [_p_value(own[m.mode_id], rest) for m in modes]
  q_values = rates.benjamini_hochberg(p_values) if modes else []
  base = _rate(rest)
  return [
    _test(mode, own[mode.mode_id], base, float(q), _consensus(mode.mode_id, probes), config)
    for mode, q in zip(modes, q_values, strict=True)
  ]


def counted(mode_id: str, probes: Sequence[FreshProbe], *, planned: int) -> list[FreshProbe]:
  """The probes of a mode that count: those asked whatever they are, or else up to the plan."""
  own = [p for p in probes if p.mode_id == mode_id and p.failed is not None]
  return own[: max(planned, sum(p.for_all for p in own))]


def lacking(modes: Sequence[Mode], probes: Sequence[FreshProbe], *, planned: int) -> frozenset[str]:
  """Ids of the modes that have fewer probes than planned."""
  return frozenset(
    m.mode_id for m in modes if len(counted(m.mode_id, probes, planned=planned)) < planned
  )


def affordable(
  modes: Sequence[Mode],
  probes: Sequence[FreshProbe],
  *,
  asks: int,
  draws: int,
  config: ConfirmConfig,
) -> frozenset[str]:
  """Ids of the modes whose missing probes can be had for so many questions, the cheapest first.

  Of the questions that may fall under a mode, only some do: which, the answer says. The probes that
  were asked whatever they are tell how many questions have to be looked at for a mode, and how many
  of these are asked; modes of one kind of question share them. Whether the target failed has no
  part in it.

  Args:
    modes: of the audit.
    probes: fresh ones so far.
    asks: most questions that are asked for the modes.
    draws: most that are looked at; those of a mode that would take more are what they are.
    config: the plan.
  """
  sampled = [p for p in probes if p.for_all]
  looked = {
    mode_id: min(_looked_at(mode_id, sampled, config.planned), draws)
    for mode_id in lacking(modes, probes, planned=config.planned)
  }
  taken = frozenset[str]()
  for mode_id in sorted(looked, key=lambda m: (looked[m] * _share({m}, sampled), m)):
    more = taken | {mode_id}
    if max(looked[m] for m in more) * _share(more, sampled) <= asks:
      taken = more
  return taken


def _looked_at(mode_id: str, sampled: Sequence[FreshProbe], planned: int) -> float:
  """Questions that are expected to be looked at for the missing probes of a mode."""
  own = sum(p.mode_id == mode_id and p.failed is not None for p in sampled)
  return (planned - own) * (len(sampled) + 1) / (own + 0.5)


def _share(mode_ids: Collection[str], sampled: Sequence[FreshProbe]) -> float:
  """The share of questions that may fall under one of these modes."""
  return (sum(not p.possible.isdisjoint(mode_ids) for p in sampled) + 1) / (len(sampled) + 1)


def _test(
  mode: Mode,
  own: Sequence[FreshProbe],
  base: Rate,
  q: float,
  consensus: Rate,
  config: ConfirmConfig,
) -> ModeTest:
  fresh, needs = _rate(own), max(config.planned - len(own), 0)
  status: Status = "not confirmed"
  if len(own) >= config.min_n and q <= config.level:
    status, needs = "confirmed", 0
  elif needs and fresh.ci95[1] >= mode.lower:
    status = "too few"
  ratio = fresh.value / base.value if own and base.k else None
  return ModeTest(
    mode_id=mode.mode_id,
    status=status,
    fresh=fresh,
    base=base,
    ratio=ratio,
    ratio_ci95=ratio_interval(fresh, base) if ratio is not None else (0.0, math.inf),
    q=q,
    images=len({p.image_id for p in own}),
    consensus=consensus,
    needs=needs if status == "too few" else 0,
  )


def _rate(probes: Sequence[FreshProbe]) -> Rate:
  return rates.rate_by_image(*_columns(probes))


def _p_value(own: Sequence[FreshProbe], rest: Sequence[FreshProbe]) -> float:
  return rates.enriched_by_image(*_columns(own), *_columns(rest)) if own and rest else 1.0


def _columns(probes: Sequence[FreshProbe]) -> tuple[list[bool], list[str]]:
  return [bool(p.failed) for p in probes], [p.image_id for p in probes]


def _consensus(mode_id: str, probes: Sequence[FreshProbe]) -> Rate:
  asked = [p for p in probes if mode_id in p.possible and p.for_all]
  return rates.rate_by_image([p.failed is not None for p in asked], [p.image_id for p in asked])


def ratio_interval(above: Rate, below: Rate) -> tuple[float, float]:
  """95 % interval of the ratio of two independent rates, from the interval of each.

  Donner and Zou 2012 (Statistical Methods in Medical Research 21:347), MOVER-R.
  """
  p, q = above.value, below.value
  (low, high), (q_low, q_high) = above.ci95, below.ci95
  least = p * q - math.sqrt(max((p * q) ** 2 - low * q_high * (2 * p - low) * (2 * q - q_high), 0))
  most = p * q + math.sqrt(max((p * q) ** 2 - high * q_low * (2 * p - high) * (2 * q - q_low), 0))
  bottom = q_low * (2 * q - q_low)
  least = low / q_high if 2 * q <= q_high else least / (q_high * (2 * q - q_high))
  return max(least, 0.0), most / bottom if bottom > 0 else math.inf
