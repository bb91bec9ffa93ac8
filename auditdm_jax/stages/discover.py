# SPDX-License-Identifier: Apache-2.0
"""discover: sweeps the image pool for finds with a bandit over arms.

Arms are the trained auditor's checkpoints, the untrained auditor, and random questions if the data
set has any. The budget moves to the arm that brings finds of new kinds. Finds made during GRPO are
free and are kept. The control is random questions alone at equal total queries, GRPO's included.

Reads:  WORKDIR/auditors and WORKDIR/records, which train writes.
Writes: WORKDIR/discover.
Costs:  config.discover.probes probes, each answered by target and references.
"""

from collections.abc import Collection, Sequence
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit.arms import Arms
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.core import metrics
from auditdm_jax.stages.asking import Asker, RandomQuestions, ask_questions
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Discovered
from auditdm_jax.stages.truth import ModeKey

RANDOM, UNTRAINED = "random", "untrained"


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "discover") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> Discovered:
  """Spends `discover.probes` over the arms; resumes after the last whole batch."""
  if (found := ctx.folder.done("discover", Discovered)) is not None:
    return found
  section = ctx.settings.discover
  if not section.probes:
    return ctx.folder.finish("discover", Discovered({}, 0))
  trained = ctx.folder.auditors() if ctx.settings.optim.steps else ()
  ask = _Sweep(ctx, {f"auditor@{step}": step for step in trained})
  arms = Arms(ask.names, config=section.arms, seed=ctx.settings.seed)
  mode_key, done = ModeKey(ctx.seeds), 0
  for batch, attempts in ctx.folder.sweep():
    for _ in range(done, batch):  # Batches that asked nothing left no record.
      arms.allocate(section.batch)
    plan = ask.possible(arms.allocate(section.batch))
    ask.book(attempts)
    _observe(arms, plan, attempts, mode_key)
    done = batch + 1
  before, finds = done * section.batch, 0
  with metrics.Progress(section.probes, "discover", done=before) as progress:
    for batch in range(done, -(-section.probes // section.batch)):
      plan = ask.possible(arms.allocate(section.batch))
      attempts = ask.batch(plan, batch)
      ctx.folder.append_sweep(batch, attempts)
      _observe(arms, plan, attempts, mode_key)
      finds += sum(a.find is not None for a in attempts)
      shown = " ".join(f"{arm}:{n}" for arm, n in plan.items())
      progress.update((batch + 1) * section.batch, finds=finds, arms=shown)
  return ctx.folder.finish("discover", Discovered(arms.summary(), section.probes))


def _observe(
  arms: Arms, plan: Collection[str], attempts: Sequence[Attempt], mode_key: ModeKey
) -> None:
  for arm in plan:
    arms.observe(arm, [mode_key(a) for a in attempts if a.probe.arm == arm])


class _Sweep:
  """Makes and asks an arm's probes: a pure function of (config.seed, arm, batch, n) and of what was
  booked, GRPO's completions included: no auditor spends a query on a question that was asked.

  Attributes:
    names: the arms.
  """

  def __init__(self, ctx: Context, checkpoints: dict[str, int]):
    self._ctx, self._checkpoints, self._bank = ctx, checkpoints, ctx.models.bank()
    self._pool = ctx.pool("images")
    self._auditor = Asker(ctx, self._bank, pool=self._pool)
    drawn = RANDOM if ctx.round.is_first else f"{RANDOM} {ctx.round.draws}"
    self._random = RandomQuestions(self._pool, ctx.settings.seed, drawn)
    before = ctx.round.number - 1
    self._start = f"auditor of round {before}" if before else UNTRAINED
    self.names = [*checkpoints, self._start, *([RANDOM] if len(self._random) else [])]
    self._asked = {a.probe.probe_id for a in ctx.folder.completions() if a.verdict}

  def possible(self, plan: dict[str, int]) -> dict[str, int]:
    """A plan in which the auditor before training asks what the data set has no questions for."""
    over = max(plan.get(RANDOM, 0) - self._random.left, 0)
    if not over:
      return plan
    return plan | {RANDOM: plan[RANDOM] - over, self._start: plan[self._start] + over}

  def batch(self, plan: dict[str, int], batch: int) -> list[Attempt]:
    """Asks and books a batch, arm by arm."""
    attempts = []
    for arm, n in plan.items():
      own = self._ask(arm, n, batch)
      self.book(own)
      attempts += own
    return attempts

  def book(self, attempts: Sequence[Attempt]) -> None:
    """Remembers a batch, whether it was asked now or before a restart."""
    self._asked.update(a.probe.probe_id for a in attempts if a.verdict)
    self._random.skip(sum(a.probe.arm == RANDOM for a in attempts))

  def _ask(self, arm: str, n: int, batch: int) -> list[Attempt]:
    if n == 0:
      return []
    if arm == RANDOM:
      return ask_questions(self._ctx, self._bank, self._pool, self._random.next(n), arm=arm)
    walk = self._ctx.round.walk("discover", arm, batch)
    return self._auditor.ask(self._checkpoints.get(arm), n, arm=arm, walk=walk, asked=self._asked)
