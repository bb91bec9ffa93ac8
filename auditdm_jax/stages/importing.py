# SPDX-License-Identifier: Apache-2.0
"""A checkpoint from elsewhere becomes the repaired target of a run, and is measured."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from typing import Any

from auditdm_jax.audit.rates import Rate
from auditdm_jax.bench import heldout, results, specs
from auditdm_jax.bench import predict as predict_lib
from auditdm_jax.bench.items import BenchmarkItem, Provenance
from auditdm_jax.bench.predict import Questions
from auditdm_jax.bench.predictions import MAX_PREDICTION, ModelId, Prediction, PredictionStore
from auditdm_jax.bench.results import ResultRows, ResultStore
from auditdm_jax.bench.specs import BenchmarkSpec, Family, MetricName, PromptSpec
from auditdm_jax.core import jsonio, paths, runtime, typed
from auditdm_jax.core.config import UserError
from auditdm_jax.models import export as model_export
from auditdm_jax.models import weights
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.models.weights import COMPUTE, Opened
from auditdm_jax.rectify import export
from auditdm_jax.rectify.writers import big_vision
from auditdm_jax.rectify.writers.big_vision import Transfer
from auditdm_jax.stages import exporting, suite
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Groups, RepairedModel, Repairs
from auditdm_jax.vlm import Vlm, describe_vlm, extras_of

SCORES = "export-val"  # The folder of answers to an export's validation questions, and the entry.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
_IMPORTED = "imported"  # The key of config.json.
_MAX_ANSWERS = 64 << 20  # Bytes of a file of answers.
_SHOWN = 3  # Sizes that an error names.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What the flags of `import` say.

  Attributes:
    source: the checkpoint.
    name: what the run calls it.
    export: the export that it was trained on; "" = the run's, if there is one.
    answers: file of an evaluator's answers; "" = that in `source`, if there is one.
  """

  source: str
  name: str = "repaired"
  export: str = ""
  answers: str = ""


def run(ctx: Context, options: Options) -> Iterator[str]:
  """Imports and measures a checkpoint; yields lines for the screen.

  Raises:
    UserError: it is no checkpoint of the target's sizes, or something else has its name.
  """
  if not _NAME.fullmatch(options.name):
    raise UserError(f"--name={options.name}: a name of letters, digits, _ and -")
  if ctx.models.target_is_remote:
    raise UserError(
      f"config.models.target: {ctx.settings.models.target} is an endpoint; a checkpoint can only"
      " take the place of a folder's weights"
    )
  header = _export_header(ctx, options)
  target = describe_vlm(ctx.settings.models.target)
  source = pathlib.Path(options.source)
  opened = open_like(source, target.config, what=ctx.settings.models.target)
  content = weights.content_hash(source)
  folder = ctx.folder.repaired(options.name)
  if _is_there(folder, content):
    yield f"{folder}: there already, and the same"
  else:
    if bad := weights.not_finite(source):
      raise UserError(f"{source}: {bad} has values that are not finite; the training diverged")
    if content == ctx.models.identity(ctx.settings.models.target):
      yield f"{source}: in half precision these are the target's own weights"
    opened = dataclasses.replace(opened, side=target.side)
    _write(folder, opened, _ways(ctx, target, opened, header), content=content, source=source)
    yield f"{folder}: {options.source}, {opened.extras['origin']['format']}"
  yield from _measured(ctx, options.name, folder, header)
  yield from _answers(ctx, options, header, ModelId(name=options.name, identity=content))


# ---------------------------------------------------------------------------------- the weights


def open_like(source: pathlib.Path, target: VlmConfig, *, what: str) -> Opened:
  """Opens a checkpoint of a model that has the sizes of `target`.

  A checkpoint without a config.json comes from a trainer: big_vision's and our own train PaliGemma
  without a cap on the final logits, whatever the released model has.

  Args:
    source: the checkpoint.
    target: the architecture.
    what: what errors call the target.

  Raises:
    UserError: it has other sizes.
  """
  opened = weights.open_model(source)
  if differences := _differences(opened.config, target):
    more = len(differences) - _SHOWN
    said = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(f"{source}: not a checkpoint of the target {what}: {said}")
  if weights.has_config(source):
    return weights.open_model(source, dtype="float32")
  opened = weights.open_model(source, model=target, dtype="float32")
  text = dataclasses.replace(opened.config.text, final_softcap=0.0)
  return dataclasses.replace(opened, config=dataclasses.replace(opened.config, text=text))


def _differences(found: VlmConfig, target: VlmConfig) -> list[str]:
  """Returns in words which sizes differ; the caps, windows and rows for the image may."""
  if found.kind != target.kind:
    return [f"it is a {found.kind}, and the target a {target.kind}"]
  free = {*COMPUTE, "final_softcap", "window", "layer_is_local", "query_scale", "vocab_size"}
  free |= {"embed_init_std", "post_norm_init"}
  said = []
  for part in ("text", "vision"):
    mine, theirs = (_sizes(config, part) for config in (found, target))
    for key in mine.keys() | theirs.keys():
      if key not in free and mine.get(key) != theirs.get(key):
        said.append(f"{part}.{key} is {mine.get(key)}, and {theirs.get(key)} in the target")
  rows = [min(c.text.vocab_size, c.image_token_id) for c in (found, target)]
  if rows[0] != rows[1]:
    said.append(f"it has {rows[0]:,} tokens, and the target {rows[1]:,}")
  return sorted(said)


def _sizes(config: VlmConfig, part: str) -> Mapping[str, Any]:
  return config.to_dict().get(part) or {}


def _is_there(folder: pathlib.Path, content: str) -> bool:
  """Returns whether the same checkpoint was imported there.

  Raises:
    UserError: something else has the name.
  """
  path = folder / "config.json"
  if not path.exists():
    return False
  if jsonio.read_json(path).get(_IMPORTED, {}).get("content") == content:
    return True
  raise UserError(f"{folder}: there is another model already; give a --name, or remove the folder")


def _ways(
  ctx: Context, target: Vlm, opened: Opened, header: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Returns how the model is asked and how it sees: as it was trained, or else as the target."""
  style = ctx.settings.bank.style_of(target.name, target.style)
  model = dataclasses.replace(target, style=style, extras={"origin": {"format": "native"}})
  if opened.extras["origin"]["format"] != "big_vision":
    return extras_of(model)
  transfer = _transfer(header)
  pixels = Pixels("big_vision", antialias=transfer.antialias_eval if transfer else True)
  style = transfer.style if transfer else style
  return extras_of(dataclasses.replace(model, pixels=pixels, style=style))


def _write(
  folder: pathlib.Path,
  opened: Opened,
  ways: Mapping[str, Any],
  *,
  content: str,
  source: pathlib.Path,
) -> None:
  """Writes a folder of ours, whole or not at all; tensors go over one by one."""
  if not runtime.is_main():
    return
  extras = {**ways, _IMPORTED: {"from": str(source), "content": content}}
  remote = paths.is_remote(folder)
  if not remote:
    folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".import-", dir=None if remote else folder.parent) as x:
    made = pathlib.Path(x) / folder.name
    model_export.write_native(made, dataclasses.replace(opened, extras=extras))
    describe_vlm(made)  # What cannot be asked is told before it has its name.
    if remote:
      with paths.writing(folder) as local:
        for file in made.iterdir():
          shutil.move(file, local / file.name)
    else:
      made.rename(folder)


# ------------------------------------------------------------------------------------- measuring


def _measured(
  ctx: Context, name: str, folder: pathlib.Path, header: Mapping[str, Any] | None
) -> Iterator[str]:
  """Puts the run's benchmark to the model, and notes it down among the repairs."""
  known = ctx.folder.done("rectify", Repairs) or Repairs({}, tried=False)
  if name in known.models:
    return
  if not specs.from_pool(ctx.pool("heldout"), limit=None):
    yield f"{ctx.settings.pool.heldout} has no answers, so that the benchmark is not asked"
    return
  with paths.reading(folder) as local:
    model = ctx.models.answering(ctx.models.load(local))
  table = suite.benchmark(ctx, model, folder, role=name)
  examples = int(header["rows"]["train"]) if header else 0
  repaired = {**known.models, name: RepairedModel(table, examples)}
  ctx.folder.finish("rectify", dataclasses.replace(known, models=repaired))
  yield from _lines(name, table)


def _lines(name: str, table: Groups) -> Iterator[str]:
  for group in ("all", "gaps", "rest"):
    rate = table.get(group)
    if rate is not None and rate.n:
      yield f"{name}, {group}: {_told(rate)}"


def _told(rate: Rate) -> str:
  low, high = rate.ci95
  return f"{rate.value:.3f} [{low:.3f}, {high:.3f}] n={rate.n}"


# --------------------------------------------------------------------------------------- answers


def _export_header(ctx: Context, options: Options) -> Mapping[str, Any] | None:
  """Returns export.json of the export that the model was trained on; None if there is none."""
  if options.export:
    return export.read_header(options.export)
  folder = exporting.folder_of(ctx, "big_vision")
  return export.read_header(folder) if (folder / export.HEADER).exists() else None


def _answers(
  ctx: Context, options: Options, header: Mapping[str, Any] | None, model: ModelId
) -> Iterator[str]:
  """Scores the answers that big_vision's evaluator wrote down, if there are any."""
  beside = pathlib.Path(options.source) / big_vision.PREDICTIONS
  path = pathlib.Path(options.answers) if options.answers else beside
  if not path.is_file():
    if options.answers:
      raise UserError(f"--answers={path}: no such file")
    return
  folder = pathlib.Path(options.export or exporting.folder_of(ctx, "big_vision"))
  if header is None:
    raise UserError(f"{path}: answers to which questions? --export names the folder of the export")
  rows = score(ctx, folder, path, model=model)
  rate = heldout.rates_of(rows, {heldout.ALL: list(rows.units)})[heldout.ALL]
  yield f"{path.name}, {rows.head.metric.name}: {_told(rate)}"


def _transfer(header: Mapping[str, Any] | None) -> Transfer | None:
  """Returns how an export for big_vision asks and sees; None if there is none."""
  if header is None or "transfer" not in header:
    return None
  return typed.load(Transfer, header["transfer"])


def score(ctx: Context, folder: pathlib.Path, path: pathlib.Path, *, model: ModelId) -> ResultRows:
  """Stores answers to an export's validation questions as predictions, and scores them.

  Args:
    ctx: the run, in whose folder `SCORES` they go.
    folder: the export.
    path: what an evaluator of big_vision wrote.
    model: who answered.

  Raises:
    UserError: the file is damaged, or answers other questions.
  """
  questions = _questions(ctx, folder)
  said = read_answers(path)
  ids = {item.item_id for item in questions.items}
  if said.keys() != ids:
    missing, strange = sorted(ids - said.keys()), sorted(said.keys() - ids)
    what = f"no answer to {missing[0]}" if missing else f"{strange[0]!r:.80} is no question there"
    raise UserError(f"{path}: not the answers to the {len(ids)} questions of {folder}: {what}")
  place = ctx.folder.path / SCORES
  store, kept = PredictionStore(place), ResultStore(place)
  rows = [_prediction(questions, item, said[item.item_id], model) for item in questions.items]
  settled = store.settled()
  store.append([row for row in rows if row.key not in settled])
  settled |= {row.key: row.finish for row in rows}
  provenance = Provenance(
    benchmark=SCORES,
    split="val",
    layout="pool",
    path=folder,
    source=questions.spec.source,
    licence=questions.spec.licence,
  )
  asked = predict_lib.asked_benchmark(
    model, questions, settled, role=model.name, provenance=provenance
  )
  store.finish(asked)
  paired = results.pair(asked, questions, {row.key: row for row in rows})
  name = questions.prompt.metric
  scored = paired.score(results.find_metric(name, where="config.benchmark.scorer"), name)
  if scored.head.result not in {head.result for head in kept.heads()}:
    kept.append(scored)
  return scored


def _questions(ctx: Context, folder: pathlib.Path) -> Questions:
  """Returns the validation questions of an export as a benchmark.

  Raises:
    UserError: the folder is no export for big_vision.
  """
  header = export.read_header(folder)
  transfer = _transfer(header)
  if transfer is None:
    raise UserError(f"{folder}: not an export for big_vision, whose evaluator writes answers")
  prompt = PromptSpec(
    template=transfer.style.put("{question}"),
    metric=_metric(ctx, transfer),
    max_tokens=transfer.answer_len,
    source="big_vision",
  )
  spec = BenchmarkSpec(
    name=SCORES,
    title="validation questions of the export",
    layouts=(),
    prompts={Family.TRANSFER: prompt},
    split="val",
    source="the run's failures",
    licence=header["licence"] or "not stated",
  )
  items = [
    BenchmarkItem(
      item_id=row["id"],
      pictures=(),
      image_key=row["source_image_id"],
      question=row["question"],
      references=(row["label"],),
    )
    for row in export.read_meta(folder)
    if row["split"] == "val"
  ]
  return Questions(
    entry=SCORES,
    spec=spec,
    items=items,
    split="val",
    total=len(items),
    family=Family.TRANSFER,
    prompt=prompt,
    max_tokens=prompt.max_tokens,
  )


def _metric(ctx: Context, transfer: Transfer) -> MetricName:
  """Returns the transfer's metric, if one answer in words is enough for it; or else the run's.

  The consensus is one answer, of which VQA accuracy would want three.
  """
  prompt = exporting.prompt_of(transfer.name)
  if prompt is None or transfer.evaluator == "storepreds":
    return MetricName(name=ctx.settings.benchmark.scorer, variant="own")
  name = prompt.metric.name
  if name in ("vqa_accuracy", "okvqa_accuracy"):
    return MetricName(name="exact_match", variant="big_vision")
  return MetricName(name=name, variant="big_vision")


def read_answers(path: pathlib.Path) -> dict[str, str]:
  """Reads what an evaluator of big_vision wrote: {"id", "answer"} or {"id", "caption"} by row.

  Raises:
    UserError: it is something else.
  """
  if path.stat().st_size > _MAX_ANSWERS:
    raise UserError(f"{path}: more than {_MAX_ANSWERS >> 20} MB")
  try:
    rows = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: not JSON: {e}") from e
  found: dict[str, str] = {}
  for number, row in enumerate(rows if isinstance(rows, list) else [None]):
    said = row.get("answer", row.get("caption")) if isinstance(row, dict) else None
    row_id = row.get("id") if isinstance(row, dict) else None
    if not isinstance(said, str) or not isinstance(row_id, str):
      raise UserError(f"{path}: row {number} is not {{'id': text, 'answer': text}}")
    if row_id in found:
      raise UserError(f"{path}: {row_id!r:.80} is answered twice")
    found[row_id] = said
  return found


def _prediction(questions: Questions, item: BenchmarkItem, said: str, model: ModelId) -> Prediction:
  prompt = questions.prompt.render(item)
  text = said.encode("utf-8", "replace").decode()
  return Prediction(
    key=questions.key(model, item),
    benchmark=questions.spec.name,
    split=questions.split,
    item=item.item_id,
    image=item.image_key,
    role=model.name,
    model=model,
    family=questions.family,
    prompt=jsonio.canonical_hash(prompt)[:16],
    prediction=text[:MAX_PREDICTION],
    finish="eos",  # big_vision does not say which answers were cut.
    max_tokens=questions.max_tokens,
  )
