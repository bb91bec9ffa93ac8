# SPDX-License-Identifier: Apache-2.0
"""A split of a prepared TFDS data set. Reading needs no TensorFlow."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import threading
from typing import Any

from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  Compiled, without stubs.
)
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf import json_format
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from auditdm_jax.core import jsonio, pictures
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.pools import base, rows, tfrecords
from auditdm_jax.core.pools.remembered import Remembered, version_of
from auditdm_jax.core.pools.shares import NoSplit

# What TFDS and its readers raise for files that are missing, torn or of something else.
BROKEN = (RuntimeError, ValueError, LookupError, OSError, json_format.Error)
_REMEDY = "the data set is not whole: remove its folder and prepare it again"


class PreparedPool(base.Pool):
  """A split with the feature `image` and, as far as there are any, `questions` and `answers`.

  Args:
    source: the rows, pictures undecoded.
    split: its name, or a slice such as "train[:80%]".
    where: the folder.
    version: what changes when a file of the split does.
    ids: the image ids that are known.
  """

  def __init__(
    self,
    source: Sequence[Mapping[str, Any]],
    split: str,
    *,
    where: pathlib.Path,
    version: str,
    ids: Remembered,
  ):
    super().__init__(split, ids)
    self._source, self._where, self._whole = source, where, version
    self._lock = threading.Lock()
    self._row = functools.lru_cache(maxsize=16)(self._read)

  def __len__(self) -> int:
    return len(self._source)

  def questions(self, i: int) -> tuple[str, ...]:
    return tuple(_text(x) for x in self._row(i).get("questions", ()))

  def answers(self, i: int) -> tuple[tuple[str, ...], ...]:
    """Returns one row per question: of its answer, or of all that were given."""
    row = self._row(i)
    given = [rows.answers(_plain(x)) for x in row.get("answers", ())]
    asked = len(row.get("questions", ()))
    if given and len(given) != asked:
      raise UserError(f"{self._name(i)} has {asked} questions and {len(given)} answers")
    return tuple(given) or ((),) * asked

  def text(self, i: int, feature: str) -> str:
    """Returns another text feature of the row, for instance the scene."""
    return _text(self._row(i)[feature])

  def _read(self, i: int) -> Mapping[str, Any]:
    self._check(i)
    try:
      with self._lock:
        return self._source[i]
    except BROKEN as e:
      raise UserError(f"{self._name(i)} cannot be read ({_reason(e)}); {_REMEDY}") from e

  def _stored(self, i: int) -> base.Stored:
    stored = self._row(i)["image"]
    if not isinstance(stored, np.ndarray) or _is_rgb(stored):
      return stored
    if stored.dtype != np.uint8 or stored.ndim != 3 or stored.shape[2] not in (1, 4):
      raise UserError(f"{self._name(i)} is {stored.dtype}{list(stored.shape)}, not u8[H,W,3]")
    image = Image.fromarray(stored[..., 0] if stored.shape[2] == 1 else stored)
    return np.asarray(pictures.load(image, name=self._name(i)))

  def _name(self, i: int) -> str:
    return f"{self._where}: image {i} of {self.split}"

  def _version(self, i: int) -> str:
    return self._whole and f"{self._whole}|{self.split}|{i}"


def open_prepared(directory: pathlib.Path, split: str, *, ids: Remembered) -> PreparedPool:
  """Opens a split of a prepared data set, `<data_dir>/<name>/<config>/<version>`; or a slice, as
  "train[:80%]".

  Raises:
    UserError: there is no such split, or the data set is damaged or cannot be read here.
  """
  builder, version = _open(directory, split)
  features = builder.info.features
  if features is None or "image" not in features:
    known = ", ".join(features or ())
    raise UserError(f"{directory}: no feature 'image'; features: {known}")
  # TFDS would give a palette's indices, and four channels of CMYK.
  raw = isinstance(features["image"], tfds.features.Image)
  decoders = {"image": tfds.decode.SkipDecoding()} if raw else None
  try:
    source = builder.as_data_source(split, decoders=decoders)
  except (NotImplementedError, *BROKEN) as e:
    raise UserError(f"{directory}: {_reason(e)}") from e
  return PreparedPool(source, split, where=directory, version=version, ids=ids)


@dataclasses.dataclass(frozen=True)
class PreparedRecords:
  """A split of a prepared data set, its rows as they are stored.

  Attributes:
    features: what TFDS says about the features.
    records: serialised tf.train.Example protos, by place.
  """

  features: Any
  records: Sequence[bytes]


def open_records(directory: pathlib.Path, split: str) -> PreparedRecords:
  """Opens the records of a split, or of a slice of it, in array_record or tfrecord files.

  Raises:
    UserError: there is no such split, or the data set is damaged or of another kind.
  """
  builder, _ = _open(directory, split)
  known = {tfds.core.FileFormat.TFRECORD, tfds.core.FileFormat.ARRAY_RECORD}
  if builder.info.file_format not in known:
    raise UserError(
      f"{directory}: files are {builder.info.file_format}, not array_record or tfrecord"
    )
  try:
    parts = builder.info.splits[split].file_instructions
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
      source: Any = ArrayRecordDataSource(parts)
      return PreparedRecords(builder.info.features, source)
    parts = [tfrecords.RecordRange(os.fspath(x.filename), x.skip, x.take) for x in parts]
    return PreparedRecords(builder.info.features, tfrecords.TfRecords(parts))
  except BROKEN as e:
    raise UserError(f"{directory}: {_reason(e)}; {_REMEDY}") from e


def _open(directory: pathlib.Path, split: str) -> tuple[Any, str]:
  """Returns the builder of a data set that has this split, and the version of the split's files."""
  try:
    builder: Any = tfds.builder_from_directory(str(directory))
    splits = builder.info.splits
  except BROKEN as e:
    raise UserError(f"{directory}: {_reason(e)}; {_REMEDY}") from e
  name = split.partition("[")[0]
  if name not in splits:
    raise NoSplit(
      f"{directory}: no split {split!r}{did_you_mean(split, splits)}; splits: {', '.join(splits)}"
    )
  return builder, _check_files(builder.info, name, directory)


def _check_files(info: tfds.core.DatasetInfo, split: str, directory: pathlib.Path) -> str:
  """Returns the version of a split's files.

  Raises:
    UserError: one of them is missing or has another number of rows than the data set says.
  """
  versions = []
  described = info.splits[split]
  for path, want in zip(map(os.fspath, described.filepaths), described.shard_lengths):
    try:
      versions.append(version_of(path))
      rows_in = _rows_in(path) if ".array_record" in os.path.basename(path) else want
    except OSError as e:
      raise UserError(f"{path}: {e.strerror}; {_REMEDY}") from e
    except RuntimeError as e:
      raise UserError(f"{path}: {_reason(e)}; {_REMEDY}") from e
    if rows_in != want:
      raise UserError(f"{path} has {rows_in} rows, not {want}; {_REMEDY}")
  return jsonio.canonical_hash(versions) if all(versions) else ""


def _is_rgb(image: np.ndarray) -> bool:
  return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def _rows_in(path: str) -> int:
  reader = array_record_module.ArrayRecordReader(path)
  try:
    return reader.num_records()
  finally:
    reader.close()


def _reason(error: Exception) -> str:
  """Returns what a library says, in one line; some of its errors say nothing."""
  return " ".join(str(error).split())[:300] or "damaged"


def _plain(value: Any) -> Any:
  """Returns a value of TFDS in terms of JSON."""
  value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
  if isinstance(value, list):
    return [_plain(x) for x in value]
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _text(value: bytes | str) -> str:
  """TFDS gives bytes or str, depending on whether TensorFlow is installed."""
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
