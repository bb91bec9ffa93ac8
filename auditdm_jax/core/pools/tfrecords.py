# SPDX-License-Identifier: Apache-2.0
"""TFRecord files by place, without TensorFlow.

A record is its length (u64), the length's masked CRC-32C (u32), the data, and the data's CRC (u32).
The checksum of every length is compared, so that a torn or foreign file is found when it is opened.
That of the data is not, which would take Python a second for a large picture: damage there is left
to whoever parses the record.
"""

from collections.abc import Sequence
import dataclasses
import os
import struct

import numpy as np
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

_HEADER = struct.Struct("<QI")
_FOOTER = 4


@dataclasses.dataclass(frozen=True)
class RecordRange:
  """Records [skip, skip + take) of a file; take = -1 means all that follow."""

  path: str
  skip: int
  take: int


class TfRecords(Sequence[bytes]):
  """The records of parts of files, by place; in memory is where each one begins."""

  def __init__(self, parts: Sequence[RecordRange]):
    self._parts = [(part.path, _chosen(_starts(part.path), part)) for part in parts]
    self._ends = np.cumsum([len(starts) for _, starts in self._parts])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, i: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
    i = range(len(self))[i]
    k = int(np.searchsorted(self._ends, i, side="right"))
    path, starts = self._parts[k]
    with open(path, "rb") as file:
      file.seek(int(starts[i - int(self._ends[k]) + len(starts)]))
      length, _ = _HEADER.unpack(file.read(_HEADER.size))
      return file.read(length)


def _chosen(starts: np.ndarray, part: RecordRange) -> np.ndarray:
  return starts[part.skip : None if part.take < 0 else part.skip + part.take]


def _starts(path: str) -> np.ndarray:
  """Returns i64[N], where records begin.

  Raises:
    RuntimeError: the file is torn or of another kind.
  """
  size, at, starts = os.path.getsize(path), 0, []
  with open(path, "rb") as file:
    while at < size:
      header = file.read(_HEADER.size)
      if len(header) < _HEADER.size:
        raise RuntimeError(f"{path} ends within record {len(starts)}")
      length, crc = _HEADER.unpack(header)
      if pywrap_tensorflow.masked_crc32c(header[:8]) != crc:
        raise RuntimeError(f"{path}: record {len(starts)} is damaged, or this is no TFRecord file")
      starts.append(at)
      at += _HEADER.size + length + _FOOTER
      if at > size:
        raise RuntimeError(f"{path} ends within record {len(starts) - 1}")
      file.seek(at)
  return np.asarray(starts, np.int64)
