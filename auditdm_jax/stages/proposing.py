# SPDX-License-Identifier: Apache-2.0
"""Who proposes what the sweep could ask: stored auditors, the one before training, the data set.

The auditor before training and the data set each propose as many questions as all trained auditors
together: what training has narrowed they still ask. Strategies that make an image are sampled once,
since the image service is dear; of all others a group is sampled for each image.
"""

import dataclasses
import math

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.core import metrics
from auditdm_jax.rl import draws, flops, probing
from auditdm_jax.rl.probing import Prober
from auditdm_jax.rl.records import attempt_of
from auditdm_jax.stages.asking import RandomQuestions, StoredAuditors, make_prober, unanswered
from auditdm_jax.stages.context import Context

RANDOM, UNTRAINED = "random", "untrained"


@dataclasses.dataclass(frozen=True)
class Proposed:
  """What a batch can be chosen from.

  Attributes:
    attempts: distinct questions that were not asked yet.
    sampled: by arm, what was drawn for it, malformed replies and repeats included.
    flops: of the auditors that wrote it.
  """

  attempts: list[Attempt]
  sampled: dict[str, int]
  flops: float


class Proposers:
  """Proposes questions: a pure function of (config.seed, batch) and of what was asked.

  Attributes:
    open: the arms that no training has narrowed.
    sight: what the auditors see of an image.
  """

  def __init__(self, ctx: Context, bank: ModelBank):
    """Takes the run's stored auditors, and the models that answer."""
    self._ctx, self._bank, self._pool = ctx, bank, ctx.pool("images")
    self._stored = StoredAuditors(ctx)
    self.sight = self._stored.sight
    first = RANDOM if ctx.round.is_first else f"{RANDOM} {ctx.round.draws}"
    self._random = RandomQuestions(self._pool, ctx.settings.seed, first)
    before = ctx.round.number - 1
    start = f"auditor of round {before}" if before else UNTRAINED
    trained = ctx.folder.auditors() if ctx.settings.optim.steps else ()
    self._steps = {f"auditor@{step}": step for step in trained} | {start: None}
    self.open = frozenset((start, RANDOM))
    active = ctx.settings.rollout.active()
    self._asks = self._prober({s.name: n for s, n in active if not s.makes})
    self._makes = self._prober({s.name: n for s, n in active if s.makes})

  def propose(self, batch: int, asked: set[str]) -> Proposed:
    """Returns the questions of all arms about images of a batch.

    Args:
      batch: its number.
      asked: ids of the probes that were asked before.
    """
    meter = flops.Meter(self._ctx.models.auditor, self._bank)
    seen, found, sampled = set(asked), [], {}
    for arm, n in self._shares().items():
      drawn = self._data(batch, n) if arm == RANDOM else self._written(arm, batch, n, meter)
      sampled[arm] = len(drawn)
      for attempt in drawn:
        if attempt is not None and attempt.probe.probe_id not in seen:
          seen.add(attempt.probe.probe_id)
          found.append(attempt)
    return Proposed(found, sampled, meter.flops["sample"])

  def _prober(self, prompts: dict[str, int]) -> Prober | None:
    if not prompts:
      return None
    ctx, mesh = self._ctx, self._ctx.models.rollout_mesh
    return make_prober(ctx, self.sight, pool=self._pool, mesh=mesh, prompts=prompts)

  def _shares(self) -> dict[str, int]:
    """Proposals of each arm for a batch: an equal share for each of at most three sources."""
    section = self._ctx.settings.discover
    trained = len(self._steps) - 1
    sources = bool(trained) + 1 + bool(len(self._random))
    share = section.batch * max(section.proposals, 1) / sources
    shares = {
      arm: math.ceil(share if step is None else share / trained)
      for arm, step in self._steps.items()
    }
    return shares | ({RANDOM: math.ceil(share)} if len(self._random) else {})

  def _data(self, batch: int, n: int) -> list[Attempt]:
    """The data set's own questions, in an order of their own; after the last one the first."""
    chosen = self._random.around(batch * n, n)
    return unanswered(self._ctx, self._pool, chosen, arm=RANDOM)

  def _written(self, arm: str, batch: int, n: int, meter: flops.Meter) -> list[Attempt | None]:
    """What an auditor writes, None for what is no question; strategies in the config's shares."""
    settings, walk = self._ctx.settings, self._ctx.round.walk("discover", arm, batch)
    makes = sum(count for s, count in settings.rollout.active() if s.makes)
    made = n * makes / sum(settings.rollout.counts().values())
    once = max(settings.discover.proposals, 1)
    group = math.gcd(settings.grpo.group_size, once)
    made_walk = (*walk, "made")
    drawn = self._drawn(self._makes, arm, math.ceil(made / once), walk=made_walk, meter=meter)
    return drawn + self._drawn(
      self._asks, arm, n - round(made), group=group, walk=walk, meter=meter
    )

  def _drawn(
    self,
    prober: Prober | None,
    arm: str,
    n: int,
    *,
    walk: draws.Walk,
    meter: flops.Meter,
    group: int = 1,
  ) -> list[Attempt | None]:
    """The first `n` samples of a walk, in calls as large as those of training."""
    settings, step = self._ctx.settings, self._steps[arm]
    out: list[Attempt | None] = []
    chunk = 0
    while prober is not None and len(out) < n:
      scale = settings.grpo.group_size // group
      prompts = draws.draw_prompts(
        {s: k * scale for s, k in prober.config.counts().items()},
        seed=settings.seed,
        walk=walk,
        step=chunk,
        size=len(self._pool),
      )
      params = self._stored.take(step)
      done = prober.generate(params, prompts, timer=metrics.Timer(), group=group)
      probing.check_valid(done, prober.config.max_invalid, step=chunk)
      meter.count(done, group=group)
      for t in done[: n - len(out)]:
        usable = t.question and not t.malformed and not t.invalid
        out.append(attempt_of(t, arm=arm, step=step or 0) if usable else None)
      chunk += 1
    return out
