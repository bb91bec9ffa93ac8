# SPDX-License-Identifier: Apache-2.0
"""A small benchmark in memory and models that answer it from a table."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

import numpy as np

from auditdm_jax.bench import predict
from auditdm_jax.bench.items import BenchmarkItem, Provenance
from auditdm_jax.bench.predict import BenchReply, Questions
from auditdm_jax.bench.predictions import ModelId
from auditdm_jax.bench.results import find_metric, pair
from auditdm_jax.bench.specs import BenchmarkSpec, Family, MetricName, PromptSpec

EXACT = MetricName(name="exact_match", variant="ours")


@dataclasses.dataclass(frozen=True)
class MemoryPicture:
  """A picture in memory that counts how often it is looked at."""

  key: int
  looks: list = dataclasses.field(default_factory=list, compare=False)

  @property
  def name(self) -> str:
    return f"picture {self.key}"

  def stored(self) -> np.ndarray:
    self.looks.append(self.key)
    return np.full((8, 8, 3), self.key, np.uint8)


def items(n: int, *, images: int = 0, group: int = 0) -> list[BenchmarkItem]:
  """Returns n questions over some images, interleaved; `group` of them count together."""
  pictures = [MemoryPicture(i) for i in range(images or n)]
  return [
    BenchmarkItem(
      item_id=f"q{i}",
      pictures=(pictures[i % len(pictures)],),
      image_key=f"im{i % len(pictures)}",
      question=f"question {i}?",
      references=("yes",),
      group=f"g{i // group}" if group else "",
      category=("odd", "even")[i % 2],
    )
    for i in range(n)
  ]


def questions(
  asked: Sequence[BenchmarkItem],
  *,
  metric: MetricName = EXACT,
  entry: str = "mine",
  template: str = "Q: {question}",
  cluster: str = "image_key",
  **changes,
) -> Questions:
  prompt = PromptSpec(template=template, metric=metric, max_tokens=5, source="ours")
  spec = BenchmarkSpec(
    name=entry,
    title=entry.title(),
    layouts=(),
    prompts={Family.LMMS_EVAL: prompt},
    split="test",
    source="nowhere",
    licence="none",
    cluster=cluster,
  )
  made = Questions(
    entry=entry,
    spec=spec,
    items=asked,
    split="test",
    total=len(asked),
    family=Family.LMMS_EVAL,
    prompt=prompt,
    max_tokens=5,
  )
  return dataclasses.replace(made, **changes)


class Said:
  """A model that says what a function says of a prompt; it may die after some questions."""

  def __init__(
    self,
    says: Callable[[str], str | BenchReply],
    *,
    identity: str = "m",
    dies_after: int | None = None,
    pictures: int = 100,
  ):
    self.model = ModelId(name=f"model {identity}", identity=identity)
    self.says, self.dies_after, self.pictures = says, dies_after, pictures
    self.prompts: list[str] = []
    self.chunks: list[list[str]] = []

  def reply(self, asked, *, max_tokens):
    assert max_tokens == 5
    if self.dies_after is not None and len(self.prompts) >= self.dies_after:
      raise RuntimeError("power cut")
    self.prompts += [a.prompt for a in asked]
    self.chunks.append([a.image for a in asked])
    found = [self.says(a.prompt) for a in asked]
    return [x if isinstance(x, BenchReply) else BenchReply(x, "eos") for x in found]


def ask(model: Said, asked: Questions, store, *, role: str = "baseline", **options):
  """Asks what is missing and marks the benchmark as asked."""
  settled = store.settled()
  todo = predict.missing(model.model, asked, settled)
  settled |= predict.predict(model, asked, todo, store, role=role, **options)
  origin = Provenance(
    benchmark=asked.spec.name,
    split="test",
    layout="pool",
    path=pathlib.Path(asked.entry.split("-")[0]),  # "x-a" and "x-b" are parts of one data set.
    source="nowhere",
    licence="none",
  )
  done = predict.asked_benchmark(model.model, asked, settled, role=role, provenance=origin)
  store.finish(done)
  return done


def scored(model: Said, asked: Questions, store, *, role: str = "baseline", **options):
  """Asks and scores; returns the result."""
  done = ask(model, asked, store, role=role, **options)
  keys = {asked.key(model.model, asked.items[i]) for i in range(len(asked.items))}
  name = asked.prompt.metric
  return pair(done, asked, store.find(keys)).score(find_metric(name, where="test"), name)
