# SPDX-License-Identifier: Apache-2.0
"""Results as the logs of lmms-eval and of Inspect, so that their viewers open them.

lmms-eval   <folder>/<model>/<date>_results.json and <date>_samples_<task>.jsonl
Inspect     <folder>/<date>_<task>_<role>.eval, written by the library inspect_ai

Sources: lmms-eval 0.7.3, loggers/evaluation_tracker.py; inspect_ai.log.write_eval_log.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import re
from types import ModuleType
from typing import Any

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.predict import Questions
from auditdm_jax.bench.predictions import Prediction
from auditdm_jax.bench.results import BenchResult, ResultRows
from auditdm_jax.bench.scorers import Scored
from auditdm_jax.core import jsonio, paths
from auditdm_jax.core.config import UserError

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 80
_FILTER = "none"  # lmms-eval's name where answers are scored as they are.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSample:
  """One question of a log.

  Attributes:
    place: of the item in its split.
    item: its id.
    prompt: what was asked.
    target: what is right.
    prediction: what was said.
    finish: how it ended.
    score: of the unit that the item is judged in; None if it was left out.
    image: key of its image.
    category: of the item.
  """

  place: int
  item: str
  prompt: str
  target: tuple[str, ...]
  prediction: str
  finish: str
  score: float | None
  image: str
  category: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchLog:
  """A result with its questions.

  Attributes:
    head: of the result.
    samples: in the order of the data; made when they are looked at.
  """

  head: BenchResult
  samples: Sequence[LogSample]


def log_of(
  rows: ResultRows, questions: Questions, predictions: Mapping[str, Prediction]
) -> BenchLog:
  """Returns a result with its questions.

  Args:
    rows: the result.
    questions: its items.
    predictions: by key.
  """
  return BenchLog(head=rows.head, samples=[*_samples(rows, questions, predictions)])


def _samples(
  rows: ResultRows, questions: Questions, predictions: Mapping[str, Prediction]
) -> Iterator[LogSample]:
  for i in range(len(questions.items)):
    item = questions.items[i]
    said = predictions.get(questions.key(rows.head.asked.model, item))
    if said is None:
      continue
    unit = _unit(rows.units, item)
    yield LogSample(
      place=i,
      item=item.item_id,
      prompt=questions.prompt.render(item),
      target=questions.prompt.references(item),
      prediction=said.prediction,
      finish=said.finish,
      score=None if unit is None else unit.score,
      image=item.image_key,
      category=item.category,
    )


def _unit(units: Mapping[str, Scored], item: BenchmarkItem) -> Scored | None:
  """Returns the unit that an item is judged in; its key is the item's or its group's."""
  names = (item.item_id, item.group, f"{item.category}/{item.group}")
  return next((units[name] for name in names if name in units), None)


def safe(name: str) -> str:
  """Returns a name that is one part of a path, distinct for distinct names."""
  plain = _UNSAFE.sub("-", name).strip("-.")[:_MAX_NAME]
  if plain == name and plain:
    return plain
  return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}".lstrip("-")


def write_lmms_eval(
  folder: str | os.PathLike, logs: Sequence[BenchLog], *, date: str
) -> list[pathlib.Path]:
  """Writes a folder per role, as lmms-eval writes one per model; returns the result files.

  Args:
    folder: above those of the models.
    logs: of any roles.
    date: YYYYMMDD_HHMMSS, which names the files.
  """
  by_role: dict[str, list[BenchLog]] = {}
  for log in logs:
    by_role.setdefault(log.head.asked.role, []).append(log)
  written = []
  for role, own in by_role.items():
    model = f"{role}__{own[0].head.asked.model.name}"
    root = paths.as_path(folder) / safe(model)
    for log in own:
      lines = [_line(_lmms_sample(log, sample)) for sample in log.samples]
      name = f"{date}_samples_{safe(log.head.asked.entry)}.jsonl"
      paths.write_bytes(root / name, "".join(lines).encode())
    path = root / f"{date}_results.json"
    jsonio.write_json(path, _lmms_results(own, model, date))
    written.append(path)
  return written


def _line(row: Mapping[str, Any]) -> str:
  return json.dumps(jsonio.plain(row)) + "\n"  # In ASCII: half a surrogate pair stays one.


def _lmms_sample(log: BenchLog, sample: LogSample) -> dict[str, Any]:
  text = f"{log.head.asked.entry}/{sample.item}"
  return {
    "doc_id": sample.place,
    "target": str(sample.target[0] if len(sample.target) == 1 else list(sample.target)),
    "filtered_resps": sample.prediction,
    "token_counts": [None],
    "doc_hash": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
    "input": sample.prompt,
    log.head.metric.name: sample.score,
    "item": sample.item,
    "image": sample.image,
    "category": sample.category,
    "finish": sample.finish,
  }


def _lmms_results(logs: Sequence[BenchLog], model: str, date: str) -> dict[str, Any]:
  heads = {safe(log.head.asked.entry): log.head for log in logs}
  first = logs[0].head.asked
  return {
    "results": {
      task: {"alias": task} | {f"{name},{_FILTER}": v for name, v in head.values.items()}
      for task, head in heads.items()
    },
    "configs": {
      task: {
        "task": task,
        "dataset_path": head.asked.source,
        "dataset_name": head.asked.benchmark,
        "test_split": head.asked.split,
        "doc_to_text": head.asked.prompt.template,
        "output_type": "generate_until",
        "generation_kwargs": {"max_new_tokens": head.asked.max_tokens, "temperature": 0.0},
        "num_fewshot": 0,
        "metadata": {"metric": head.metric, "family": head.asked.family},
        "score_key": head.metric.name,
      }
      for task, head in heads.items()
    },
    "versions": dict.fromkeys(heads, "0"),
    "n-shot": dict.fromkeys(heads, 0),
    "higher_is_better": {task: {head.primary: True} for task, head in heads.items()},
    "n-samples": {
      task: {"original": head.asked.total, "effective": head.asked.items}
      for task, head in heads.items()
    },
    "config": {"model": "auditdm_jax", "model_args": f"pretrained={first.model.name}"},
    "date": date,
    "model_source": "auditdm_jax",
    "model_name": model,
    "model_name_sanitized": safe(model),
    "task_hashes": {task: head.result for task, head in heads.items()},
  }


def write_inspect(
  folder: str | os.PathLike, logs: Sequence[BenchLog], *, created: str
) -> list[pathlib.Path]:
  """Writes an .eval file per log.

  Args:
    folder: of the files, on this machine.
    logs: of any roles.
    created: the time, as ISO 8601 has it.

  Raises:
    UserError: inspect_ai is not installed.
  """
  log_lib = _inspect("inspect_ai.log")
  root = pathlib.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  written = []
  for log in logs:
    asked = log.head.asked
    stamp = created.replace(":", "-")
    path = root / f"{stamp}_{safe(asked.entry)}_{safe(asked.role)}.eval"
    log_lib.write_eval_log(_eval_log(log_lib, log, created), str(path))
    written.append(path)
  return written


def _inspect(module: str) -> ModuleType:
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as e:
    raise UserError(
      f"config.logs names inspect, whose files are written by its library: no module {e.name!r};"
      " pip install inspect_ai, or leave inspect out"
    ) from e


def _eval_log(log_lib: ModuleType, log: BenchLog, created: str) -> Any:
  asked, head = log.head.asked, log.head
  scored = sum(sample.score is not None for sample in log.samples)
  values = {name: x for name, x in head.values.items() if x is not None}
  score = log_lib.EvalScore(
    name=head.metric.name,
    scorer=head.metric.name,
    scored_samples=scored,
    unscored_samples=len(log.samples) - scored,
    params={"variant": head.metric.variant},
    metrics={name: log_lib.EvalMetric(name=name, value=x) for name, x in values.items()},
  )
  return log_lib.EvalLog(
    status="success",
    eval=log_lib.EvalSpec(
      created=created,
      task=safe(asked.entry),
      task_id=head.result,
      run_id=head.result,
      eval_id=head.result,
      dataset=log_lib.EvalDataset(
        name=asked.benchmark, location=asked.path, samples=len(log.samples), shuffled=False
      ),
      model=f"auditdm_jax/{asked.model.name}",
      config=log_lib.EvalConfig(epochs=1),
      tags=[asked.role],
      metadata=jsonio.plain(
        {
          "role": asked.role,
          "identity": asked.model.identity,
          "part": asked.part,
          "split": asked.split,
        }
      ),
    ),
    results=log_lib.EvalResults(
      total_samples=len(log.samples), completed_samples=scored, scores=[score]
    ),
    samples=[_eval_sample(log_lib, log, sample) for sample in log.samples],
  )


def _eval_sample(log_lib: ModuleType, log: BenchLog, sample: LogSample) -> Any:
  model, scorer = _inspect("inspect_ai.model"), _inspect("inspect_ai.scorer")
  name = f"auditdm_jax/{log.head.asked.model.name}"
  stop = "max_tokens" if sample.finish == "length" else "stop"
  scores = {}
  if sample.score is not None:
    said = scorer.Score(value=sample.score, answer=sample.prediction)
    scores = {log.head.metric.name: said}
  return log_lib.EvalSample(
    id=sample.item,
    epoch=1,
    input=sample.prompt,
    target=list(sample.target),
    messages=[
      model.ChatMessageUser(content=sample.prompt),
      model.ChatMessageAssistant(content=sample.prediction, model=name),
    ],
    output=model.ModelOutput.from_content(name, sample.prediction, stop_reason=stop),
    scores=scores,
    metadata={"image": sample.image, "category": sample.category, "finish": sample.finish},
  )
