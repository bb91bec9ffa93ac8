# SPDX-License-Identifier: Apache-2.0
"""One file of a table with pictures in it: Parquet, or Arrow as `datasets` writes it.

Only pyarrow reads them here. Text columns are read as a whole, pictures one at a time.
"""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import json
import pathlib
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from auditdm_jax.core.config import UserError

# Pictures that are read at a time. pyarrow itself writes pages of up to 1,024 of them, whatever
# their size, and so has as many in memory.
_BATCH = 16
_TEXTS = 4_096  # Rows of text at a time.


class Shard:
  """A Parquet or Arrow file.

  Attributes:
    path: the file.
    columns: the names of its columns.
    length: the number of its rows.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._lock = threading.Lock()
    self._column = ""
    self._stream: Iterator[tuple[int, pa.Array]] = iter(())
    self._block = -1
    # The last two batches: threads that read in order do so only roughly.
    self._recent: collections.deque[tuple[int, pa.Array]] = collections.deque(maxlen=2)
    self._file: pq.ParquetFile | None = None
    self._table: pa.Table | None = None
    with errors(path):
      if path.suffix == ".parquet":
        file = self._file = pq.ParquetFile(path, memory_map=True)
        schema, self.length = file.schema_arrow, file.metadata.num_rows
      else:
        table = self._table = _open_arrow(path)
        schema, self.length = table.schema, table.num_rows
    self.columns: list[str] = schema.names
    self._schema = schema

  def kind(self, column: str) -> pa.DataType:
    """Returns the type of a column, that of the values if they are numbered."""
    kind = self._schema.field(column).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind

  def features(self) -> dict[str, Any]:
    """Returns what `datasets` says about the columns, {} if it did not write the file."""
    try:
      said = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
      found = said["info"]["features"]
    except (KeyError, TypeError, ValueError):
      return {}
    return found if isinstance(found, dict) else {}

  def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the values of these columns, row by row."""
    if not columns:
      yield from ({} for _ in range(self.length))
      return
    with errors(self.path):
      for block in range(len(self.blocks())):
        for batch in self._batches(block, columns, _TEXTS):
          yield from batch.to_pylist()

  def blocks(self) -> list[int]:
    """Returns the first rows of its parts: row groups, or batches."""
    if self._file is not None:
      meta = self._file.metadata
      sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    else:
      sizes = [len(batch) for batch in self._whole().to_batches()]
    starts = [0]
    for size in sizes:
      starts.append(starts[-1] + size)
    return starts[:-1]

  def largest_block(self) -> int:
    """Returns the bytes of the largest row group, of which a picture may cost half to be read."""
    if self._file is None:
      return 0
    meta = self._file.metadata
    return max((meta.row_group(g).total_byte_size for g in range(meta.num_row_groups)), default=0)

  def tokens(self, column: str, block: int) -> list[str]:
    """Returns for each picture of a part its "sha256:…", "file:…" or, if it is null, ""."""
    with errors(self.path):
      return [
        token
        for batch in self._batches(block, [column], _BATCH)
        for token in _tokens(batch.column(0))
      ]

  def picture(self, column: str, row: int) -> bytes:
    """Returns the encoded picture of a row.

    Raises:
      UserError: the file is damaged.
    """
    with self._lock, errors(self.path):
      if self._table is not None:
        array = self._table.column(column).slice(row, 1).chunk(0)
        return _data(array)[0].as_py()
      start, array = self._batch_of(column, row)
      return _data(array)[row - start].as_py()

  def texts(self, columns: Sequence[str]) -> pa.Table:
    """Returns whole columns, in Arrow's memory."""
    with errors(self.path):
      if self._table is not None:
        return self._table.select(list(columns))
      return pq.ParquetFile(self.path).read(columns=list(columns))

  def value(self, column: str, row: int) -> Any:
    """Returns a cell in terms of Python, pictures as they are stored."""
    with self._lock, errors(self.path):
      if self._table is not None:
        return self._table.column(column)[row].as_py()
      start, array = self._batch_of(column, row)
      return array[row - start].as_py()

  def pictures_in(self, column: str, row: int, *, optional: bool) -> int:
    """Returns how many pictures a cell has; it is read for a list, or if it may be null."""
    kind = self._schema.field(column).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
      return len(self.value(column, row) or ())
    return int(not optional or self.value(column, row) is not None)

  def _batch_of(self, column: str, row: int) -> tuple[int, pa.Array]:
    """The first row and the pictures of the batch that has `row`, read on from the last one."""
    for start, array in self._recent:
      if self._column == column and start <= row < start + len(array):
        return start, array
    starts = self.blocks()
    block = max(k for k, start in enumerate(starts) if start <= row)
    last = self._recent[-1][0] if self._recent else -1
    if (self._column, self._block) != (column, block) or row < last:
      self._column, self._block = column, block
      self._stream = self._numbered(block, column, starts[block])
      self._recent.clear()
    for start, array in self._stream:
      self._recent.append((start, array))
      if row < start + len(array):
        return start, array
    raise UserError(f"{self.path}: no row {row}; the file has changed")

  def _numbered(self, block: int, column: str, start: int) -> Iterator[tuple[int, pa.Array]]:
    for batch in self._batches(block, [column], _BATCH):
      yield start, batch.column(0)
      start += len(batch)

  def _batches(self, block: int, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    if self._file is not None:
      return self._file.iter_batches(batch_size=size, row_groups=[block], columns=list(columns))
    batch = self._whole().to_batches()[block].select(list(columns))
    return iter(pa.Table.from_batches([batch]).to_batches(max_chunksize=size))

  def _whole(self) -> pa.Table:
    assert self._table is not None
    return self._table


@contextlib.contextmanager
def errors(path: pathlib.Path) -> Iterator[None]:
  """Turns what pyarrow raises for a damaged file into a UserError of one line."""
  try:
    yield
  except UserError:
    raise
  except (pa.ArrowException, OSError) as e:
    reason = " ".join(str(e).split())[:300]
    raise UserError(f"{path} cannot be read as a table: {reason}") from e


def _open_arrow(path: pathlib.Path) -> pa.Table:
  """Returns the table of a stream, as `datasets` writes it, or of a file; it stays on disk."""
  mapped = pa.memory_map(str(path))
  try:
    return pa.ipc.open_stream(mapped).read_all()
  except pa.ArrowInvalid:
    mapped.seek(0)
    if mapped.read(6) != b"ARROW1":
      raise
    return pa.ipc.open_file(mapped).read_all()


def _parts(array: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
  """The bytes and the paths of a column of pictures, either of them None if it has no such."""
  if pa.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  if not pa.types.is_struct(array.type):
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    return (None, array) if is_text else (array, None)
  names = [field.name for field in array.type]
  parts = dict(zip(names, array.flatten(), strict=True))  # A null picture has null parts.
  return parts.get("bytes"), parts.get("path")


def _data(array: pa.Array) -> pa.Array:
  data, _ = _parts(array)
  assert data is not None
  return data


def _tokens(array: pa.Array) -> Iterator[str]:
  data, paths = _parts(array)
  for k in range(len(array)):
    if data is not None and data[k].is_valid:
      yield f"sha256:{hashlib.sha256(data[k].as_buffer()).hexdigest()}"
    elif paths is not None and paths[k].is_valid:
      yield f"file:{paths[k].as_py()}"
    else:
      yield ""
