# SPDX-License-Identifier: Apache-2.0
"""Who proposes what the sweep could ask: stored auditors, the one before training, the data set.

The auditor before training and the data set each propose as many questions as all trained auditors
together: what training has narrowed they still ask. Finds with a small change (`audit.mutating`)
are a fourth source, off by default. The image service is dear and a text cheap, so an image may be
chosen by its text (`rl.drafts`), and all proposals for a probe about it are questions about it.
"""

from collections.abc import Sequence
import dataclasses
import math

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.audit.probe import Probe
from auditdm_jax.core import metrics
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import draws, flops, probing
from auditdm_jax.rl.drafts import Drafts
from auditdm_jax.rl.probing import Prober
from auditdm_jax.rl.records import attempt_of
from auditdm_jax.stages.asking import RandomQuestions, StoredAuditors, make_prober, unanswered
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.mutants import Mutants
from auditdm_jax.stages.sections import MUTATED, RANDOM, TRAINED, UNTRAINED


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
    open: the arms that no training and no find has narrowed.
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
    wanted = ctx.settings.discover.sources
    trained = ctx.folder.auditors() if ctx.settings.optim.steps and TRAINED in wanted else ()
    self._steps: dict[str, int | None] = {f"auditor@{step}": step for step in trained}
    self._steps |= {start: None} if UNTRAINED in wanted else {}
    self.open = frozenset((start, RANDOM))
    self._shots: list[tuple[str, str]] = []
    self._shown: set[str] = set()
    self._shooting: Prober | None = None  # Once there are enough examples.
    active = ctx.settings.rollout.active()
    self._asks = self._prober({s.name: n for s, n in active if not s.makes})
    self._makes = self._prober({s.name: n for s, n in active if s.makes})
    self._mutants = Mutants(ctx, self._pool, self._makes) if MUTATED in wanted else None
    drafts = ctx.settings.discover.drafts
    self._drafts = Drafts(drafts) if drafts > 1 else None
    self._told = set[str]()  # Images whose texts the drafts know.

  def read(self, probe: Probe) -> None:
    """Takes up the words of what was asked, which mutations may use, and of its image."""
    text = probe.caption or probe.instruction
    if self._drafts is not None and text and probe.image_id not in self._told:
      self._told.add(probe.image_id)
      self._drafts.read(text)
    if self._mutants is not None:
      self._mutants.read(probe)

  def learn(self, kind: str, find: Find) -> None:
    """Takes up a find: mutations start from it, and the first ones of new kinds are examples."""
    section = self._ctx.settings.discover
    if self._mutants is not None:
      self._mutants.learn(kind, find)
    if len(self._shots) < section.shots and kind not in self._shown:
      self._shown.add(kind)
      self._shots.append((find.probe.question, find.consensus))
      if len(self._shots) == section.shots and None in self._steps.values():
        active = self._ctx.settings.rollout.active()
        self._shooting = self._prober({s.name: n for s, n in active if not s.makes}, self._shots)

  def propose(self, batch: int, asked: set[str]) -> Proposed:
    """Returns the questions of all arms about images of a batch.

    Args:
      batch: its number.
      asked: ids of the probes that were asked before.
    """
    meter = flops.Meter(self._ctx.models.auditor, self._bank)
    seen, found, sampled = set(asked), [], {}
    # A batch's own texts are taken up again when they are asked.
    drafts = None if self._drafts is None else self._drafts.copy()
    for arm, n in self._shares().items():
      if arm == RANDOM:
        drawn = self._data(batch, n)
      elif arm == MUTATED:
        drawn = self._mutated(batch, n, [a.probe for a in found])
      else:
        drawn = self._written(arm, batch, n, meter, drafts)
      sampled[arm] = len(drawn)
      for attempt in drawn:
        if attempt is not None and attempt.probe.probe_id not in seen:
          seen.add(attempt.probe.probe_id)
          found.append(attempt)
    return Proposed(found, sampled, meter.flops["sample"])

  def _prober(
    self, prompts: dict[str, int], shots: Sequence[tuple[str, str]] = ()
  ) -> Prober | None:
    if not prompts or not self._steps:
      return None
    ctx, mesh = self._ctx, self._ctx.models.rollout_mesh
    return make_prober(ctx, self.sight, pool=self._pool, mesh=mesh, prompts=prompts, shots=shots)

  def _shares(self) -> dict[str, int]:
    """Proposals of each arm for a batch: an equal share for each source."""
    section = self._ctx.settings.discover
    trained = sum(step is not None for step in self._steps.values())
    others = [arm for arm, step in self._steps.items() if step is None]
    others += [RANDOM] if RANDOM in section.sources and len(self._random) else []
    others += [MUTATED] if self._mutants else []  # Not before the first find.
    sources = bool(trained) + len(others)
    if not sources:
      raise UserError(
        f"config.discover.sources={section.sources}: none of them has a question to propose; name"
        " 'untrained', or 'random' where the data set has questions"
      )
    share = section.batch * max(section.proposals, 1) / sources
    shares = {arm: math.ceil(share / trained) for arm in self._steps if arm not in others}
    return shares | {arm: math.ceil(share) for arm in others}

  def _data(self, batch: int, n: int) -> list[Attempt]:
    """The data set's own questions, in an order of their own; after the last one the first."""
    chosen = self._random.around(batch * n, n)
    return unanswered(self._ctx, self._pool, chosen, arm=RANDOM)

  def _mutated(self, batch: int, n: int, others: Sequence[Probe]) -> list[Attempt | None]:
    """Children of finds, some of them about images that were made for what others propose."""
    if self._mutants is None:
      return []
    fresh = {probe.image_id: probe for probe in others if probe.image_id != probe.origin_id}
    return self._mutants.propose(batch, n, images=self._images_of(n), fresh=list(fresh.values()))

  def _images_of(self, n: int) -> int:
    """Images that are made for `n` proposals."""
    settings = self._ctx.settings
    makes = sum(count for s, count in settings.rollout.active() if s.makes)
    share = makes / sum(settings.rollout.counts().values())
    return math.ceil(n * share / max(settings.discover.proposals, 1))

  def _written(
    self, arm: str, batch: int, n: int, meter: flops.Meter, drafts: Drafts | None
  ) -> list[Attempt | None]:
    """What an auditor writes, None for what is no question; strategies in the config's shares."""
    settings, walk = self._ctx.settings, self._ctx.round.walk("discover", arm, batch)
    once = max(settings.discover.proposals, 1)
    group = math.gcd(settings.grpo.group_size, once)
    made = min(self._images_of(n) * once, n)
    drawn = self._drawn(
      self._makes, arm, made, questions=once, walk=(*walk, "made"), meter=meter, drafts=drafts
    )
    asks = self._shooting if self._shooting and self._steps[arm] is None else self._asks
    return drawn + self._drawn(asks, arm, n - made, group=group, walk=walk, meter=meter)

  def _drawn(
    self,
    prober: Prober | None,
    arm: str,
    n: int,
    *,
    walk: draws.Walk,
    meter: flops.Meter,
    group: int = 1,
    questions: int = 1,
    drafts: Drafts | None = None,
  ) -> list[Attempt | None]:
    """The first `n` samples of a walk, in calls about as large as those of training."""
    settings, step, timer = self._ctx.settings, self._steps[arm], metrics.Timer()
    out: list[Attempt | None] = []
    chunk = 0
    while prober is not None and len(out) < n:
      scale = max(settings.grpo.group_size // max(group, questions), 1)
      prompts = draws.draw_prompts(
        {s: k * scale for s, k in prober.config.counts().items()},
        seed=settings.seed,
        walk=walk,
        step=chunk,
        size=len(self._pool),
      )
      params = self._stored.take(step)
      begun = prober.first_turns(params, prompts, timer=timer, group=group, chooser=drafts)
      meter.proposed(begun.dropped, asked={t.prompt_id for t in begun.trajectories})
      done = prober.second_turns(params, begun, timer=timer, questions=questions)
      probing.check_valid(done, prober.config.max_invalid, step=chunk)
      meter.count(done)
      for t in done[: n - len(out)]:
        usable = t.question and not t.malformed and not t.invalid
        out.append(attempt_of(t, arm=arm, step=step or 0) if usable else None)
      chunk += 1
    return out
