# SPDX-License-Identifier: Apache-2.0
"""The protocol of an image source, and what all sources share: decoding and image ids."""

import abc
from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
import functools
import itertools
import os
from typing import Protocol

import numpy as np

from auditdm_jax.core import metrics, pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.pools.remembered import Remembered

_THREADS = min(16, os.cpu_count() or 1)
_AT_ONCE = 4 * _THREADS  # Encoded pictures in memory while ids are made.
_SOON_S = 2.0  # Reading that takes less shows no progress.
_SHOWN = 3  # Damaged pictures that an error names; the others are counted.

# A picture as it is stored: path or bytes of its file, or pixels u8[H,W,3].
Stored = str | os.PathLike | bytes | np.ndarray


class ImagePool(Protocol):
  """A source of images, asked about its i-th image."""

  split: str

  def __len__(self) -> int: ...

  def image(self, i: int) -> np.ndarray:
    """Returns u8[H,W,3]."""
    ...

  def image_id(self, i: int) -> str:
    """Returns the hash of the pixels; equal pixels have equal ids, whatever their source."""
    ...

  def image_ids(self, rows: Sequence[int]) -> list[str]:
    """Returns the ids of several images, in order."""
    ...

  def questions(self, i: int) -> tuple[str, ...]: ...

  def answers(self, i: int) -> tuple[tuple[str, ...], ...]:
    """Returns the accepted answers per question; () where the source has none."""
    ...

  def question_ids(self, i: int) -> tuple[str, ...]:
    """Returns an id per question: the source's own, or the split and the place."""
    ...


class Pool(abc.ABC):
  """The pictures of a split, decoded one at a time: memory does not grow with their number.

  Args:
    split: its name.
    ids: the image ids that are known, by version of the stored picture.
  """

  def __init__(self, split: str, ids: Remembered):
    self.split = split
    self._ids = ids
    self._decoded = functools.lru_cache(maxsize=2)(self._decode)

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def questions(self, i: int) -> tuple[str, ...]: ...

  @abc.abstractmethod
  def answers(self, i: int) -> tuple[tuple[str, ...], ...]: ...

  def question_ids(self, i: int) -> tuple[str, ...]:
    return tuple(f"{self.split}/{i}/{j}" for j in range(len(self.questions(i))))

  @abc.abstractmethod
  def _stored(self, i: int) -> Stored:
    """Returns the picture, undecoded."""

  @abc.abstractmethod
  def _name(self, i: int) -> str:
    """Returns its name in errors: file and row."""

  @abc.abstractmethod
  def _version(self, i: int) -> str:
    """Returns a tag that changes when the stored picture does; "" if it has none."""

  def image(self, i: int) -> np.ndarray:
    """Returns u8[H,W,3], read-only.

    Raises:
      UserError: the picture cannot be read.
    """
    self._check(i)
    return self._decoded(i)

  def image_id(self, i: int) -> str:
    """Returns the hash of the pixels; see `image_ids`."""
    return self.image_ids([i])[0]

  def image_ids(self, rows: Sequence[int]) -> list[str]:
    """Returns the hashes of the pixels of these images. Only unknown ones are decoded.

    Raises:
      UserError: some pictures cannot be read; the first is named.
    """
    for i in rows:
      self._check(i)
    versions = [self._version(i) for i in rows]
    unknown = [k for k, version in enumerate(versions) if version not in self._ids]
    found: dict[int, str] = {}
    faults: list[str] = []
    with (
      concurrent.futures.ThreadPoolExecutor(_THREADS) as threads,
      metrics.Progress(len(unknown), f"read images of {self.split}", after_s=_SOON_S) as progress,
    ):
      for chunk in _chunks(unknown, _AT_ONCE):
        # Read in order by one thread, decoded and hashed by several.
        jobs = [(self._name(rows[k]), _caught(self._stored, rows[k])) for k in chunk]
        made = list(threads.map(_hash, jobs))
        faults += [str(x) for x in made if isinstance(x, UserError)]
        new = {k: x for k, x in zip(chunk, made) if isinstance(x, str)}
        self._ids.put({versions[k]: image_id for k, image_id in new.items()})
        found |= new
        progress.update(len(found) + len(faults))
    if faults:
      more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
      raise UserError("; ".join(faults[:_SHOWN]) + more)
    return [found[k] if k in found else self._ids[v] for k, v in enumerate(versions)]

  def _decode(self, i: int) -> np.ndarray:
    return _pixels(self._stored(i), self._name(i))

  def _check(self, i: int) -> None:
    if not 0 <= i < len(self):
      raise IndexError(f"{self.split}: no image {i} among {len(self)}")


def _pixels(stored: Stored, name: str) -> np.ndarray:
  return stored if isinstance(stored, np.ndarray) else pictures.read(stored, name=name)


def _caught(read: Callable[[int], Stored], i: int) -> Stored | UserError:
  try:
    return read(i)
  except UserError as e:
    return e


def _hash(job: tuple[str, Stored | UserError]) -> str | UserError:
  """Returns the id of a picture, or why there is none."""
  name, stored = job
  if isinstance(stored, UserError):
    return stored
  try:
    return Images.id_of(_pixels(stored, name))
  except UserError as e:
    return e


def _chunks(items: Iterable[int], size: int) -> Iterable[list[int]]:
  rest = iter(items)
  return iter(lambda: list(itertools.islice(rest, size)), [])
