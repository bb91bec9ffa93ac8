# SPDX-License-Identifier: Apache-2.0
"""minimise: finds the shortest question and the smallest edit that still show a failure of a run.

  python -m auditdm_jax minimise 3fa2 --workdir=runs/first

ID is that of the failure's card in the report, or its first digits. A candidate fails if the
references still agree on the same answer and the target still contradicts it, in as many of its
trials (the image as it is, and changed a little) as verification asks for. The result is printed
and kept in WORKDIR/minimised. Exits with 1 if the failure itself does not show any more.

Reads:  a run whose failures are verified.
Writes: WORKDIR/minimised/ID.json and an image.
Costs:  at most --budget tries for the question and as many for the edit, each of as many questions
        to target and references as verification asks.
"""

from collections.abc import Sequence
import dataclasses

from absl import flags
import numpy as np

from auditdm_jax.audit import gates
from auditdm_jax.audit import minimise as minimise_lib
from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.attempt import Failure, Find, Stability
from auditdm_jax.audit.ledger import shown
from auditdm_jax.audit.minimise import Minimised, SmallestEdit
from auditdm_jax.audit.probe import Probe
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.stages import past
from auditdm_jax.stages.context import Context

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)
_BUDGET = flags.DEFINE_integer(
  "budget",
  200,
  "Candidates for the question that are tried, and as many for the edit; each takes its trials.",
  lower_bound=1,
  flag_values=FLAGS,
)


def main(words: Sequence[str]) -> int:
  """Makes the failure smaller whose id is given."""
  if len(words) != 1 or _WORKDIR.value is None:
    raise UserError("minimise takes one ID and --workdir; see minimise --help")
  with past.opened(_WORKDIR.value, "minimise") as ctx:
    failure = past.failure(ctx, words[0])
    ctx.pool("images")  # Where images are found by id.
    trier = _Trier(ctx, failure)
    probe = failure.probe
    if not trier.fails([(probe.question, ctx.images(probe.image_id))])[0]:
      print(f"{probe.probe_id} does not show any more: {trier.last.k} of {trier.last.n} trials")
      return 1
    result = _minimise(ctx, failure, trier, _BUDGET.value)
    ctx.folder.write_minimised(result)
    print(_told(ctx, failure, result))
  return 0


class _Trier:
  """Asks target and references about candidates, and counts what they are asked.

  Attributes:
    queries: questions about an image so far.
    last: what became of the last candidate.
  """

  def __init__(self, ctx: Context, failure: Failure):
    self._failure, self._bank = failure, ctx.models.bank()
    # Without other wordings, which a shorter question has not, and without the grey image.
    self._config = dataclasses.replace(ctx.settings.verify, paraphrases=0, blank_image=False)
    self.queries, self.last = 0, Stability(k=0, n=0)

  def fails(self, candidates: Sequence[tuple[str, np.ndarray]]) -> list[bool]:
    """Whether each (question, u8[H,W,3]) still shows the same failure."""
    images = {Images.id_of(image): image for _, image in candidates}
    longest = self._config.max_words
    asked = [
      i
      for i, (question, _) in enumerate(candidates)
      if gates.well_formed(question, max_words=longest).passed
    ]
    finds = [self._find(*candidates[i]) for i in asked]
    failed = [False] * len(candidates)
    tried = verify_lib.retry(finds, self._bank, images=images.__getitem__, config=self._config)
    for i, one in zip(asked, tried, strict=True):
      self.last = one.stability
      self.queries += one.stability.n
      failed[i] = one.stability.share >= self._config.stable_share
    return failed

  def _find(self, question: str, image: np.ndarray) -> Find:
    f = self._failure
    probe = Probe.make(Images.id_of(image), question)
    return Find(probe=probe, verdict=f.verdict, consensus=f.consensus, said=f.said)


def _minimise(ctx: Context, failure: Failure, trier: _Trier, budget: int) -> Minimised:
  """First the question on the failure's image, then the image under the shortest question."""
  probe = failure.probe
  image = ctx.images(probe.image_id)
  shortest = minimise_lib.shortest_question(
    probe.question, lambda questions: trier.fails([(q, image) for q in questions]), budget=budget
  )
  edit, note = _edit(ctx, failure, trier, shortest.question, budget)
  if edit is not None:
    image = edit.image
  trier.fails([(shortest.question, image)])
  return Minimised(
    probe_id=probe.probe_id,
    question=shortest.question,
    words=shortest.words,
    words_before=shortest.words_before,
    image_id=ctx.images.put(image),
    tiles=edit.tiles if edit else 0,
    tiles_before=edit.tiles_before if edit else 0,
    strength=edit.strength if edit else 1.0,
    k=trier.last.k,
    n=trier.last.n,
    queries=trier.queries,
    is_minimal=shortest.is_minimal and (edit is None or edit.is_minimal),
    note=note,
  )


def _edit(
  ctx: Context, failure: Failure, trier: _Trier, question: str, budget: int
) -> tuple[SmallestEdit | None, str]:
  """The smallest edit, or why there is none."""
  probe = failure.probe
  if probe.source_image_id in (None, probe.image_id):
    return None, "the image was not made"
  source, edited = ctx.images(probe.source_image_id), ctx.images(probe.image_id)
  if source.shape != edited.shape:
    return None, "the made image has another size than its source"
  if probe.instruction is None:
    return None, "the image was generated, not edited"
  edit = minimise_lib.smallest_edit(
    source,
    edited,
    lambda images: trier.fails([(question, image) for image in images]),
    budget=budget,
  )
  return edit, ""


def _told(ctx: Context, failure: Failure, result: Minimised) -> str:
  """The result for the screen."""
  lines = [
    f"question  {shown(failure.probe.question)}",
    f"shortest  {shown(result.question)}  ({result.words} of {result.words_before} words)",
  ]
  if result.tiles_before and not result.tiles:
    lines.append("edit      not needed: the question fails on the source, too")
  elif result.tiles_before:
    lines.append(
      f"edit      {result.tiles} of {result.tiles_before} changed tiles at"
      f" {result.strength:.0%} of the change: {ctx.images.made.path(result.image_id)}"
    )
  else:
    lines.append(f"edit      none: {result.note}")
  lines += [
    f"expected  {shown(failure.consensus)}",
    f"fails in {result.k} of {result.n} trials; {result.queries} questions about an image asked",
    "nothing more can be left out" if result.is_minimal else "the budget ended the search",
  ]
  return "\n".join(lines)
