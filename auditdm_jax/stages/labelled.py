# SPDX-License-Identifier: Apache-2.0
"""Questions whose answers the data set knows, and what they say of the ensemble and its finds.

Held-out ones are put to all models once in a run. The health of the references and the precision
of finds are measured on the same answers; probes of the fresh split count for the latter as well,
where they are asked anyway.
"""

from collections.abc import Callable, Iterable

from auditdm_jax.audit import precision, rates
from auditdm_jax.audit.answer import Heard
from auditdm_jax.audit.attempt import Attempt, unique_attempts
from auditdm_jax.audit.outside import Labels, count_votes
from auditdm_jax.audit.precision import FindPrecision, LabelPrecision
from auditdm_jax.core import streams
from auditdm_jax.core.pool import NoSplit
from auditdm_jax.rectify.curate import LABELS, TrainingExample
from auditdm_jax.stages import asking
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.pools import InMemoryPool

NAME = "heldout"


def heldout_attempts(ctx: Context, *, heard: Heard | None = None) -> list[Attempt]:
  """Puts labelled held-out questions to all models, `verify.labelled` of them at most.

  They are drawn without a look at what the models say of them. Without a held-out split, or one
  that has labels, there are none.

  Args:
    ctx: the run.
    heard: what the models answered elsewhere, and are not asked again.
  """
  try:
    pool = ctx.pool("heldout")
  except NoSplit:
    return []
  if found := dict(ctx.folder.batches(NAME)):
    return found[0]
  known = [
    (i, question)
    for i in range(len(pool))
    for question, answers in zip(pool.questions(i), pool.answers(i), strict=True)
    if answers
  ]
  order = streams.rng(ctx.settings.seed, "labelled").permutation(len(known))
  chosen = [known[int(k)] for k in order[: ctx.settings.verify.labelled]]
  attempts = []
  if chosen:
    bank = ctx.models.bank(heard=heard)
    label = "labelled questions"
    attempts = asking.ask_questions(ctx, bank, pool, chosen, arm=NAME, label=label, cascade=False)
  ctx.folder.append_batch(NAME, 0, attempts)
  return attempts


def find_precision(ctx: Context) -> FindPrecision | None:
  """Measures how many finds are real by the data set's labels; None if it has none."""
  rows = [(a, NAME) for a in heldout_attempts(ctx)]
  if ctx.settings.pool.fresh and asking.asks_data_set(ctx):
    # Those of the first batch were asked whatever they are about.
    rows += [(a, asking.FRESH) for a in dict(ctx.folder.batches(asking.FRESH)).get(0, [])]
  found, unknown, seen = [], 0, set()
  for split in (NAME, asking.FRESH):
    own = unique_attempts(a for a, of in rows if of == split and a.probe.probe_id not in seen)
    seen |= {a.probe.probe_id for a in own}
    if own:
      who = Labels(answers_of(ctx.pool(split)))
      probes, without = precision.known_probes(own, who, ctx.judge)
      found, unknown = found + probes, unknown + without
  return precision.of_probes(found, by="labels", unknown=unknown)


def label_precision(
  ctx: Context, examples: Iterable[TrainingExample]
) -> tuple[LabelPrecision, ...]:
  """Measures how many consensus labels are right: by people, by the oracle and by the data set.

  A label of a question that has no true answer is wrong. Labels of the data set itself are not
  measured.
  """
  own = [e for e in examples if e.source != LABELS]
  knows: dict[str, Callable[[TrainingExample], bool | None]] = {"people": _by_people(ctx)}
  if ctx.oracle.exists:
    knows["oracle"] = lambda e: _is_true(ctx, e)
  knows["labels"] = _by_labels(ctx)
  rows = []
  for by, is_right in knows.items():
    told = [(right, e.origin_id) for e in own if (right := is_right(e)) is not None]
    if told:
      rate = rates.rate_by_image([right for right, _ in told], [image for _, image in told])
      rows.append(LabelPrecision(by, rate))
  return tuple(rows)


def _is_true(ctx: Context, example: TrainingExample) -> bool | None:
  answer = ctx.oracle.answer(example.image_id, example.question)
  if answer is None:
    return False
  return count_votes([answer], example.label, ctx.judge, question=example.question).right


def _by_people(ctx: Context) -> Callable[[TrainingExample], bool | None]:
  """What people said of the find that an example is from."""
  said = {f.probe.probe_id: precision.by_people(f) for f in ctx.folder.failures() if f.label}
  return lambda e: said.get(e.provenance.get("probe_id", ""))


def _by_labels(ctx: Context) -> Callable[[TrainingExample], bool | None]:
  """What the data set answers to the same question, if it asks that."""
  given = answers_of(ctx.pool("images"))

  def is_right(e: TrainingExample) -> bool | None:
    labels = given(e.image_id, e.question)
    return count_votes(labels, e.label, ctx.judge, question=e.question).right if labels else None

  return is_right


def answers_of(pool: InMemoryPool) -> Callable[[str, str], tuple[str, ...]]:
  """Returns what the pool answers to a question of its own about one of its images."""
  rows: dict[str, list[int]] = {}  # An image may be there twice.
  for i in range(len(pool)):
    rows.setdefault(pool.image_id(i), []).append(i)

  def given(image_id: str, question: str) -> tuple[str, ...]:
    found, wanted = [], _spelled(question)
    for i in rows.get(image_id, ()):
      for asked, answers in zip(pool.questions(i), pool.answers(i), strict=True):
        found += answers if _spelled(asked) == wanted else ()
    return tuple(found)

  return given


def _spelled(question: str) -> str:
  """A question without case, double blanks and the sign at its end."""
  return " ".join(question.casefold().split()).rstrip(" ?.")
