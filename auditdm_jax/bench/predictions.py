# SPDX-License-Identifier: Apache-2.0
"""What models said: `predictions-P.jsonl`, append-only, one question of one model a row.

A prediction's key says the model's weights, the question, its image, its prompt and its limit. What
is there under the key is never asked again, whichever command, role or config asks.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any, Literal

from auditdm_jax.bench.specs.base import Family, PromptSpec
from auditdm_jax.core import jsonio, paths, records, runtime, typed

# "refused" is an answer, which is wrong; of "failed" nobody knows what the model would have said.
Finish = Literal["eos", "length", "refused", "failed"]

MAX_PREDICTION = 1 << 16  # Characters that are kept.
_ROWS, _ASKED = "predictions", "predictions.json"
_MAX_ROW = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelId:
  """A model as records name it.

  Attributes:
    name: of its folder, or of the endpoint.
    identity: hash of its weights and of what decides how they are used; of an endpoint, of its
      address, model and revision.
  """

  name: str
  identity: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """What a model said to one question.

  Attributes:
    key: see `predict.Questions.key`.
    benchmark: name of the spec.
    split: of the spec.
    item: the question's id.
    image: key of its image.
    role: in which the model was asked first.
    model: who said it.
    family: whose prompt it is.
    prompt: hash of the prompt's text.
    prediction: what was said; "" if nothing came.
    finish: how it ended.
    max_tokens: the limit.
    detail: why nothing came.
  """

  key: str
  benchmark: str
  split: str
  item: str
  image: str
  role: str
  model: ModelId
  family: Family
  prompt: str
  prediction: str
  finish: Finish
  max_tokens: int
  detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedBenchmark:
  """A benchmark that a model was asked to its end.

  Attributes:
    entry: the key of the config.
    benchmark: name of the spec.
    split: of the spec.
    role: the model's role.
    model: who was asked.
    family: whose prompt.
    prompt: the prompt, and how it was decoded and scored by default.
    max_tokens: the limit.
    limit: most items; 0 = all.
    seed: which part of the split the limit leaves.
    items: asked.
    total: in the split.
    failed: to which no reply came.
    cut: replies that reached the limit.
    layout: how the data lay there.
    path: where.
    source: where the data set is published.
    licence: under what.
  """

  entry: str
  benchmark: str
  split: str
  role: str
  model: ModelId
  family: Family
  prompt: PromptSpec
  max_tokens: int
  limit: int
  seed: int
  items: int
  total: int
  failed: int
  cut: int
  layout: str
  path: str
  source: str
  licence: str

  @property
  def what(self) -> tuple[ModelId, PromptSpec, str, int, int, int]:
    """Who was asked which questions, whatever came of it."""
    return self.model, self.prompt, self.split, self.max_tokens, self.limit, self.seed

  @property
  def part(self) -> str:
    """Says which part where a limit was used: 512 of 10,240, drawn by image; else ""."""
    if self.items == self.total:
      return ""
    return f"{self.items:,} of {self.total:,}, drawn by image"


class PredictionStore:
  """The predictions of a folder; each process writes a shard of its own and all read all."""

  def __init__(self, folder: str | os.PathLike):
    """Opens the folder, which is made if it is not there."""
    self._folder = paths.as_path(folder)
    self._records = records.Records(
      folder, runtime.index(), processes=runtime.count(), max_row_bytes=_MAX_ROW
    )

  def append(self, predictions: Sequence[Prediction]) -> None:
    """Appends this process's share of what all processes have; on disk when it returns."""
    self._records.append(_ROWS, [jsonio.plain(p) for p in runtime.mine(predictions)])

  def settled(self) -> dict[str, Finish]:
    """Returns how each prediction ended, by key; of one asked again the better end counts."""
    found: dict[str, Finish] = {}
    for row in self._read():
      if found.get(row["key"], "failed") == "failed":
        found[row["key"]] = row["finish"]
    return found

  def find(self, keys: Collection[str]) -> dict[str, Prediction]:
    """Returns the predictions of these keys; one that failed only where there is no other."""
    found: dict[str, Prediction] = {}
    for row in self._read():
      key = row["key"]
      if key in keys and (key not in found or found[key].finish == "failed"):
        found[key] = typed.load(Prediction, row)
    return found

  def asked(self) -> list[AskedBenchmark]:
    """Returns the benchmarks that models were asked to the end, in order."""
    path = self._folder / _ASKED
    runtime.barrier()
    rows = jsonio.read_json(path) if path.exists() else []
    runtime.barrier()
    return [typed.load(AskedBenchmark, row) for row in rows]

  def finish(self, done: AskedBenchmark) -> None:
    """Writes down that a model was asked a benchmark; an earlier entry of both is replaced."""
    known = [x for x in self.asked() if (x.entry, x.role) != (done.entry, done.role)]
    if runtime.is_main():
      jsonio.write_json(self._folder / _ASKED, [*known, done])

  def _read(self) -> Iterable[Mapping[str, Any]]:
    runtime.barrier()
    yield from self._records.iterate(_ROWS)
    runtime.barrier()
