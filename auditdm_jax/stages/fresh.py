# SPDX-License-Identifier: Apache-2.0
"""The probes that modes are measured and confirmed on.

  1. Batch 0: questions about the fresh split, asked whatever they are. They tell the failure rate
     outside the modes.
  2. Further batches: more questions of the same proposer. One is asked only if it may fall under a
     mode that has fewer probes than planned (rejection sampling through the frozen taxonomy). Modes
     that would take more questions than the budget has are left as they are.
  3. For modes that lack probes still, the questions of their own finds are asked about fresh
     images: what is rare is hardly asked about by chance. They are worded as what failed, on images
     that nobody chose.

The proposer is fixed: the data set, or one auditor. What was asked is kept in the run's folder, so
that a stage which is cut short goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math

from auditdm_jax.audit import confirm
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.confirm import FreshProbe, ModeTest
from auditdm_jax.audit.mode import Mode
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.core import streams
from auditdm_jax.stages import asking
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import FreshDraw
from auditdm_jax.stages.run import RunFolder

_CHUNK = 1_000  # Questions of the data set that are looked at at once.
_BLOCK = 50  # Images that are looked at at once,
_WORDINGS = 8  # with so many questions of each mode's finds in turns.


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


def draw(
  ctx: Context,
  taxonomy: Taxonomy,
  *,
  bank: ModelBank,
  questions: Mapping[str, Sequence[str]],
) -> Fresh:
  """Asks fresh probes for the modes of a taxonomy, as far as they are not in the folder.

  Args:
    ctx: the run's config, models and images.
    taxonomy: the modes; without any, nothing is asked.
    bank: target and references.
    questions: by mode id, those of its verified finds, of which the first `_WORDINGS` are asked.
  """
  name, config = asking.FRESH, ctx.settings.taxonomy.fresh
  if not taxonomy.modes or not ctx.settings.pool.fresh:
    return Fresh(FreshDraw("nobody", 0, 0, 0))
  done = dict(ctx.folder.batches(name))
  if 0 not in done:
    ctx.folder.append_batch(name, 0, asking.fresh_attempts(ctx, bank=bank))
    done = dict(ctx.folder.batches(name))
  first = done.get(0, ())
  drawing = _Drawing(ctx, taxonomy, first, done)
  affordable = confirm.affordable(
    taxonomy.modes, drawing.view.probes, asks=config.asks, draws=config.draws, config=config
  )
  by_data_set, step = asking.asks_data_set(ctx), ctx.settings.optim.steps
  source = _questions if by_data_set else _auditor
  looked_at = drawing.take(
    source(ctx, bank), affordable, planned=config.planned, draws=config.draws
  )
  auditor = f"auditor@{step}" if step else "untrained auditor"
  who, asked = "questions of the data set" if by_data_set else auditor, drawing.further
  rare = drawing.lacking(config.few) & questions.keys()
  texts = [questions[mode_id][:_WORDINGS] for mode_id in sorted(rare)]
  looked_at += drawing.take(_repeated(ctx, bank, texts), rare, planned=config.few)
  view = drawing.view
  found = FreshDraw(who, len(first), drawing.further, looked_at, of_finds=drawing.further - asked)
  return Fresh(found, tuple(view.attempts), tuple(view.matched), tuple(view.probes))


class _Drawing:
  """Fresh probes while they are drawn, batch by batch; what is in the folder is not asked again.

  Attributes:
    view: those so far.
  """

  def __init__(
    self,
    ctx: Context,
    taxonomy: Taxonomy,
    first: Sequence[Attempt],
    done: Mapping[int, Sequence[Attempt]],
  ):
    """Takes what was asked whatever it is, and the batches of the folder."""
    self.view = _View(ctx, taxonomy, first)
    self._folder, self._modes, self._done = ctx.folder, taxonomy.modes, done
    self._config, self._n, self._batch = ctx.settings.taxonomy.fresh, len(first), 0

  @property
  def further(self) -> int:
    """Probes beyond those that were asked whatever they are."""
    return len(self.view.attempts) - self._n

  def lacking(self, planned: int) -> frozenset[str]:
    """Ids of the modes that have fewer probes than planned."""
    return confirm.lacking(self._modes, self.view.probes, planned=planned)

  def take(
    self,
    source: Iterator[tuple[int, "_Ask"]],
    wanted: frozenset[str],
    *,
    planned: int,
    draws: float = math.inf,
  ) -> int:
    """Asks what a source proposes for modes that lack probes, and returns how much that was.

    Args:
      source: yields how many questions it proposes, and who asks those of them that are wanted.
      wanted: ids of modes.
      planned: probes of each.
      draws: about how many proposals are looked at.
    """
    looked_at = 0
    for size, ask in source:
      lacking = wanted & self.lacking(planned)
      left = self._config.asks - self.further
      if not lacking or left <= 0 or looked_at >= draws:
        break
      looked_at, self._batch = looked_at + size, self._batch + 1
      if (attempts := self._done.get(self._batch)) is None:
        self._folder.append_batch(asking.FRESH, self._batch, ask(self.view.wanting(lacking, left)))
        attempts = dict(self._folder.batches(asking.FRESH)).get(self._batch, [])
      self.view.add(attempts)
    return looked_at


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


def _repeated(
  ctx: Context, bank: ModelBank, texts: Sequence[Sequence[str]]
) -> Iterator[tuple[int, _Ask]]:
  """Yields blocks of fresh images, each asked one question of each of these: size, and who asks."""
  pool, arm = ctx.pool("fresh"), asking.FRESH
  order = streams.rng(ctx.settings.seed, "fresh images").permutation(len(pool))
  for start in range(0, len(order) if texts else 0, _BLOCK):
    places = range(start, min(start + _BLOCK, len(order)))
    asked = ((int(order[k]), own[k % len(own)]) for k in places for own in texts)
    block = list(dict.fromkeys(asked))

    def ask(wanted, block=block):
      rows = zip(block, wanted(asking.unanswered(ctx, pool, block, arm=arm)), strict=True)
      chosen = [row for row, yes in rows if yes]
      return asking.ask_questions(ctx, bank, pool, chosen, arm=arm, cascade=False)

    yield len(block), ask


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
