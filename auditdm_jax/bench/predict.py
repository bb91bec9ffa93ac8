# SPDX-License-Identifier: Apache-2.0
"""Asks a model the questions of a benchmark that it was not asked before.

  1. The items are read once, without their pictures; what has a prediction is left out.
  2. The rest is put in order of images, so that each is decoded and encoded once.
  3. A chunk of questions is asked and appended, and with it the next one begins: a killed run loses
     one chunk, and memory holds one.

A model is asked the prompt as the benchmark words it, with nothing added.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from auditdm_jax.bench.items import BenchmarkItem, Provenance, StoredPicture
from auditdm_jax.bench.predictions import (
  MAX_PREDICTION,
  AskedBenchmark,
  Finish,
  ModelId,
  Prediction,
  PredictionStore,
)
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PromptSpec
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
  """A question as a model gets it.

  Attributes:
    image: the item's key of its image.
    pictures: where its pictures are.
    images: what tells them apart: equal names are equal pictures.
    prompt: the text.
  """

  image: str
  pictures: tuple[StoredPicture, ...]
  images: tuple[str, ...]
  prompt: str


@dataclasses.dataclass(frozen=True)
class BenchReply:
  """A model's reply.

  Attributes:
    text: what it said; "" if nothing came.
    finish: how it ended.
    detail: why nothing came, one line.
  """

  text: str
  finish: Finish
  detail: str = ""


class Respondent(Protocol):
  """A model that is asked."""

  @property
  def model(self) -> ModelId: ...

  @property
  def pictures(self) -> int:
    """How many pictures a chunk may have."""
    ...

  def reply(self, asked: Sequence[Asking], *, max_tokens: int) -> Sequence[BenchReply]:
    """Replies to each; with several processes all get the same questions and the same replies."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """A benchmark as a config names it.

  Attributes:
    entry: the key of the config.
    spec: what it is.
    items: of the split, or of the part of it that is asked.
    total: items in the split.
    family: whose prompt.
    prompt: the prompt.
    max_tokens: the limit of an answer.
    limit: most items; 0 = all.
    seed: which part that leaves.
  """

  entry: str
  spec: BenchmarkSpec
  items: Sequence[BenchmarkItem]
  split: str
  total: int
  family: Family
  prompt: PromptSpec
  max_tokens: int
  limit: int = 0
  seed: int = 0

  def key(self, model: ModelId, item: BenchmarkItem) -> str:
    """Returns what tells a prediction apart: whose it is, of which question, image and prompt."""
    asked = [self.spec.name, self.split, item.item_id, item.image_key, self.prompt.render(item)]
    return jsonio.canonical_hash([model.identity, *asked, self.max_tokens, self.prompt.antialias])


def part(
  items: Sequence[BenchmarkItem], limit: int, *, spec: BenchmarkSpec, seed: int
) -> list[int]:
  """Returns the places of at most `limit` items, whole clusters of them; all for 0.

  Clusters are drawn by the hash of their name, so that a larger part contains a smaller one. Items
  that count together are in or out together. One cluster is there whatever its size.
  """
  if not limit or limit >= len(items):
    return list(range(len(items)))
  clusters: dict[str, list[int]] = {}
  for i in range(len(items)):
    clusters.setdefault(cluster_of(spec, items[i]), []).append(i)
  order = sorted(clusters, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
  chosen: list[int] = []
  for name in order:
    if not chosen or len(chosen) + len(clusters[name]) <= limit:
      chosen += clusters[name]
    if len(chosen) >= limit:
      break
  return sorted(chosen)


def cluster_of(spec: BenchmarkSpec, item: BenchmarkItem) -> str:
  """Returns what an item is resampled with: its image, or the items that it counts with."""
  return (item.group or item.item_id) if spec.cluster == "group" else item.image_key


@dataclasses.dataclass(frozen=True)
class Missing:
  """What a model was not asked, or did not reply to.

  Attributes:
    places: of the items, in order of images.
    failed: keys of those that were asked in vain.
  """

  places: tuple[int, ...]
  failed: frozenset[str]


def missing(model: ModelId, questions: Questions, settled: Mapping[str, Finish]) -> Missing:
  """Returns what is to be asked.

  Args:
    model: whom.
    questions: of what.
    settled: see `PredictionStore.settled`.

  Raises:
    UserError: two items have one id.
  """
  first: dict[str, int] = {}
  seen: set[str] = set()
  places: list[tuple[int, int]] = []
  failed: set[str] = set()
  for i in range(len(questions.items)):
    item = questions.items[i]
    if item.item_id in seen:
      raise UserError(f"{questions.entry}: two items have the id {item.item_id[:80]!r}")
    seen.add(item.item_id)
    key = questions.key(model, item)
    if settled.get(key, "failed") == "failed":
      places.append((first.setdefault(item.image_key, len(first)), i))
      if key in settled:
        failed.add(key)
  return Missing(tuple(i for _, i in sorted(places)), frozenset(failed))


def predict(
  respondent: Respondent,
  questions: Questions,
  todo: Missing,
  store: PredictionStore,
  *,
  role: str = "",
  batch_size: int = 512,
  on_batch: Callable[[int], None] | None = None,
) -> dict[str, Finish]:
  """Asks what is missing.

  Args:
    respondent: the model.
    questions: what to ask.
    todo: what of it is missing.
    store: where predictions are kept.
    role: the model's role.
    batch_size: most questions of a chunk.
    on_batch: told how many of them are settled so far.

  Returns:
    How each question ended that was asked, by key.

  Raises:
    UserError: a picture cannot be read.
  """
  ends: dict[str, Finish] = {}
  for places in _chunks(questions, todo.places, batch_size, respondent.pictures):
    items = [questions.items[i] for i in places]
    asked = [_asking(questions.prompt, item) for item in items]
    replies = respondent.reply(asked, max_tokens=questions.max_tokens)
    if len(replies) != len(items):
      raise ValueError(f"{respondent.model.name}: {len(replies)} replies to {len(items)} questions")
    rows = [
      _row(respondent.model, questions, item, reply, asking.prompt, role)
      for item, reply, asking in zip(items, replies, asked, strict=True)
    ]
    # What fails again is known to have failed.
    store.append([r for r in rows if r.finish != "failed" or r.key not in todo.failed])
    ends |= {row.key: row.finish for row in rows}
    if on_batch is not None:
      on_batch(len(ends))
  return ends


def asked_benchmark(
  model: ModelId,
  questions: Questions,
  settled: Mapping[str, Finish],
  *,
  role: str,
  provenance: Provenance,
) -> AskedBenchmark:
  """Returns what a model was asked, once it was asked everything."""
  ends = [settled[questions.key(model, item)] for item in questions.items]
  return AskedBenchmark(
    entry=questions.entry,
    benchmark=questions.spec.name,
    split=questions.split,
    role=role,
    model=model,
    family=questions.family,
    prompt=questions.prompt,
    max_tokens=questions.max_tokens,
    limit=questions.limit,
    seed=questions.seed,
    items=len(questions.items),
    total=questions.total,
    failed=ends.count("failed"),
    cut=ends.count("length"),
    layout=provenance.layout,
    path=str(provenance.path),
    source=provenance.source,
    licence=provenance.licence,
  )


def _chunks(
  questions: Questions, places: Sequence[int], batch_size: int, pictures: int
) -> Iterator[list[int]]:
  """Cuts places, in order, into chunks of so many questions and pictures."""
  chunk: list[int] = []
  held, image = 0, None
  for i in places:
    item = questions.items[i]
    more = 0 if item.image_key == image else len(item.pictures)
    if chunk and (len(chunk) >= batch_size or held + more > pictures):
      yield chunk
      chunk, held, more = [], 0, len(item.pictures)
    chunk.append(i)
    held, image = held + more, item.image_key
  if chunk:
    yield chunk


def _asking(prompt: PromptSpec, item: BenchmarkItem) -> Asking:
  names = tuple(map(_name_of, item.pictures))
  return Asking(
    image=item.image_key, pictures=item.pictures, images=names, prompt=prompt.render(item)
  )


def _name_of(picture: StoredPicture) -> str:
  """Returns what tells a picture apart: the path of its file, or the hash of what is stored."""
  stored = picture.stored()
  if isinstance(stored, np.ndarray):
    return Images.id_of(stored)
  return hashlib.sha256(stored).hexdigest() if isinstance(stored, bytes) else f"file {stored}"


def _row(
  model: ModelId,
  questions: Questions,
  item: BenchmarkItem,
  reply: BenchReply,
  prompt: str,
  role: str,
) -> Prediction:
  text = reply.text.encode("utf-8", "replace").decode()  # No file takes half a surrogate pair.
  return Prediction(
    key=questions.key(model, item),
    benchmark=questions.spec.name,
    split=questions.split,
    item=item.item_id,
    image=item.image_key,
    role=role,
    model=model,
    family=questions.family,
    prompt=hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:16],
    prediction=text[:MAX_PREDICTION],
    finish=reply.finish,
    max_tokens=questions.max_tokens,
    detail=reply.detail,
  )
