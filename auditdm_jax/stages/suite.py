# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a run: its held-out questions, put to every model that the run has or makes.

<run>/benchmark has the predictions and results, as those of the stages `predict` and `score`. A
model is asked in its own style, and its short answer is scored, as in the audit itself.
"""

from collections.abc import Sequence
import os

from auditdm_jax.audit.ask import Answer, AnswerKind, ask
from auditdm_jax.bench import heldout, results, specs
from auditdm_jax.bench import predict as predict_lib
from auditdm_jax.bench import table as table_lib
from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.predict import Asking, BenchReply
from auditdm_jax.bench.predictions import Finish, ModelId, PredictionStore
from auditdm_jax.bench.results import ResultStore
from auditdm_jax.bench.specs import ItemGroups
from auditdm_jax.bench.table import BenchTable
from auditdm_jax.core import jsonio, metrics, paths
from auditdm_jax.core.config import load_function
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.models import Answering
from auditdm_jax.stages.results import Groups

FOLDER = "benchmark"
BASELINE, LARGER = "baseline", "larger_sibling"  # The roles of target and sibling.
_SCORER = "config.benchmark.scorer"
# Of kinds of replies that are no short answer; the others ended by themselves.
_ENDS: dict[AnswerKind, Finish] = {
  "truncated": "length",
  "thinking": "length",
  "refusal": "refused",
  "failed": "failed",
}


def benchmark(
  ctx: Context,
  model: Answering,
  folder: str | os.PathLike,
  *,
  role: str,
  heard: dict[tuple[str, str], Answer] | None = None,
) -> Groups:
  """Measures a model on the held-out questions; what it answered before is not asked again.

  Args:
    ctx: the run.
    model: as it is to be asked.
    folder: of its weights, or the name of its endpoint.
    role: what tables call it.
    heard: takes what it answers now, by (image id, question), if it answers.

  Returns:
    Rates by group: "all", "gaps", "rest", "skill: …", "gap: …".
  """
  items, store, kept = _items(ctx), _predictions(ctx), _results(ctx)
  questions = _questions(ctx, items)
  known_as = ModelId(name=model.name, identity=_identity(ctx, folder))
  respondent = _InStyle(ctx, model, known_as, {} if heard is None else heard)
  settled = store.settled()
  todo = predict_lib.missing(respondent.model, questions, settled)
  with metrics.Progress(
    len(items), f"benchmark {model.name}", done=len(items) - len(todo.places)
  ) as progress:
    settled |= predict_lib.predict(
      respondent,
      questions,
      todo,
      store,
      role=role,
      batch_size=ctx.settings.bank.batch_size,
      on_batch=lambda done: progress.update(len(items) - len(todo.places) + done),
    )
  asked = predict_lib.asked_benchmark(
    respondent.model, questions, settled, role=role, provenance=heldout.provenance(questions)
  )
  store.finish(asked)
  keys = {questions.key(respondent.model, item) for item in items}
  name = questions.prompt.metric
  paired = results.pair(asked, questions, store.find(keys))
  rows = paired.score(results.find_metric(name, where=_SCORER), name)
  if rows.head.result not in {head.result for head in kept.heads()}:
    kept.append(rows)
  return heldout.rates_of(rows, heldout.members(items, _groups(ctx)))


def table(ctx: Context) -> BenchTable | None:
  """Returns the table of all models that were measured, a row per group; None if none was."""
  kept = _results(ctx)
  heads = {head.asked.role: head for head in kept.heads()}
  if BASELINE not in heads:
    return None
  items = _items(ctx)
  found = kept.load([head.result for head in heads.values()])
  rows = []
  for group, ids in heldout.members(items, _groups(ctx)).items():
    parts = {role: heldout.of_group(found[h.result], group, ids) for role, h in heads.items()}
    rows.append({role: part for role, part in parts.items() if part is not None})
  rows = [row for row in rows if BASELINE in row]
  spec = _questions(ctx, items).spec
  return table_lib.tabulate(
    rows,
    [heldout.titled(spec, next(iter(row.values())).head.asked.entry) for row in rows],
    lambda head: results.find_metric(head.metric, where=_SCORER),
    baseline=BASELINE,
    roles=list(heads),
    seed=ctx.settings.seed,
    forgets=(heldout.ALL,),
  )


class _InStyle:
  """A model of the run, asked in its style."""

  def __init__(
    self,
    ctx: Context,
    model: Answering,
    known_as: ModelId,
    heard: dict[tuple[str, str], Answer],
  ):
    self._ctx, self._model, self.model, self._heard = ctx, model, known_as, heard
    self.pictures = ctx.settings.bank.batch_size

  def reply(self, asked: Sequence[Asking], *, max_tokens: int) -> list[BenchReply]:
    """See `bench.predict.Respondent`; the limit is the style's own."""
    del max_tokens
    ctx, ids = self._ctx, [a.image for a in asked]
    seen = ctx.models.cache.seen(self._model, ids, ctx.images)
    answers = ask(self._model, seen, [a.prompt for a in asked], config=ctx.settings.bank)
    told = zip(asked, answers, strict=True)
    self._heard.update({(a.image, a.prompt): said for a, said in told if said.kind != "failed"})
    return [BenchReply(a.text, _ENDS.get(a.kind, "eos")) for a in answers]


def _items(ctx: Context) -> list[BenchmarkItem]:
  return specs.from_pool(ctx.pool("heldout"))


def _questions(ctx: Context, items: Sequence[BenchmarkItem]) -> predict_lib.Questions:
  return heldout.questions_of(
    items,
    split=ctx.settings.pool.heldout,
    scorer=ctx.settings.benchmark.scorer,
    max_tokens=ctx.settings.bank.max_new_tokens,
  )


def _predictions(ctx: Context) -> PredictionStore:
  return PredictionStore(ctx.round.root / FOLDER)


def _results(ctx: Context) -> ResultStore:
  return ResultStore(ctx.round.root / FOLDER)


def _groups(ctx: Context) -> ItemGroups | None:
  """Returns the groups of an item; None if there are none."""
  if ctx.settings.benchmark.groups:
    return load_function(ctx.settings.benchmark.groups, where="config.benchmark.groups")
  world = ctx.world
  if world.gap_of is None and world.mode_of is None:
    return None
  return lambda item: world.groups(item.question, item.references[0])


def _identity(ctx: Context, folder: str | os.PathLike) -> str:
  """Returns a hash of the weights and of how they are asked."""
  name, settings = os.fspath(folder), ctx.settings
  if name in ctx.remotes:
    weights = ctx.models.identity(name)
  else:
    with paths.reading(folder) as local:
      weights = ctx.models.identity(os.fspath(local))
  asked = [settings.bank, settings.models.int8, settings.models.dtype, settings.world.talk]
  return jsonio.canonical_hash([weights, *asked])
