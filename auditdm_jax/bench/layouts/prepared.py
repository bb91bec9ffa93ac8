# SPDX-License-Identifier: Apache-2.0
"""Prepared TFDS data sets, under the names that big_vision's builders really write.

big_vision's configs ask for okvqa, docvqa, chartqa/human and pope_random; its builders write
ok_vqa, doc_vqa, chart_qa/human and pope/pope_random. Any folder from the data directory down to the
version will do. Files may be array_record or tfrecord; neither takes TensorFlow.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import pathlib
import re
import threading
from typing import Any

from google.protobuf.message import DecodeError
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from auditdm_jax.bench.items import BenchmarkItem, StoredPicture
from auditdm_jax.bench.layouts.base import Columns, check_columns, item_of, wrong_layout
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools import prepared

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
  """A data set that a TFDS builder prepared.

  Attributes:
    dataset: name that the builder writes.
    splits: our splits -> TFDS's, or slices of them.
    columns: features.
    config: of the builder; "" = it has none.
    configs: our splits -> their builder configs, where a split is one.
  """

  dataset: str
  splits: Mapping[str, str]
  columns: Columns
  config: str = ""
  configs: Mapping[str, str] = dataclasses.field(default_factory=dict)

  kind = "tfds"

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    config = self._config(split)
    middle = f"{config}/" if config else ""
    name = self.splits[split].partition("[")[0]
    stem = f"{self.dataset}/{middle}VERSION"
    return (f"{stem}/{_INFO}", f"{stem}/{self.dataset}-{name}.(array_record|tfrecord)-*")

  def open(self, path: pathlib.Path, split: str) -> "TfdsItems":
    """Opens a split; see `layouts.open_items`."""
    folder = find(path, self.dataset, self._config(split))
    if folder is None:
      raise wrong_layout(path, [_INFO], self.expected(split))
    table = TfdsTable(folder, self.splits[split], self.columns)
    check_columns(table, self.columns)
    return TfdsItems(table, self.columns)

  def _config(self, split: str) -> str:
    return self.configs.get(split, self.config)


class TfdsItems:
  """The items of a split of a prepared data set."""

  def __init__(self, table: "TfdsTable", columns: Columns):
    self._table, self._columns = table, columns

  def __len__(self) -> int:
    return len(self._table)

  def __getitem__(self, i: int) -> BenchmarkItem:
    return item_of(self._table, i, self._columns)


def find(path: pathlib.Path, dataset: str, config: str) -> pathlib.Path | None:
  """Returns the folder of the newest version, given it or any folder above it; None if none is."""
  names = [name for name in (dataset, config) if name]
  for k in range(len(names) + 1):  # All names, then fewer: the path may have some itself.
    folder = path.joinpath(*names[k:])
    if (folder / _INFO).is_file():
      return folder
    found = [x for x in folder.glob("*.*.*") if _VERSION.fullmatch(x.name)]
    if found := [x for x in found if (x / _INFO).is_file()]:
      return max(found, key=lambda x: tuple(map(int, x.name.split("."))))
  return None


class TfdsTable:
  """A split of a prepared data set; a few rows are in memory.

  Columns are the flat names of the features, such as "objects/bbox".
  """

  def __init__(self, folder: pathlib.Path, split: str, columns: Columns):
    self.where = folder
    self._split, self._pictures = split, columns.pictures
    found = prepared.open_records(folder, split)
    try:
      self._kinds = _flat(found.features.get_serialized_info())
    except (AttributeError, *prepared.BROKEN) as e:
      raise UserError(f"{folder}: its features cannot be read: {e}") from e
    self._records = found.records
    self.columns = tuple(self._kinds)
    self._lock = threading.Lock()
    self._read = functools.lru_cache(maxsize=4)(self._uncached)

  def __len__(self) -> int:
    return len(self._records)

  def row(self, i: int) -> Mapping[str, Any]:
    row = self._read(i)
    return {name: value for name, value in row.items() if name not in self._pictures}

  def name(self, i: int) -> str:
    return f"{self.where}: row {i} of {self._split}"

  def pictures(self, i: int, columns: Sequence[str]) -> tuple[StoredPicture, ...]:
    return tuple(_TfdsPicture(self, i, column) for column in columns)

  def picture_key(self, i: int) -> str:
    return hashlib.sha256(self.stored(i, self._pictures[0])).hexdigest()[:32]

  def stored(self, i: int, feature: str) -> bytes:
    """Returns the bytes of a picture's file."""
    data = self._read(i).get(feature)
    if not isinstance(data, bytes):
      raise UserError(f"{self.name(i)}: {feature} is {type(data).__name__}, not a picture file")
    return data

  def _uncached(self, i: int) -> Mapping[str, Any]:
    try:
      with self._lock:
        record = self._records[i]
      return parse(record, self._kinds, encoded=self._pictures)
    except (DecodeError, *prepared.BROKEN) as e:
      reason = " ".join(str(e).split())[:300] or "damaged"
      raise UserError(f"{self.name(i)} cannot be read: {reason}") from e


@dataclasses.dataclass(frozen=True, slots=True)
class _TfdsPicture:
  table: TfdsTable
  row: int
  feature: str

  @property
  def name(self) -> str:
    return f"{self.table.name(self.row)}, {self.feature}"

  def stored(self) -> bytes:
    return self.table.stored(self.row, self.feature)


def _flat(infos: Any, prefix: str = "") -> dict[str, Any]:
  """Returns TFDS's TensorInfo of every feature by its flat name."""
  if not isinstance(infos, Mapping):
    return {prefix: infos}
  found = {}
  for name, part in infos.items():
    found |= _flat(part, f"{prefix}/{name}" if prefix else name)
  return found


def parse(record: bytes, kinds: Mapping[str, Any], *, encoded: Sequence[str]) -> dict[str, Any]:
  """Returns the values of a serialised tf.train.Example by their flat names.

  TFDS's own numpy decoding cannot leave a picture within a sequence as it is.

  Args:
    record: the proto.
    kinds: TFDS's TensorInfo of every feature.
    encoded: features that are bytes; other bytes are text if they are UTF-8.

  Raises:
    DecodeError, LookupError, ValueError: the record is damaged or has other features.
  """
  example: Any = tf_example_pb2
  found = example.Example.FromString(record).features.feature
  row = {}
  for name, kind in kinds.items():
    if name in found:
      row[name] = _shaped(_values(found[name], name not in encoded), kind)
      continue
    flat = _values(found[f"{name}/ragged_flat_values"], name not in encoded)
    for k in reversed(range(kind.sequence_rank - 1)):
      flat = _cut(flat, found[f"{name}/ragged_row_lengths_{k}"].int64_list.value)
    row[name] = flat
  return row


def _values(feature: Any, decoded: bool) -> list[Any]:
  if feature.HasField("int64_list"):
    return list(feature.int64_list.value)
  if feature.HasField("float_list"):
    return list(feature.float_list.value)
  values = list(feature.bytes_list.value)
  return [_text(x) for x in values] if decoded else values


def _text(value: bytes) -> str | bytes:
  try:
    return value.decode("utf-8")
  except UnicodeDecodeError:  # A picture in a list, such as a mask.
    return value


def _shaped(values: list[Any], kind: Any) -> Any:
  if not kind.shape:
    (value,) = values
    return bool(value) if kind.np_dtype is np.bool_ else value
  for size in reversed(kind.shape[1:]):
    values = _cut(values, [size] * (len(values) // size))
  return values


def _cut(values: list[Any], lengths: Sequence[int]) -> list[list[Any]]:
  """Returns consecutive parts of these lengths."""
  if sum(lengths) != len(values):
    raise ValueError(f"{len(values)} values in parts of {sum(lengths)}")
  ends = np.cumsum(lengths).tolist()
  return [values[end - length : end] for end, length in zip(ends, lengths)]
