# SPDX-License-Identifier: Apache-2.0
"""A benchmark of one's own: whatever `core.pool` opens."""

from collections.abc import Mapping
import dataclasses
import pathlib

import numpy as np

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.core import pool as pool_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled:
  """JSONL files, folders of images, tables and prepared data sets, as for auditing.

  Attributes:
    splits: our splits -> those of the data set.
  """

  splits: Mapping[str, str]

  kind = "pool"

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    return (f"images with {self.splits[split]}/questions.jsonl, a *.jsonl or a *.parquet",)

  def open(self, path: pathlib.Path, split: str) -> "PooledItems":
    """Opens a split; see `layouts.open.open_items`."""
    cache = pool_lib.cache_folder()
    return PooledItems(pool_lib.open_pool(path, self.splits[split], cache=cache))


class PooledItems:
  """The answered questions of a pool."""

  def __init__(self, pool: pool_lib.ImagePool):
    self._pool = pool
    self._places = [
      (i, j) for i in range(len(pool)) for j, said in enumerate(pool.answers(i)) if said
    ]
    images = sorted({i for i, _ in self._places})
    self._ids = dict(zip(images, pool.image_ids(images), strict=True))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, k: int) -> BenchmarkItem:
    i, j = self._places[k]
    return BenchmarkItem(
      item_id=self._pool.question_ids(i)[j],
      pictures=(_PoolPicture(self._pool, i),),
      image_key=self._ids[i],
      question=self._pool.questions(i)[j],
      references=self._pool.answers(i)[j],
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _PoolPicture:
  pool: pool_lib.ImagePool
  place: int

  @property
  def name(self) -> str:
    return f"image {self.place} of {self.pool.split}"

  def stored(self) -> np.ndarray:
    return self.pool.image(self.place)
