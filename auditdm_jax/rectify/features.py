# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen tower, computed once and kept in a file as float16.

The file is read by position and not mapped: the pages of a map count as memory of the process. Rows
are appended in order, so that a run that was killed goes on after the last whole one.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import dataclasses
import math
import os
import pathlib
import shutil

import numpy as np

from auditdm_jax.core.config import UserError
from auditdm_jax.models import preprocess


@dataclasses.dataclass(frozen=True)
class Eye:
  """How a model looks at pictures.

  Attributes:
    pixels: how they become its input.
    encode: pictures u8[size,size,3] to features f[n,P,Dv] of its tower, where that is frozen.
    identity: what tells towers apart, see `Vlm.tower_id`.
  """

  pixels: preprocess.Pixels
  encode: Callable[[Sequence[np.ndarray]], np.ndarray]
  identity: str


class FeatureFile:
  """Rows f16[P,Dv].

  Attributes:
    path: the file.
    row_bytes: of a row.
  """

  def __init__(self, path: str | os.PathLike, shape: tuple[int, int]):
    """Opens a file, or makes an empty one; a torn row at its end is cut off."""
    self.path, self._shape = pathlib.Path(path), shape
    self.row_bytes = row_bytes(shape)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self.path, "a+b", buffering=0)
    self.cut(len(self))

  def __len__(self) -> int:
    return self.path.stat().st_size // self.row_bytes

  def cut(self, rows: int) -> None:
    """Keeps the first rows only."""
    self._file.truncate(rows * self.row_bytes)

  def append(self, features: np.ndarray) -> None:
    """Appends f[n,P,Dv].

    Raises:
      UserError: the disk is full.
    """
    if features.shape[1:] != self._shape:
      raise ValueError(f"features {features.shape}, but rows are {self._shape}")
    data = memoryview(np.asarray(features, np.float16).tobytes())
    try:
      while data:
        data = data[self._file.write(data) :]
    except OSError as e:
      raise UserError(f"{self.path} cannot be written: {e.strerror}") from e

  def read(self, row: int) -> np.ndarray:
    """Returns f16[P,Dv].

    Raises:
      UserError: the file ends before this row.
    """
    data = os.pread(self._file.fileno(), self.row_bytes, row * self.row_bytes)
    if len(data) != self.row_bytes:
      raise UserError(f"{self.path}: no row {row}; the file was changed while it was read")
    return np.frombuffer(data, np.float16).reshape(self._shape)

  def fill(
    self,
    chunks: Iterable[Sequence[np.ndarray]],
    *,
    encode: Callable[[Sequence[np.ndarray]], np.ndarray],
  ) -> None:
    """Appends the features of all pictures of the chunks."""
    for pictures in chunks:
      self.append(encode(pictures))

  def close(self) -> None:
    self._file.close()

  def remove(self) -> None:
    """Closes and deletes the file."""
    self.close()
    with contextlib.suppress(FileNotFoundError):
      self.path.unlink()


def row_bytes(shape: tuple[int, int]) -> int:
  """Returns the bytes of one image's features."""
  return math.prod(shape) * np.dtype(np.float16).itemsize


def check_room(folder: pathlib.Path, need: int) -> None:
  """Checks that `need` bytes can be written.

  Raises:
    UserError: the disk has less.
  """
  folder.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(folder).free
  if need > free:
    raise UserError(
      f"{folder}: {need / 2**30:.1f} GiB of image features do not fit on a disk with"
      f" {free / 2**30:.1f} GiB free; with a lower rectify.tune.feature_bytes the tower runs in"
      " each step instead"
    )
