# SPDX-License-Identifier: Apache-2.0
"""The probes that modes are measured and confirmed on.

  1. Batch 0: questions about the fresh split, asked whatever they are. They tell the failure rate
     outside the modes.
  2. Further batches: more questions of the same proposer. One is asked only if it may fall under a
     mode that has fewer probes than planned (rejection sampling through the frozen taxonomy). Modes
     that would take more questions than the budget has are left as they are.

The proposer is fixed: the data set, or one auditor. What was asked is kept in the run's folder, so
that a stage which is cut short goes on where it was.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

from auditdm_jax.audit import confirm
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.confirm import FreshProbe, ModeTest
from auditdm_jax.audit.mode import Mode
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.stages import asking
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import FreshDraw
from auditdm_jax.stages.run import RunFolder

_CHUNK = 1_000  # Questions of the data set that are looked at at once.


@dataclasses.dataclass(frozen=True)
class Fresh:
  """Fresh probes of a taxonomy.

  Attributes:
    draw: who proposed them, and how many.
    attempts: all of them, in the order in which they were drawn.
    matched: the mode of each.
    probes: the same as tests see them.
  """

  draw: FreshDraw
  attempts: tuple[Attempt, ...] = ()
  matched: tuple[Mode | None, ...] = ()
  probes: tuple[FreshProbe, ...] = ()

  def tests(self, ctx: Context, taxonomy: Taxonomy) -> list[ModeTest]:
    """What they say of the modes."""
    return confirm.confirm(taxonomy.modes, self.probes, config=ctx.settings.taxonomy.fresh)


def draw(ctx: Context, taxonomy: Taxonomy, *, bank: ModelBank) -> Fresh:
  """Asks fresh probes for the modes of a taxonomy, as far as they are not in the folder.

  Args:
    ctx: the run's config, models and images.
    taxonomy: the modes; without any, nothing is asked.
    bank: target and references.
  """
  name, config = asking.FRESH, ctx.settings.taxonomy.fresh
  if not taxonomy.modes or not ctx.settings.pool.fresh:
    return Fresh(FreshDraw("nobody", 0, 0, 0))
  by_data_set = asking.asks_data_set(ctx)
  done = dict(ctx.folder.batches(name))
  if 0 not in done:
    ctx.folder.append_batch(name, 0, asking.fresh_attempts(ctx, bank=bank))
    done = dict(ctx.folder.batches(name))
  attempts, n, looked_at = list(done.get(0, ())), len(done.get(0, ())), 0
  view = _View(ctx, taxonomy, attempts)
  wanted = confirm.affordable(
    taxonomy.modes, view.probes, asks=config.asks, draws=config.draws, config=config
  )
  source = _questions if by_data_set else _auditor
  for batch, (size, ask) in enumerate(source(ctx, bank), 1):
    lacking = wanted & confirm.lacking(taxonomy.modes, view.probes, config=config)
    left = config.asks - (len(view.attempts) - n)
    if not lacking or left <= 0 or looked_at >= config.draws:
      break
    looked_at += size
    if batch not in done:
      ctx.folder.append_batch(name, batch, ask(view.wanting(lacking, left)))
    view.add(done.get(batch) or dict(ctx.folder.batches(name)).get(batch, []))
  step = ctx.settings.optim.steps
  auditor = f"auditor@{step}" if step else "untrained auditor"
  who = "questions of the data set" if by_data_set else auditor
  found = FreshDraw(who, n, len(view.attempts) - n, looked_at)
  return Fresh(found, tuple(view.attempts), tuple(view.matched), tuple(view.probes))


def kept(ctx: Context, folder: RunFolder, taxonomy: Taxonomy) -> Fresh:
  """Returns the fresh probes that a round has asked for its modes, whichever round that is.

  Args:
    ctx: the run's images.
    folder: of the round.
    taxonomy: its modes.
  """
  batches = dict(folder.batches(asking.FRESH))
  view = _View(ctx, taxonomy, batches.pop(0, []))
  for attempts in batches.values():
    view.add(attempts)
  found = FreshDraw("kept", 0, 0, 0)
  return Fresh(found, tuple(view.attempts), tuple(view.matched), tuple(view.probes))


class _View:
  """Fresh attempts, each question about an image once, as the modes of a taxonomy see them."""

  def __init__(self, ctx: Context, taxonomy: Taxonomy, attempts: Sequence[Attempt]):
    self._ctx, self._taxonomy = ctx, taxonomy
    self.attempts: list[Attempt] = []
    self.matched: list[Mode | None] = []
    self.probes: list[FreshProbe] = []
    self._known: set[str] = set()
    self._add(attempts, for_all=True)

  def add(self, attempts: Sequence[Attempt]) -> None:
    """Adds those that were asked for the sake of a mode."""
    self._add(attempts, for_all=False)

  def _add(self, attempts: Sequence[Attempt], *, for_all: bool) -> None:
    new = [a for a in attempts if a.verdict and not self._is_known(a)]
    taxonomy = self._taxonomy
    images = self._ctx.gallery.terms(taxonomy.looks, [a.probe for a in new])
    questions = [a.probe.question for a in new]
    matched = taxonomy.match(questions, [a.consensus for a in new], images)
    possible = taxonomy.possible(questions, images)
    for attempt, mode, modes in zip(new, matched, possible, strict=True):
      failed = None if attempt.consensus is None else attempt.find is not None
      self.attempts.append(attempt)
      self.matched.append(mode)
      probe, mode_id = attempt.probe, mode.mode_id if mode else None
      self.probes.append(
        FreshProbe(probe.origin_id, mode_id, modes, failed, for_all, probe.probe_id)
      )

  def _is_known(self, attempt: Attempt) -> bool:
    probe_id = attempt.probe.probe_id
    known = probe_id in self._known
    self._known.add(probe_id)
    return known

  def wanting(
    self, lacking: frozenset[str], left: int
  ) -> Callable[[Sequence[Attempt]], list[bool]]:
    """Says which proposals may fall under one of these modes: the first `left`, each once."""

    def wanted(proposals: Sequence[Attempt]) -> list[bool]:
      images = self._ctx.gallery.terms(self._taxonomy.looks, [a.probe for a in proposals])
      rows = self._taxonomy.possible([a.probe.question for a in proposals], images)
      seen, out = set(self._known), []
      for proposal, modes in zip(proposals, rows, strict=True):
        probe_id = proposal.probe.probe_id
        yes = bool(modes & lacking) and probe_id not in seen and sum(out) < left
        seen.add(probe_id)
        out.append(yes)
      return out

    return wanted


_Ask = Callable[[Callable[[Sequence[Attempt]], Sequence[bool]]], list[Attempt]]


def _questions(ctx: Context, bank: ModelBank) -> Iterator[tuple[int, _Ask]]:
  """Yields chunks of the data set's questions beyond those of batch 0: size, and who asks."""
  pool, arm = ctx.pool("fresh"), asking.FRESH
  questions = asking.RandomQuestions(pool, ctx.settings.seed, arm)
  questions.skip(ctx.settings.taxonomy.fresh.rest)
  while questions.left:
    chunk = questions.next(_CHUNK)
    questions.skip(_CHUNK)

    def ask(wanted, chunk=chunk):
      rows = zip(chunk, wanted(asking.unanswered(ctx, pool, chunk, arm=arm)), strict=True)
      chosen = [row for row, yes in rows if yes]
      return asking.ask_questions(ctx, bank, pool, chosen, arm=arm, cascade=False)

    yield len(chunk), ask


def _auditor(ctx: Context, bank: ModelBank) -> Iterator[tuple[int, _Ask]]:
  """Yields chunks of the auditor's questions: size, and who asks."""
  asker, step = asking.fresh_asker(ctx, bank), ctx.settings.optim.steps or None
  chunk = 0
  while True:
    yield (
      asker.chunk_size,
      lambda wanted, i=chunk: asker.draw(step, i, arm=asking.FRESH, keep=wanted),
    )
    chunk += 1
