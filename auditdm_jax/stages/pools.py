# SPDX-License-Identifier: Apache-2.0
"""The images of a run: splits of its data set, opened and read once, and the images it makes."""

from collections import OrderedDict
from collections.abc import Sequence
import fcntl
import functools
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np

from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.stages.sections import PoolConfig


class InMemoryPool:
  """A pool whose rows are read once, as far as they fit.

  The ids of the images are known from the start: with several processes, each makes those of its
  share.
  """

  def __init__(self, pool: pool_lib.ImagePool, *, cache_bytes: int):
    self.split, self._pool = pool.split, pool
    self._images: dict[int, np.ndarray] = {}
    self._room = cache_bytes
    shares = runtime.gather(pool.image_ids(runtime.mine(range(len(pool)))))
    self._ids = [shares[i % len(shares)][i // len(shares)] for i in range(len(pool))]
    self._asked = functools.cache(lambda i: (pool.questions(i), pool.answers(i)))

  def __len__(self) -> int:
    return len(self._ids)

  def image(self, i: int) -> np.ndarray:
    if i not in self._images:
      image = self._pool.image(i)
      if image.nbytes > self._room:
        return image
      self._room -= image.nbytes
      self._images[i] = image
    return self._images[i]

  def image_id(self, i: int) -> str:
    return self._ids[i]

  def image_ids(self, rows: Sequence[int]) -> list[str]:
    return [self._ids[i] for i in rows]

  def questions(self, i: int) -> tuple[str, ...]:
    return self._asked(i)[0]

  def answers(self, i: int) -> tuple[tuple[str, ...], ...]:
    return self._asked(i)[1]

  def question_ids(self, i: int) -> tuple[str, ...]:
    return self._pool.question_ids(i)

  def asked(self) -> list[tuple[int, str]]:
    """Returns (image number, question) for every question of the data set, in order."""
    return [(i, q) for i in range(len(self)) for q in self.questions(i)]


class ImageSource:
  """image_id -> u8[H,W,3] from the pools, else from the store of made images.

  Attributes:
    made: the store.
  """

  def __init__(self, made: Images, *, cache_bytes: int):
    """Takes the store, and how much of made images is kept in memory: the latest ones."""
    self.made = made
    self._latest: OrderedDict[str, np.ndarray] = OrderedDict()
    self._room, self._lock = cache_bytes, threading.Lock()
    self._rows: dict[str, tuple[InMemoryPool, int]] = {}

  def add_pool(self, pool: InMemoryPool) -> None:
    self._rows |= {pool.image_id(i): (pool, i) for i in range(len(pool))}

  def put(self, image: np.ndarray) -> str:
    """Stores a made image and returns its id."""
    image_id = self.made.put(image)
    self._keep(image_id, image)
    return image_id

  def __call__(self, image_id: str) -> np.ndarray:
    if image_id in self._rows:
      pool, i = self._rows[image_id]
      return pool.image(i)
    with self._lock:
      image = self._latest.get(image_id)
    if image is None:
      try:
        image = self.made.get(image_id)
      except KeyError as e:
        raise UserError(f"{self.made.path(image_id)}: an image that records name is missing") from e
    self._keep(image_id, image)
    return image

  def _keep(self, image_id: str, image: np.ndarray) -> None:
    """Keeps an image, and of earlier ones what still fits; the last one whatever its size."""
    with self._lock:
      if image_id not in self._latest:
        self._latest[image_id] = image
        self._room -= image.nbytes
      self._latest.move_to_end(image_id)
      while self._room < 0 and len(self._latest) > 1:
        self._room += self._latest.popitem(last=False)[1].nbytes


class Pools:
  """The splits of a run's data set by role (images, heldout, fresh), opened when asked for."""

  def __init__(self, config: PoolConfig, source: ImageSource, *, local: pathlib.Path):
    """Takes where images are found by id, and a folder of this machine for prepared data."""
    self._config, self._source, self._local = config, source, local
    self._open: dict[tuple[str, str], InMemoryPool] = {}

  def __call__(self, role: str) -> InMemoryPool:
    """Returns the split that config.pool.<role> names.

    Raises:
      NoSplit: it names none, or one that the data set does not have.
    """
    split = getattr(self._config, role)
    if not split:
      raise pool_lib.NoSplit(
        f"config.pool.{role} is empty: it must name a split of {self._config.dataset}"
      )
    return self.other("", split)

  def other(self, dataset: str, split: str) -> InMemoryPool:
    """Returns a split of another data set, or with "" of the run's own."""
    if (dataset, split) not in self._open:
      opened = pool_lib.open_pool(
        pathlib.Path(dataset) if dataset else self._dataset(),
        split,
        questions=(self._config.questions or None) if not dataset else None,
        shares=self._config.split_shares(),
        cache=pool_lib.cache_folder(),
      )
      pool = InMemoryPool(opened, cache_bytes=self._config.cache_bytes)
      self._source.add_pool(pool)
      self._open[dataset, split] = pool
    return self._open[dataset, split]

  def _dataset(self) -> pathlib.Path:
    config = self._config
    data_dir = pathlib.Path(config.data_dir) if config.data_dir else self._local / "data"
    directory = data_dir / config.dataset
    if config.builder:
      data_dir.mkdir(parents=True, exist_ok=True)
      with open(data_dir / ".lock", "w") as lock:  # One process of this machine prepares it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "dataset_info.json").is_file():
          self._prepare(data_dir)
    return directory

  def _prepare(self, data_dir: pathlib.Path) -> None:
    print(f"preparing {self._config.dataset} in {data_dir}", flush=True)
    env = dict(
      os.environ, PYTHONPATH=os.pathsep.join(p or "." for p in sys.path), JAX_PLATFORMS="cpu"
    )
    command = [sys.executable, self._config.builder, f"--data_dir={data_dir}"]
    name = pathlib.PurePath(self._config.dataset).parts
    if len(name) == 3 and name[1] != "default":
      command.append(f"--config={name[1]}")
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    if done.returncode:
      raise UserError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
