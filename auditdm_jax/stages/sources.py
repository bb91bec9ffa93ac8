# SPDX-License-Identifier: Apache-2.0
"""The sets of images that a repair takes besides the audit's: labelled and unlabelled ones."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from auditdm_jax.bench import specs
from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.specs import Family
from auditdm_jax.core import streams
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify.curate import LABELS, TrainingExample
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.pools import InMemoryPool
from auditdm_jax.stages.truth import ModeKey

_CANDIDATES = 8  # Questions that are read for each example that is taken.


def unlabelled(ctx: Context) -> InMemoryPool:
  """Opens the pool of `rectify.unlabelled`, whose answers nobody looks at."""
  section = ctx.settings.rectify.unlabelled
  return _opened(ctx, section.dataset, section.split)


def labelled_examples(ctx: Context, size: int) -> list[TrainingExample]:
  """Returns questions of `rectify.labelled` with their own labels, evenly over kinds of questions.

  Of several labels the most frequent one counts.

  Args:
    ctx: the run's config, seed and images.
    size: how many are wanted.

  Raises:
    UserError: there is no such set, or none of its questions has a label.
  """
  section, where = ctx.settings.rectify.labelled, "config.rectify.labelled"
  if section.benchmark:
    offered, opened = _of_benchmark(ctx, size)
  else:
    opened = _opened(ctx, section.dataset, section.split)
    offered = _of_pool(ctx, opened, size)
  if not offered:
    raise UserError(f"{where}: no question of {opened.split} has a label")
  config = dataclasses.replace(ctx.settings.rectify.curate, size=size)
  return curate_lib.curate(offered, config, seed=ctx.settings.seed)[0]


def _opened(ctx: Context, dataset: str, split: str) -> InMemoryPool:
  """Returns a split of the data set, by default of the run's; its images are found by id then."""
  return ctx.pool.other(dataset, split or ctx.settings.pool.images)


def _of_pool(ctx: Context, pool: InMemoryPool, size: int) -> list[TrainingExample]:
  places = [
    (i, question, answers)
    for i in range(len(pool))
    for question, answers in zip(pool.questions(i), pool.answers(i), strict=True)
    if answers
  ]
  key = ModeKey(ctx.seeds)
  return [
    _example(key, pool.image_id(i), question, answers, dataset=pool.split)
    for i, question, answers in (places[k] for k in _order(ctx, len(places))[: _CANDIDATES * size])
  ]


def _of_benchmark(ctx: Context, size: int) -> tuple[list[TrainingExample], InMemoryPool]:
  """Reads items as the benchmark puts them to a fine-tuned model."""
  section, where = ctx.settings.rectify.labelled, "config.rectify.labelled"
  spec = specs.find(section.benchmark, where=f"{where}.benchmark")
  if section.split == spec.split or not section.split:
    trained = [s for s in spec.splits if s != spec.split]
    raise UserError(
      f"{where}.split={section.split!r}: {spec.name} is measured on {spec.split}, which nothing is"
      f" trained on; its other splits are {', '.join(trained)}"
    )
  items = spec.open(pathlib.Path(section.dataset), section.split)
  prompt = spec.prompt(Family.TRANSFER)
  drawn = (items[k] for k in _order(ctx, len(items))[: _CANDIDATES * size])
  own = [item for item in drawn if len(item.pictures) == 1 and prompt.references(item)]
  pool = InMemoryPool(ItemPool(own, section.split), cache_bytes=ctx.settings.pool.cache_bytes)
  ctx.images.add_pool(pool)
  key, about = ModeKey(ctx.seeds), dict(dataset=spec.name, licence=spec.licence)
  examples = [
    _example(key, pool.image_id(i), prompt.render(x), prompt.references(x), item=x.item_id, **about)
    for i, x in enumerate(own)
  ]
  return [dataclasses.replace(e, is_prompt=True) for e in examples], pool


def _example(
  key: ModeKey, image_id: str, question: str, answers: Sequence[str], **about: str
) -> TrainingExample:
  label = Counter(answers).most_common(1)[0][0]
  return TrainingExample(
    image_id=image_id,
    question=question,
    label=label,
    group=key.of(question, label),
    source=LABELS,
    origin_id=image_id,
    provenance=about,
  )


def _order(ctx: Context, n: int) -> list[int]:
  return [int(i) for i in streams.rng(ctx.settings.seed, "labelled set").permutation(n)]


class ItemPool:
  """Items of a benchmark as a pool of images, one question each."""

  def __init__(self, items: Sequence[BenchmarkItem], split: str):
    """Takes the items, and the name of their split."""
    self.split, self._items = split, items

  def __len__(self) -> int:
    return len(self._items)

  def image(self, i: int) -> np.ndarray:
    return self._items[i].image()

  def image_id(self, i: int) -> str:
    return Images.id_of(self.image(i))

  def image_ids(self, rows: Sequence[int]) -> list[str]:
    return [self.image_id(i) for i in rows]

  def questions(self, i: int) -> tuple[str, ...]:
    return (self._items[i].question,)

  def answers(self, i: int) -> tuple[tuple[str, ...], ...]:
    return (self._items[i].references,)

  def question_ids(self, i: int) -> tuple[str, ...]:
    return (self._items[i].item_id,)
