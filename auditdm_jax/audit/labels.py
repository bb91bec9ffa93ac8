# SPDX-License-Identifier: Apache-2.0
"""People's labels of finds, and how many finds are right by them.

A person sees an image, a question and two answers, that of the consensus and that of the target,
and is not told which is which. A find is right if only the answer of the consensus is right. It is
wrong if the answer of the target is right too, or if that of the consensus is not.

1. `sampling.draw` chooses finds at random within strata and writes down each one's chance.
2. A find counts 1 / chance times (Horvitz and Thompson 1952, in Hájek's ratio form), by image.
3. Where two raters or more labelled the same finds, most votes decide, and the share of right finds
   is corrected for what raters get wrong. Assumed is that raters err independently of each other,
   all as often, on right and on wrong finds alike. One rater is assumed never to err.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Literal

import numpy as np
from scipy import stats

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.probe import Record
from auditdm_jax.audit.rates import NOTHING, Rate
from auditdm_jax.audit.sampling import Sampled, chances

# Whose answer is right: the five things that a rater can say.
Choice = Literal["consensus", "target", "both", "neither", "unclear"]
Decision = Literal["right", "wrong", "unclear"]
CHOICES: tuple[Choice, ...] = ("consensus", "target", "both", "neither", "unclear")
WORST_ERROR = 0.3  # Raters who err more often than this cannot be corrected for (ours).


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Record):
  """What one rater said of one find; `key` is its probe id."""

  key: str
  rater: str
  choice: Choice

  @property
  def decision(self) -> Decision:
    """What that makes of the find."""
    if self.choice == "unclear":
      return "unclear"
    return "right" if self.choice == "consensus" else "wrong"


@dataclasses.dataclass(frozen=True)
class LabelledFind:
  """A find with the votes of its raters.

  Attributes:
    image: its image, or the one that its image was made from.
    weight: how many finds it stands for.
    verified: its grade is V1 or above.
    votes: whether it is right, for each rater who could tell.
  """

  image: str
  weight: float
  verified: bool
  votes: tuple[bool, ...]

  @property
  def right(self) -> bool | None:
    """What most raters say; None if they are even, or if nobody can tell."""
    yes = sum(self.votes)
    return None if 2 * yes == len(self.votes) else 2 * yes > len(self.votes)


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How far two raters agree beyond chance, on right, wrong and unclear.

  Attributes:
    raters: the two.
    n: finds that both labelled.
    agree: share of these with the same decision.
    kappa: Cohen's kappa (1960); None if both always say the same one thing.
    ci95: ends of its 95 % interval, by image.
  """

  raters: tuple[str, str]
  n: int
  agree: Rate
  kappa: float | None
  ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class LabelScores:
  """What people's labels say of an audit's finds.

  Attributes:
    sampled: finds that were drawn.
    labelled: those with a label.
    unclear: those of them that nobody could tell, or that raters are even about; they are left out.
    raters: finds that each rater labelled.
    choices: how often each choice was made.
    finds: share of all finds that are right, corrected for the raters' errors if they are known.
    verified: the same of verified finds (V1 and above).
    rejected: the same of those that verification rejects.
    as_labelled: `finds` before that correction.
    error: share of labels that are wrong, from two raters' disagreement; None for one rater.
    agreement: of each two raters.
  """

  sampled: int
  labelled: int
  unclear: int
  raters: Mapping[str, int]
  choices: Mapping[str, int]
  finds: Rate
  verified: Rate
  rejected: Rate
  as_labelled: Rate
  error: float | None
  agreement: tuple[Agreement, ...]

  @property
  def assumption(self) -> str:
    """What the shares rest on, in one sentence."""
    if self.error is None:
      return "They hold as far as labels are right: one rater's errors cannot be measured."
    if self.error > WORST_ERROR:
      return (
        f"Raters disagree so often that about {self.error:.0%} of their labels would be wrong: the"
        " shares are as labelled, without correction."
      )
    return (
      f"They are corrected for labels that are wrong, about {self.error:.1%} by how often raters"
      " disagree, as far as raters err independently, and on right and wrong finds alike."
    )


def latest(labels: Iterable[Label]) -> list[Label]:
  """Returns the last label of each rater for each find."""
  return list({(label.key, label.rater): label for label in labels}.values())


def _by_key(labels: Iterable[Label]) -> dict[str, list[Label]]:
  found: dict[str, list[Label]] = {}
  for label in latest(labels):
    found.setdefault(label.key, []).append(label)
  return found


def _decided(labels: Sequence[Label]) -> Decision:
  """What most raters say; unclear if they are even."""
  n = Counter(label.decision for label in labels)
  if n["right"] == n["wrong"]:
    return "unclear"
  return "right" if n["right"] > n["wrong"] else "wrong"


def _decisions(labels: Iterable[Label]) -> dict[str, Decision]:
  return {key: _decided(own) for key, own in _by_key(labels).items()}


def apply(failures: Iterable[Failure], labels: Iterable[Label]) -> Iterator[Failure]:
  """Yields the failures with what people decided about them.

  A verified find that is right becomes V3. One that is wrong falls to V0, whatever its gates say.
  """
  said = _decisions(labels)
  for f in failures:
    yield _regraded(f, said[f.probe.probe_id]) if f.probe.probe_id in said else f


def _regraded(failure: Failure, said: Decision) -> Failure:
  grade = failure.grade
  if said == "right" and failure.verified:
    grade = "V3"
  elif said == "wrong":
    grade = "V0"
  return dataclasses.replace(failure, label=said, grade=grade)


def labelled(
  failures: Iterable[Failure], sample: Sequence[Sampled], labels: Iterable[Label]
) -> list[Failure]:
  """Returns the labelled finds, each as verification graded it, with all that it stands for.

  Its weight is that of the find over its chance to be drawn.
  """
  said = _decisions(labels)
  stratum, chance = {row.key: row.stratum for row in sample}, chances(sample)
  return [
    dataclasses.replace(f, label=said[key], weight=f.weight / chance[stratum[key]])
    for f in failures
    if (key := f.probe.probe_id) in said
  ]


def score(
  failures: Iterable[Failure], sample: Sequence[Sampled], labels: Sequence[Label]
) -> LabelScores | None:
  """Returns what labels say of the finds; None if there are no labels.

  Args:
    failures: the finds as verification graded them.
    sample: which of them were drawn, and how.
    labels: what raters said of those.
  """
  labels = latest(labels)
  if not labels:
    return None
  by_key = _by_key(labels)
  finds = [
    LabelledFind(
      image=f.probe.origin_id,
      weight=f.weight,
      verified=f.verified,
      votes=tuple(
        x.decision == "right" for x in by_key[f.probe.probe_id] if x.decision != "unclear"
      ),
    )
    for f in labelled(failures, sample, labels)
  ]
  images = {f.probe.probe_id: f.probe.origin_id for f in failures}
  error = rater_error(finds)
  return LabelScores(
    sampled=len(sample),
    labelled=len(by_key),
    unclear=sum(f.right is None for f in finds),
    raters=dict(sorted(Counter(x.rater for x in labels).items())),
    choices={choice: sum(x.choice == choice for x in labels) for choice in CHOICES},
    finds=share(finds, error),
    verified=share([f for f in finds if f.verified], error),
    rejected=share([f for f in finds if not f.verified], error),
    as_labelled=share(finds, None),
    error=_error(error.value) if error.n else None,
    agreement=tuple(_agreements(labels, images)),
  )


def rater_error(finds: Sequence[LabelledFind]) -> Rate:
  """Returns how often two raters of one find disagree; its n is 0 if no find has two."""
  several = [f for f in finds if len(f.votes) > 1]
  return rates.rate_by_image([_disagreement(f.votes) for f in several], [f.image for f in several])


def _disagreement(votes: Sequence[bool]) -> float:
  """Share of pairs of votes that differ."""
  yes, n = sum(votes), len(votes)
  return yes * (n - yes) / (n * (n - 1) / 2)


def _error(disagreement: float) -> float:
  """How often a label is wrong if two disagree so often: d = 2 e (1 - e)."""
  return (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2


def share(finds: Sequence[LabelledFind], disagreement: Rate | None) -> Rate:
  """Returns the share of finds that are right.

  The interval joins those of the share as labelled and of the raters' error by the square root of
  the sum of squares (MOVER, Zou and Donner 2008, Stat Med 27:1693).

  Args:
    finds: labelled ones.
    disagreement: of raters, to correct for their errors; None, n = 0 or too much of it = do not.
  """
  told = [f for f in finds if f.right is not None]
  raw = rates.rate_by_image(
    [bool(f.right) for f in told], [f.image for f in told], weights=[f.weight for f in told]
  )
  if not raw.n or disagreement is None or not disagreement.n:
    return raw
  error = _error(disagreement.value)
  if error > WORST_ERROR:
    return raw
  voters: dict[int, float] = {}
  for f in told:
    voters[len(f.votes)] = voters.get(len(f.votes), 0.0) + f.weight
  low_error, high_error = (min(_error(d), WORST_ERROR) for d in disagreement.ci95)
  p = _true(raw.value, error, voters)
  low, high = (_true(end, error, voters) for end in raw.ci95)
  others = [_true(raw.value, e, voters) for e in (low_error, high_error)]
  return dataclasses.replace(
    raw,
    k=round(p * raw.n, 9),
    rate=p,
    ci95=(
      max(0.0, p - math.hypot(p - low, max(0.0, p - min(others)))),
      min(1.0, p + math.hypot(high - p, max(0.0, max(others) - p))),
    ),
  )


def product(outer: Rate, inner: Rate) -> Rate:
  """Returns the share of a share, such as of questions that are failures and right.

  The interval is MOVER's, as in `share`; the two are taken as independent.
  """
  if outer.rate is None or inner.rate is None:
    return NOTHING
  p, q = outer.rate, inner.rate
  below = math.hypot(q * (p - outer.ci95[0]), p * (q - inner.ci95[0]))
  above = math.hypot(q * (outer.ci95[1] - p), p * (inner.ci95[1] - q))
  ends = max(0.0, p * q - below), min(1.0, p * q + above)
  return dataclasses.replace(outer, k=round(p * q * outer.n, 9), rate=p * q, ci95=ends)


def _true(labelled: float, error: float, voters: Mapping[int, float]) -> float:
  """The share of right finds behind the share that most voters call right.

  Args:
    labelled: share among the finds that are decided.
    error: how often a vote is wrong.
    voters: weight of decided finds by their number of votes.
  """
  total = sum(voters.values())
  hit = sum(weight * _hit(n, error) for n, weight in voters.items()) / total
  return float(np.clip((labelled - (1 - hit)) / (2 * hit - 1), 0.0, 1.0))


def _hit(votes: int, error: float) -> float:
  """How often most of the votes are right, where they are not even."""
  right = stats.binom.sf(votes // 2, votes, 1 - error)
  wrong = stats.binom.sf(votes // 2, votes, error)
  return float(right / (right + wrong))


def _agreements(labels: Sequence[Label], images: Mapping[str, str]) -> Iterable[Agreement]:
  by_rater: dict[str, dict[str, Decision]] = {}
  for label in labels:
    by_rater.setdefault(label.rater, {})[label.key] = label.decision
  for a, b in itertools.combinations(sorted(by_rater), 2):
    both = [key for key in by_rater[a] if key in by_rater[b]]
    if both:
      said = [[by_rater[rater][key] for key in both] for rater in (a, b)]
      yield agreement(*said, images=[images[key] for key in both], raters=(a, b))


def agreement(
  first: Sequence[str], second: Sequence[str], *, images: Sequence[str], raters: tuple[str, str]
) -> Agreement:
  """Returns how far two raters agree about the same finds (at least one).

  The interval is that of their agreement, by image, with chance agreement taken as it is (ours).

  Args:
    first: what the first one said.
    second: what the second one said, in the same order.
    images: the image of each find.
    raters: their names.
  """
  agree = rates.rate_by_image([a == b for a, b in zip(first, second, strict=True)], images)
  n, one, other = len(first), Counter(first), Counter(second)
  chance = sum(one[x] * other[x] for x in one) / (n * n)
  if chance == 1:
    return Agreement(raters, n, agree, None, (-1.0, 1.0))
  low, high = ((end - chance) / (1 - chance) for end in agree.ci95)
  kappa = (agree.value - chance) / (1 - chance)
  return Agreement(raters, n, agree, kappa, (max(-1.0, low), high))
