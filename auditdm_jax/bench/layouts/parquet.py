# SPDX-License-Identifier: Apache-2.0
"""Parquet folders of Hugging Face, as lmms-eval downloads them.

A picture is {bytes, path}, bytes, a path, or a list of those. The folder may be a clone, a folder
of one config, or what the hub's cache calls datasets--OWNER--NAME. Texts are in memory as Arrow has
them, pictures are read one at a time.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from auditdm_jax.bench.items import BenchmarkItem, StoredPicture
from auditdm_jax.bench.layouts.base import Columns, check_columns, item_of, wrong_layout
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools import tables
from auditdm_jax.core.pools.shards import Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet:
  """A data set on Hugging Face's hub.

  Attributes:
    repo: OWNER/NAME.
    splits: our splits -> theirs.
    columns: those of the files.
    config: the folder with the files; "" = all of them.
    images: the folder with a table of the pictures, if they are in one of their own.
    joined: the columns of the two tables that are the same picture's id.
    where: whether a row is one of the benchmark's; None = all are.
  """

  repo: str
  splits: Mapping[str, str]
  columns: Columns
  config: str = ""
  images: str = ""
  joined: tuple[str, str] = ("", "")
  where: Callable[[Mapping[str, Any]], bool] | None = None

  kind = "parquet"

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    folders = [name for name in (self.config, self.images) if name]
    name = f"{self.splits[split]}-*.parquet"
    return tuple(f"{folder}/{name}" for folder in folders) or (f"data/{name}",)

  def open(self, path: pathlib.Path, split: str) -> "ParquetItems":
    """Opens a split; see `layouts.open_items`."""
    root = _snapshot(path)
    table = ParquetTable(self._files(root, self.config, split), root, self.columns)
    if self.images:
      theirs, ours = self.joined
      held = Columns(question=ours, answers="", item_id=ours, pictures=self.columns.pictures)
      shown = ParquetTable(self._files(root, self.images, split), root, held)
      table = JoinedTable(table, theirs, shown, ours)
    check_columns(table, self.columns)
    return ParquetItems(table, self.columns, self.where)

  def _files(self, root: pathlib.Path, config: str, split: str) -> list[pathlib.Path]:
    folder = root / config if config and root.name != config else root
    if not folder.is_dir() and (root.is_file() or any(root.glob("*.parquet"))):
      folder = root  # The files of the config themselves.
    found = tables.find(folder) if folder.exists() else None
    files = list(found.files) if found else []
    wanted = self.splits[split]
    chosen = [file for file, name in files if name == wanted]
    if not chosen and len({name for _, name in files}) == 1 and not files[0][1]:
      chosen = [file for file, _ in files]  # One table whose name says no split.
    if not chosen:
      missing = f"{config}/{wanted}-*.parquet" if config else f"{wanted}-*.parquet"
      raise wrong_layout(root, [missing], self.expected(split))
    return chosen


def _snapshot(path: pathlib.Path) -> pathlib.Path:
  """Returns the newest snapshot of a data set in the hub's cache, or the path itself."""
  snapshots = [x for x in (path / "snapshots").glob("*") if x.is_dir()]
  return max(snapshots, key=lambda x: x.stat().st_mtime) if snapshots else path


class ParquetItems:
  """The items of a split of Parquet files."""

  def __init__(
    self,
    table: "ParquetTable | JoinedTable",
    columns: Columns,
    where: Callable[[Mapping[str, Any]], bool] | None,
  ):
    self._table, self._columns = table, columns
    self._places: list[tuple[int, int]] | range = range(len(table))
    if where is not None or columns.several:
      self._places = list(self._listed(where))

  def _listed(self, where: Callable[[Mapping[str, Any]], bool] | None):
    several = self._columns.several
    for i in range(len(self._table)):
      row = self._table.row(i)
      if where is None or where(row):
        yield from ((i, part) for part in range(len(row[several] or ()) if several else 1))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, i: int) -> BenchmarkItem:
    place = self._places[i]
    row, part = (place, 0) if isinstance(place, int) else place
    return item_of(self._table, row, self._columns, part=part)


class ParquetTable:
  """The rows of several Parquet or Arrow files."""

  def __init__(self, files: Sequence[pathlib.Path], where: pathlib.Path, columns: Columns):
    self.where = where
    self._shards = [Shard(path) for path in files]
    self.columns = self._shards[0].columns
    if different := [x for x in self._shards if set(x.columns) != set(self.columns)]:
      raise UserError(f"{different[0].path}: other columns than {self._shards[0].path}")
    self._pictures = columns.pictures
    kept = [name for name in columns.texts if name in self.columns]
    self._texts = [shard.texts(kept) for shard in self._shards]
    self._ends = np.cumsum([shard.length for shard in self._shards])
    self._tokens: list[str] | None = None
    if columns.hashed and columns.pictures[0] in self.columns:
      self._tokens = [
        token.removeprefix("sha256:")[:32]
        for shard in self._shards
        for block in range(len(shard.blocks()))
        for token in shard.tokens(columns.pictures[0], block)
      ]

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _place(self, i: int) -> tuple[int, int]:
    k = int(np.searchsorted(self._ends, i, side="right"))
    return k, i - int(self._ends[k]) + self._shards[k].length

  def row(self, i: int) -> Mapping[str, Any]:
    k, row = self._place(i)
    found = self._texts[k].slice(row, 1).to_pylist()
    return found[0] if found else {}

  def name(self, i: int) -> str:
    k, row = self._place(i)
    return f"{self._shards[k].path}: row {row}"

  def pictures(self, i: int, columns: Sequence[str]) -> tuple[StoredPicture, ...]:
    k, row = self._place(i)
    shard = self._shards[k]
    found = []
    for place, column in enumerate(columns):
      if column in self.columns:
        parts = shard.pictures_in(column, row, optional=place > 0)
        found += [_ParquetPicture(shard, column, row, part) for part in range(parts)]
    return tuple(found)

  def picture_key(self, i: int) -> str:
    return self._tokens[i] if self._tokens is not None else str(i)


class JoinedTable:
  """A table whose pictures are in another one, by id."""

  def __init__(self, table: ParquetTable, theirs: str, shown: ParquetTable, ours: str):
    self._table, self._theirs, self._shown = table, theirs, shown
    self.where = table.where
    self._rows = {str(shown.row(i).get(ours)): i for i in range(len(shown))}
    pictures = [name for name in shown.columns if name != ours]
    self.columns = list(dict.fromkeys([*table.columns, *pictures]))

  def __len__(self) -> int:
    return len(self._table)

  def row(self, i: int) -> Mapping[str, Any]:
    return self._table.row(i)

  def name(self, i: int) -> str:
    return self._table.name(i)

  def pictures(self, i: int, columns: Sequence[str]) -> tuple[StoredPicture, ...]:
    key = self.picture_key(i)
    if key not in self._rows:
      raise UserError(f"{self.name(i)}: no picture {key[:60]!r} in the table of pictures")
    return self._shown.pictures(self._rows[key], columns)

  def picture_key(self, i: int) -> str:
    return str(self._table.row(i).get(self._theirs))


@dataclasses.dataclass(frozen=True, slots=True)
class _ParquetPicture:
  shard: Shard
  column: str
  row: int
  part: int

  @property
  def name(self) -> str:
    return f"{self.shard.path}: {self.column} of row {self.row}"

  def stored(self) -> bytes | str:
    value = self.shard.value(self.column, self.row)
    if isinstance(value, list):
      value = value[self.part]
    if isinstance(value, dict):
      value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
      return os.path.normpath(self.shard.path.parent / value)
    if not isinstance(value, bytes):
      raise UserError(f"{self.name} is {type(value).__name__}, not a picture")
    return value
