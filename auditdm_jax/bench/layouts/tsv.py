# SPDX-License-Identifier: Apache-2.0
"""VLMEvalKit's TSV files: one row a question, pictures as base64 in the row.

    index  image  question  A  B  C  D  answer  category  hint  …

A cell `image` is base64, a list of such as Python writes it, or, to save space, the index of the
row that has the picture. Instead of it there may be `image_path`. Files are up to gigabytes: the
pictures stay there, and are read when they are asked for.

VLMEvalKit reads these files with pandas, for which cells like None, NA and null are empty; here
they are text.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import dataclasses
import logging
import pathlib
import re
from typing import Any

from auditdm_jax.bench.items import BenchmarkItem, StoredPicture
from auditdm_jax.bench.layouts.base import Columns, check_columns, item_of, named, wrong_layout
from auditdm_jax.core.config import UserError, did_you_mean

_MAX_CELL = 1 << 28  # Characters.
_SHORTEST = 64  # A longer cell is base64; a shorter one is the index of another row.
_LISTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
IMAGE, PATH, INDEX = "image", "image_path", "index"


def _split_of(row: Mapping[str, Any]) -> str:
  return row.get("split") or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tsv:
  """A benchmark as VLMEvalKit has it.

  Attributes:
    files: our splits -> names of files.
    columns: those of the file.
    only: our splits -> what `part` says of their rows, where a file has several splits.
    part: row -> the split that it is in, "" if it does not say.
  """

  files: Mapping[str, str]
  columns: Columns
  only: Mapping[str, str] = dataclasses.field(default_factory=dict)
  part: Callable[[Mapping[str, Any]], str] = _split_of

  kind = "tsv"

  @property
  def splits(self) -> Mapping[str, str]:
    return self.files

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    return (self.files[split],)

  def open(self, path: pathlib.Path, split: str) -> "TsvItems":
    """Opens a split; see `layouts.open_items`."""
    file = path / self.files[split] if path.is_dir() else path
    if not file.is_file():
      raise wrong_layout(path, [self.files[split]], self.expected(split))
    table = TsvTable(file)
    check_columns(table, self.columns)
    chosen = range(len(table))
    if wanted := self.only.get(split):
      parts = [self.part(table.row(i)) for i in chosen]
      if wanted not in parts:
        raise UserError(
          f"{file}: no row of {wanted!r}; its rows are of {named(sorted(set(parts)))}"
        )
      chosen = [i for i in chosen if parts[i] == wanted]
    return TsvItems(table, self.columns, chosen)


class TsvItems:
  """The items of a split of a TSV file."""

  def __init__(self, table: "TsvTable", columns: Columns, rows: Sequence[int]):
    self._table, self._columns, self._rows = table, columns, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> BenchmarkItem:
    return item_of(self._table, self._rows[i], self._columns)


@dataclasses.dataclass(frozen=True, slots=True)
class _TsvRow:
  """The texts of a row, and where in the file it is."""

  texts: tuple[str, ...]
  start: int
  length: int
  shown: str  # The index of the row that has its picture.
  pictures: int


class TsvTable:
  """A TSV file; the texts are in memory, the pictures are not."""

  def __init__(self, path: pathlib.Path):
    self.where = path
    rows = _parsed(path)
    try:
      _, _, header = next(rows)
    except StopIteration:
      raise UserError(f"{path}: an empty file, not a TSV with a header") from None
    self.columns: Sequence[str] = header if IMAGE in header else [*header, IMAGE]
    if IMAGE not in header and PATH not in header:
      raise UserError(
        f"{path}: no column {IMAGE!r}{did_you_mean(IMAGE, header)}; it has {named(header)}"
      )
    self._header = header
    self._kept = [k for k, name in enumerate(header) if name != IMAGE]
    self._rows: list[_TsvRow] = []
    self._places: dict[str, int] = {}
    self._fill(rows)

  def _fill(self, rows: Iterator[tuple[int, int, list[str]]]) -> None:
    image = self._header.index(IMAGE) if IMAGE in self._header else -1
    index = self._header.index(INDEX) if INDEX in self._header else -1
    without = 0
    for start, length, cells in rows:
      if len(cells) != len(self._header):
        raise UserError(
          f"{self.where}: row {len(self._rows)} has {len(cells)} cells, not {len(self._header)};"
          " the file is damaged or cut short"
        )
      own = cells[index] if index >= 0 else str(len(self._rows))
      cell = cells[image] if image >= 0 else own
      if not cell:
        without += 1
        continue
      texts = tuple(cells[k] for k in self._kept)
      shown = cell if image >= 0 and len(cell) <= _SHORTEST else own
      if own in self._places:
        raise UserError(f"{self.where}: two rows have the index {own[:40]!r}")
      self._places[own] = len(self._rows)
      pictures = len(_listed(cell)) if image >= 0 else 1
      self._rows.append(_TsvRow(texts, start, length, shown, pictures))
    for row in self._rows:
      if row.shown not in self._places:
        raise UserError(f"{self.where}: a picture is that of row {row.shown!r}, which is not there")
    if without:
      logging.warning("%s: %d rows without a picture are left out", self.where, without)

  def __len__(self) -> int:
    return len(self._rows)

  def row(self, i: int) -> Mapping[str, Any]:
    cells = zip(self._kept, self._rows[i].texts, strict=True)
    return {self._header[k]: cell or None for k, cell in cells}

  def name(self, i: int) -> str:
    return f"{self.where}: row {i}"

  def pictures(self, i: int, columns: Sequence[str]) -> tuple[StoredPicture, ...]:
    if IMAGE not in self._header:
      paths = _listed(self.row(i).get(PATH) or "")
      return tuple(_PathPicture(self.where.parent / path) for path in paths)
    place = self._places[self._rows[i].shown]
    return tuple(_TsvPicture(self, place, k) for k in range(self._rows[place].pictures))

  def picture_key(self, i: int) -> str:
    return self._rows[i].shown if IMAGE in self._header else str(self.row(i).get(PATH))

  def stored(self, i: int, k: int) -> bytes:
    """Returns the k-th picture of a row."""
    row = self._rows[i]
    with self.where.open("rb") as file:
      file.seek(row.start)
      lines = file.read(row.length)
    try:
      (cells,) = csv.reader([lines.decode("utf-8")], delimiter="\t")
      data = base64.b64decode(_listed(cells[self._header.index(IMAGE)])[k], validate=True)
    except (binascii.Error, IndexError, ValueError) as e:
      raise UserError(f"{self.name(i)}: the image is no base64 ({e})") from e
    return data


@dataclasses.dataclass(frozen=True, slots=True)
class _TsvPicture:
  table: TsvTable
  row: int
  place: int

  @property
  def name(self) -> str:
    return f"{self.table.name(self.row)}, {IMAGE} {self.place}"

  def stored(self) -> bytes:
    return self.table.stored(self.row, self.place)


@dataclasses.dataclass(frozen=True, slots=True)
class _PathPicture:
  path: pathlib.Path

  @property
  def name(self) -> str:
    return str(self.path)

  def stored(self) -> pathlib.Path:
    return self.path


def _listed(cell: str) -> list[str]:
  """Returns the texts of a list as Python writes it; of anything else, the cell."""
  if cell.startswith("[") and cell.endswith("]"):
    return [a or b for a, b in _LISTED.findall(cell)]
  return [cell]


def _parsed(path: pathlib.Path) -> Iterator[tuple[int, int, list[str]]]:
  """Yields where each row begins, its length in bytes, and its cells."""
  csv.field_size_limit(_MAX_CELL)  # Of the whole process; pictures are longer than the default.
  end = 0

  def lines(file: Any) -> Iterator[str]:
    nonlocal end
    for line in file:
      end += len(line)
      yield line.decode("utf-8-sig" if end == len(line) else "utf-8")

  start = 0
  with path.open("rb") as file:
    try:
      for cells in csv.reader(lines(file), delimiter="\t", strict=True):
        if cells:
          yield start, end - start, cells
        start = end
    except (csv.Error, UnicodeDecodeError) as e:
      raise UserError(f"{path}: damaged, or no TSV in UTF-8, from byte {start} on ({e})") from e
