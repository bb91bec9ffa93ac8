# SPDX-License-Identifier: Apache-2.0
"""Scores of stored predictions: `results.jsonl`, append-only, one judged unit a row.

A result is the units of one benchmark, model, metric and variant, and after them its head. Its id
is a hash of what was asked, what was said and what is right, and of the metric. Scoring again adds
nothing, unless another result of the same model's role came in between; another variant adds rows
under another id, and rows whose head is missing are a run's that was killed.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any, overload

from auditdm_jax.bench import scorers
from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.predict import Questions, cluster_of
from auditdm_jax.bench.predictions import AskedBenchmark, Prediction
from auditdm_jax.bench.scorers import Item, Metric, Region, Scored, captions, masks, seg_vae
from auditdm_jax.bench.specs.base import MetricName
from auditdm_jax.core import jsonio, jsonl, paths, runtime, typed
from auditdm_jax.core.config import UserError, load_function

FILE = "results.jsonl"
_CIDER, _SUBSET = "cider", "cider_subset"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchResult:
  """The head of a result.

  Attributes:
    result: its id.
    asked: what was asked, and whom.
    metric: how it was scored.
    override: whether the config names the metric, instead of the prompt's own.
    primary: name of the value that counts.
    values: of the corpus by name.
    units: judged: items, or those that count together.
    predictions: behind the units.
    images: clusters of units that are resampled together.
    invalid: predictions that could not be read, which are wrong.
    unanswered: items left out since no reply came.
    unscorable: items left out since the data set gives no answer away.
  """

  result: str
  asked: AskedBenchmark
  metric: MetricName
  override: bool
  primary: str
  values: Mapping[str, float | None]
  units: int
  predictions: int
  images: int
  invalid: int
  unanswered: int
  unscorable: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRows:
  """A result with its units by key."""

  head: BenchResult
  units: Mapping[str, Scored]


def find_metric(name: MetricName, *, where: str, vae: str = "", part: bool = False) -> Metric:
  """Returns a metric.

  Args:
    name: of `scorers.METRICS`, or "module:FUNCTION" of a scorer (prediction, references) -> [0, 1].
    where: the key of the config, for errors.
    vae: file of the decoder of masks, for "mask_iou".
    part: whether items are a part of the split: CIDEr then gets another name.

  Raises:
    UserError: there is no such metric, or the file is missing.
  """
  if ":" in name.name:
    return scorers.per_answer(load_function(name.name, where=where))
  if name.name == "mask_iou":
    if not vae:
      raise UserError(
        f"{where}: mask_iou decodes masks with PaliGemma's VAE; name its file by config.vae, or"
        " score boxes by the benchmark refcoco-boxes"
      )
    return masks.referring_masks(seg_vae.load(pathlib.Path(vae)))
  if name.name == _CIDER and part:
    tokenizer = captions.words if name.variant == "vlmevalkit" else captions.ptb.tokens
    return captions.metric(label=_SUBSET, tokenizer=tokenizer)
  try:
    return scorers.metric(name.name, name.variant)
  except UserError as e:
    raise UserError(f"{where}: {e}") from e


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired:
  """What a model said, beside what is right.

  Attributes:
    asked: what was asked, and whom.
    items: those that can be scored, with predictions.
    digest: hash of the predictions and of what is right.
    unanswered: items left out since no reply came, and those that count together with them.
    unscorable: items left out since no answer is known.
  """

  asked: AskedBenchmark
  items: Sequence[Item]
  digest: str
  unanswered: int
  unscorable: int

  def result(self, name: MetricName) -> str:
    """Returns the id of the result under a metric."""
    a = self.asked
    return jsonio.canonical_hash([a.entry, a.role, *a.what, name, self.digest])

  def score(self, metric: Metric, name: MetricName, *, override: bool = False) -> ResultRows:
    """Scores the items.

    Args:
      metric: how.
      name: the metric's.
      override: whether the config names it.

    Raises:
      UserError: nothing can be scored.
    """
    if not self.items:
      raise UserError(
        f"{self.asked.entry}: none of {self.asked.items} items of {self.asked.split!r} can be"
        f" scored for {self.asked.role}: {self.unanswered} have no reply, of {self.unscorable} no"
        " answer is known"
      )
    rows = metric.score(self.items)
    values = metric.reduce(rows)
    head = BenchResult(
      result=self.result(name),
      asked=self.asked,
      metric=name,
      override=override,
      primary=next(iter(values)),
      values=values,
      units=len(rows),
      predictions=sum(row.n for row in rows),
      images=len({row.image for row in rows}),
      invalid=sum(row.invalid for row in rows),
      unanswered=self.unanswered,
      unscorable=self.unscorable,
    )
    return ResultRows(head=head, units={row.key: row for row in rows})


def pair(
  asked: AskedBenchmark, questions: Questions, predictions: Mapping[str, Prediction]
) -> Paired:
  """Returns what a model said beside what is right.

  Args:
    asked: what was asked.
    questions: the same items, read again.
    predictions: by key.

  Raises:
    UserError: a prediction is missing.
  """
  found: list[tuple[int, str, Prediction]] = []
  gone: set[str] = set()
  missing = unscorable = 0
  for i in range(len(questions.items)):
    item = questions.items[i]
    prediction = predictions.get(questions.key(asked.model, item))
    if prediction is None:
      missing += 1
    elif not is_scorable(item):
      unscorable += 1
    else:
      together = item.group or item.item_id
      found.append((i, together, prediction))
      if prediction.finish == "failed":
        gone.add(together)
  if missing:
    raise UserError(
      f"{asked.entry}: {missing} of {len(questions.items)} questions were not put to {asked.role}"
      " in these words; run predict again"
    )
  kept = [(i, p) for i, together, p in found if together not in gone]
  return Paired(
    asked=asked,
    items=_Pairs(questions, kept),
    digest=jsonio.canonical_hash(
      [[p.key, p.prediction, _right(questions.items[i])] for i, p in kept]
    ),
    unanswered=len(found) - len(kept),
    unscorable=unscorable,
  )


class _Pairs(Sequence[Item]):
  """Items with their predictions, made when they are looked at: masks are large."""

  def __init__(self, questions: Questions, kept: Sequence[tuple[int, Prediction]]):
    self._questions, self._kept = questions, kept

  def __len__(self) -> int:
    return len(self._kept)

  @overload
  def __getitem__(self, i: int) -> Item: ...

  @overload
  def __getitem__(self, i: slice) -> "_Pairs": ...

  def __getitem__(self, i: "int | slice") -> "Item | _Pairs":
    if isinstance(i, slice):
      return _Pairs(self._questions, self._kept[i])
    place, prediction = self._kept[i]
    return _item(self._questions, self._questions.items[place], prediction)


def _right(item: BenchmarkItem) -> list[Any]:
  """What decides how a prediction is scored, but for the outline of an object."""
  right = [item.references, item.options, item.answer, item.box]
  return [*right, item.question, item.group, item.category]


def is_scorable(item: BenchmarkItem) -> bool:
  """Returns whether the data set says what is right."""
  return bool(item.references) or item.answer is not None or item.box is not None


def _item(questions: Questions, item: BenchmarkItem, prediction: Prediction) -> Item:
  return Item(
    key=item.item_id,
    prediction=prediction.prediction,
    references=questions.prompt.references(item),
    options=item.options,
    image=cluster_of(questions.spec, item),
    group=item.group,
    category=item.category,
    region=_region(item),
  )


def _region(item: BenchmarkItem) -> Region | None:
  if item.box is None:
    return None
  if item.mask is None:
    return Region(box=item.box)
  mask = item.mask.pixels()
  return Region(box=item.box, height=mask.shape[0], width=mask.shape[1], mask=mask)


class ResultStore:
  """The results of a folder."""

  def __init__(self, folder: str | os.PathLike):
    """Takes the folder; nothing is read yet."""
    self._rows = jsonl.json_lines(paths.as_path(folder) / FILE)

  def append(self, rows: ResultRows) -> None:
    """Appends units and, after them, their head."""
    if runtime.is_main():
      result = rows.head.result
      units = [{"result": result, "unit": True, **_plain(row)} for row in rows.units.values()]
      self._rows.append([*units, jsonio.plain(rows.head)])

  def heads(self) -> list[BenchResult]:
    """Returns the heads, the latest last."""
    return [typed.load(BenchResult, row) for row in self._read() if "unit" not in row]

  def load(self, wanted: Sequence[str]) -> dict[str, ResultRows]:
    """Returns results by id, with their units."""
    units: dict[str, dict[str, Scored]] = {result: {} for result in wanted}
    heads: dict[str, BenchResult] = {}
    for row in self._read():
      result = row["result"]
      if result not in units:
        continue
      if "unit" in row:
        units[result][row["key"]] = typed.load(Scored, row)
      else:
        heads[result] = typed.load(BenchResult, row)
    return {r: ResultRows(head=heads[r], units=units[r]) for r in wanted}

  def _read(self) -> Iterable[dict[str, Any]]:
    runtime.barrier()
    for _, row in self._rows.iterate():
      yield row
    runtime.barrier()


def _plain(row: Scored) -> dict[str, Any]:
  """A unit in terms of JSON; what is empty is left out, as there are many."""
  return {k: v for k, v in jsonio.plain(row).items() if v or k in ("key", "score", "n")}
