# SPDX-License-Identifier: Apache-2.0
"""What the layouts have in common: tables with named columns become items."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any, Protocol

from auditdm_jax.bench.items import LETTERS, BenchmarkItem, Box, Outline, StoredPicture
from auditdm_jax.bench.layouts.masks import CocoMask
from auditdm_jax.core import jsonio, pictures
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.pools import rows as rows_lib

_SHOWN = 6  # Names of files or columns in an error.
# What reading a row raises if it is not what it should be.
UNEXPECTED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
  """What a layout calls its columns; "" = it has no such.

  Attributes:
    question: text; "" = there are none, as for captions.
    answers: text, a list of texts, or of objects with an "answer"; with `options` a letter, the
      place of an option or its text.
    item_id: unique; "" = the number of the row.
    pictures: the first must be there.
    image_key: id of the picture; "" = its place, or with `hashed` the hash of its file.
    hashed: whether pictures are told apart by the hashes of their files, which reads all of them.
    options: a column for each option, or one column with a list.
    hint: shown before the question.
    category: what is reported by.
    group: items that count together.
    keep: columns that go to the item's metadata, if they are there.
    adapt: changes a row before it is read; for what columns alone do not say.
    reads: columns that only `adapt` reads.
    makes: columns that `adapt` makes.
    pixel_box: a column with x, y, width and height of the object in pixels.
    outline: a column with COCO's polygons or run lengths of the object.
    several: a column with a list, of which every entry is an item of its own.
  """

  question: str = "question"
  answers: str = "answer"
  item_id: str = "question_id"
  pictures: tuple[str, ...] = ("image",)
  image_key: str = ""
  hashed: bool = False
  options: tuple[str, ...] = ()
  hint: str = ""
  category: str = ""
  group: str = ""
  keep: tuple[str, ...] = ()
  adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
  reads: tuple[str, ...] = ()
  makes: tuple[str, ...] = ()
  pixel_box: str = ""
  outline: str = ""
  several: str = ""

  @property
  def required(self) -> tuple[str, ...]:
    """The columns that must be there."""
    names = (self.item_id, self.question, self.answers, self.image_key, self.several)
    names = (*names, self.pixel_box, self.outline)
    wanted = (n for n in (*names, self.pictures[0], *self.reads) if n and n not in self.makes)
    return tuple(dict.fromkeys(wanted))

  @property
  def texts(self) -> tuple[str, ...]:
    """All columns but the pictures."""
    named = (*self.required, *self.options, self.hint, self.category, self.group, *self.keep)
    return tuple(dict.fromkeys(n for n in named if n and n not in self.pictures))


class RowTable(Protocol):
  """Rows of a layout, pictures undecoded."""

  @property
  def where(self) -> pathlib.Path: ...

  @property
  def columns(self) -> Sequence[str]: ...

  def __len__(self) -> int: ...

  def row(self, i: int) -> Mapping[str, Any]:
    """Returns the values of the text columns of a row."""
    ...

  def name(self, i: int) -> str:
    """Returns what errors call a row."""
    ...

  def pictures(self, i: int, columns: Sequence[str]) -> tuple[StoredPicture, ...]:
    """Returns the pictures of a row."""
    ...

  def picture_key(self, i: int) -> str:
    """Returns what tells its first picture apart."""
    ...


@dataclasses.dataclass(frozen=True, slots=True)
class SeenObject:
  """What `adapt` puts under the column "object": a box and how to get the mask."""

  box: Box
  mask: Outline | None


def check_columns(table: RowTable, columns: Columns) -> None:
  """Raises a UserError that names the columns that are not in the table."""
  missing = [name for name in columns.required if name not in table.columns]
  if missing:
    raise UserError(
      f"{table.where}: no column {', '.join(map(repr, missing))}"
      f"{did_you_mean(missing[0], table.columns)}; it has {named(table.columns)}"
    )


def item_of(table: RowTable, i: int, columns: Columns, *, part: int = 0) -> BenchmarkItem:
  """Returns the item of a row; `part` is the place in the list of `columns.several`.

  Raises:
    UserError: a value is of the wrong kind.
  """
  row = table.row(i)
  try:
    if columns.adapt is not None:
      row = columns.adapt(row)
    if columns.several:
      row = {**row, columns.several: row[columns.several][part]}
    return _item(table, i, columns, row, part)
  except UserError:
    raise
  except UNEXPECTED as e:
    raise UserError(f"{table.name(i)}: {reason_of(e)}") from e


def _item(
  table: RowTable, i: int, columns: Columns, row: Mapping[str, Any], part: int
) -> BenchmarkItem:
  options = _options(row, columns.options)
  said = references(row.get(columns.answers)) if columns.answers else ()
  answer = place_of(said[0], options) if options and said else None
  item_id = text(row[columns.item_id], columns.item_id) if columns.item_id else str(i)
  key = text(row[columns.image_key], columns.image_key) if columns.image_key else ""
  shown = table.pictures(i, columns.pictures)
  seen = _measured(row, columns, shown[0]) if columns.pixel_box else row.get("object")
  return BenchmarkItem(
    item_id=f"{item_id}/{part}" if columns.several else item_id,
    pictures=shown,
    image_key=key or table.picture_key(i),
    question=text(row[columns.question], columns.question) if columns.question else "",
    references=said if answer is None else (options[answer],),
    options=options,
    answer=answer,
    hint=_optional(row, columns.hint),
    group=_optional(row, columns.group),
    category=_optional(row, columns.category),
    box=seen.box if isinstance(seen, SeenObject) else None,
    mask=seen.mask if isinstance(seen, SeenObject) else None,
    metadata=jsonio.plain({name: row[name] for name in columns.keep if name in row}),
  )


def _measured(row: Mapping[str, Any], columns: Columns, picture: StoredPicture) -> SeenObject:
  """The object of a box in pixels, for which the picture's size is looked up in its file."""
  x, y, w, h = (float(v) for v in row[columns.pixel_box])
  width, height = pictures.size(picture.stored(), name=picture.name)
  box = (y / height, x / width, (y + h) / height, (x + w) / width)
  outline = CocoMask(row[columns.outline], height, width, picture.name) if columns.outline else None
  return SeenObject(box, outline)


def references(value: Any) -> tuple[str, ...]:
  """Returns what was given as right, as it is written: some scorers count blank answers too.

  Of an object in a list, as VQAv2 has them, its "answer" counts.
  """
  if not isinstance(value, list | tuple):
    return rows_lib.answers(value)
  if len(value) > rows_lib.MAX_ANSWERS:
    raise rows_lib.BadRow(f"{len(value)} answers: more than {rows_lib.MAX_ANSWERS}")
  said = [x["answer"] if isinstance(x, dict) and "answer" in x else x for x in value]
  return tuple(text(x, "an answer") for x in said)


def _options(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
  if len(names) == 1 and isinstance(row.get(names[0]), list | tuple):
    found = [text(x, names[0]) for x in row[names[0]]]
  else:
    found = [_optional(row, name) for name in names]
  while found and not found[-1]:
    found.pop()
  if len(found) > len(LETTERS):
    raise rows_lib.BadRow(f"{len(found)} options; at most {len(LETTERS)} have letters")
  return tuple(found)


def place_of(answer: str, options: Sequence[str]) -> int:
  """Returns the place of the right option: of its letter, its number or, at last, its text."""
  if len(answer) == 1 and answer.upper() in LETTERS[: len(options)]:
    return LETTERS.index(answer.upper())
  if answer.isascii() and answer.isdigit() and int(answer) < len(options):
    return int(answer)
  if answer in options:
    return options.index(answer)
  raise rows_lib.BadRow(f"the answer {answer[:40]!r} is none of its {len(options)} options")


def text(value: Any, what: str) -> str:
  """Returns text as it is and whole numbers as they are written.

  Raises:
    BadRow: it is something else, or too long.
  """
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise rows_lib.BadRow(f"{what} is {type(value).__name__}, not text")
  if isinstance(value, float):
    if not value.is_integer():
      raise rows_lib.BadRow(f"{what} is {value}, not text")
    value = int(value)
  if len(found := str(value)) > rows_lib.MAX_TEXT:
    raise rows_lib.BadRow(f"{what} has {len(found)} characters, more than {rows_lib.MAX_TEXT}")
  return found


def _optional(row: Mapping[str, Any], name: str) -> str:
  value = row.get(name) if name else None
  return "" if value is None else text(value, name)


def named(names: Iterable[str]) -> str:
  """Returns some names for an error, and how many more there are."""
  names = [str(name)[:60] for name in names]
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return (", ".join(names[:_SHOWN]) or "nothing") + more


def reason_of(error: Exception) -> str:
  """Returns in one line why a row is not what it should be."""
  if isinstance(error, rows_lib.BadRow):
    return str(error)
  if isinstance(error, KeyError):
    return f"a row without {error}"
  reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
  return f"not what the benchmark has: {reason}"


class LayoutError(UserError):
  """Files of a layout are not there."""


def wrong_layout(
  path: pathlib.Path, missing: Sequence[str], expected: Sequence[str]
) -> LayoutError:
  """Returns the error of a folder that is not, or not wholly, what it should be.

  Args:
    path: the folder.
    missing: what was looked for in vain.
    expected: the files of the layout.
  """
  if not path.exists():
    return LayoutError(f"{path}: nothing is there; expected {'; '.join(expected)}")
  found = sorted(os.listdir(path)) if path.is_dir() else [f"the file {path.name}"]
  return LayoutError(
    f"{path}: no {named(missing)}; expected {'; '.join(expected)}; found {named(found)}"
  )
