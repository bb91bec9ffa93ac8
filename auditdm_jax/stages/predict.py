# SPDX-License-Identifier: Apache-2.0
"""predict: asks models the questions of benchmarks; what is answered is never asked again.

  python -m auditdm_jax predict --config=configs/benchmarks.py:… --workdir=runs/bench
  python -m auditdm_jax score   …the same
  python -m auditdm_jax table   …the same

Predictions go to <workdir>/predictions-P.jsonl as they come, and predictions.json says which
benchmarks are complete. Models are loaded one after the other, and only those with something to do.

Reads:  the folders of the benchmarks, the models.
Writes: WORKDIR/predictions-P.jsonl and WORKDIR/predictions.json.
Costs:  an answer of each model to each item that has none yet.
"""

from collections.abc import Mapping
import dataclasses
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.bench import predict as predict_lib
from auditdm_jax.bench.predict import Questions, Respondent
from auditdm_jax.bench.predictions import Finish, ModelId
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import metrics, runtime
from auditdm_jax.stages.benchmarks import BenchRun
from auditdm_jax.stages.respondents import AtEndpoint, FolderModel
from auditdm_jax.vlm import Vlm, load_vlm


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with BenchRun(config, workdir, "predict") as ctx:
    run(ctx)
  return 0


def run(ctx: BenchRun) -> None:
  """Asks every model of the config what it was not asked yet.

  Raises:
    UserError: a model or the data of a benchmark is not there; nothing is asked then.
  """
  rows = [*ctx.entries()]
  models = [ctx.model(spec, where=_where(ctx, key, role)) for key, role, spec in rows]
  todo = [_task(ctx, model, *row) for model, row in zip(models, rows, strict=True)]
  loaded, settled = _Loaded(ctx), ctx.predictions.settled()
  for task in todo:
    settled |= _ask(ctx, loaded, task, settled)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
  role: str
  spec: str
  model: ModelId
  questions: Questions


def _where(ctx: BenchRun, key: str, role: str) -> str:
  """Returns the key of the config that names a model."""
  own = role in ctx.settings.benchmarks[key].models
  return f"config.benchmarks.{key}.models.{role}" if own else f"config.models.{role}"


def _task(ctx: BenchRun, model: ModelId, key: str, role: str, spec: str) -> _Task:
  questions = ctx.questions(key, ctx.family(key, role, spec))
  return _Task(role=role, spec=spec, model=model, questions=questions)


class _Loaded:
  """The model that was asked last, and the features of images that models share."""

  def __init__(self, ctx: BenchRun):
    self._ctx = ctx
    self._cache = FeatureCache(ctx.settings.feature_bytes)
    self._spec, self._vlm = "", None

  def respondent(self, task: _Task) -> Respondent:
    """Returns the model of a task, loaded if it is not."""
    if task.spec in self._ctx.remotes:
      return AtEndpoint(self._ctx.remotes.open(task.spec))
    return FolderModel(
      self._load(task.spec),
      task.model,
      self._cache,
      prompt=task.questions.prompt,
      feature_bytes=self._ctx.settings.feature_bytes,
    )

  def _load(self, spec: str) -> Vlm:
    if self._vlm is None or self._spec != spec:
      self._vlm = None  # First, or both would be there.
      mesh = mesh_lib.make_mesh(self._ctx.settings.mesh)
      shared = mesh if mesh.size > 1 else None
      self._spec, self._vlm = spec, load_vlm(spec, mesh=shared, dtype=self._ctx.settings.dtype)
    return self._vlm


def _ask(
  ctx: BenchRun, loaded: _Loaded, task: _Task, settled: Mapping[str, Finish]
) -> dict[str, Finish]:
  """Asks one benchmark of one model, and writes down that it is complete."""
  name = f"{task.role} on {task.questions.entry}"
  todo = predict_lib.missing(task.model, task.questions, settled)
  total, ends = len(task.questions.items), {}
  if todo.places:
    known = total - len(todo.places)
    with metrics.Progress(total, name, done=known) as progress:
      ends = predict_lib.predict(
        loaded.respondent(task),
        task.questions,
        todo,
        ctx.predictions,
        role=task.role,
        batch_size=ctx.settings.batch_size,
        on_batch=lambda done: progress.update(known + done),
      )
  asked = predict_lib.asked_benchmark(
    task.model,
    task.questions,
    {**settled, **ends},
    role=task.role,
    provenance=ctx.opened(task.questions.entry, task.questions.split).provenance,
  )
  ctx.predictions.finish(asked)
  if runtime.is_main():
    failed = f", no reply to {asked.failed:,}; predict again asks them again" * (asked.failed > 0)
    print(f"{name}: {total - asked.failed:,} of {total:,} answered, {len(ends):,} now{failed}")
  return ends
