# SPDX-License-Identifier: Apache-2.0
"""What is asked about images: rows of a JSONL file or of a table, each one checked.

    {"image": …, "question": text, "answer": …, "id": …, "split": …}

`answer` (or `answers`), `id` and `split` may be left out or be null. An answer is text, a number,
true or false, or a list of those: what several people said stays several. Rows with the same image
and question, and without ids of their own, are one question with the answers of all of them.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import decimal
import json
import math
import pathlib
from typing import Any, Generic, TypeVar

from auditdm_jax.core.config import UserError

H = TypeVar("H")  # What an image is told apart by: its path, or the hash of its bytes.

MAX_TEXT = 10_000  # Characters of a question or an answer; records have a longest row.
MAX_ANSWERS = 1_000
_SHOWN = 3  # Bad rows that an error describes; the others are counted.


class BadRow(ValueError):
  """What is wrong with one row, without its place."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
  """A question about an image.

  Attributes:
    question: its text.
    answers: what was given as right, in the order of the source; () = nobody knows.
    key: the row's own id, or "".
  """

  question: str
  answers: tuple[str, ...]
  key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """One row: a question, if it asks one, and the split that it says the image is in, or ""."""

  asked: Asked | None
  split: str


class Faults:
  """The bad rows of a source, to be told together.

  Attributes:
    source: the file whose rows are being read.
  """

  def __init__(self, source: pathlib.Path):
    self.source = source
    self._told: list[str] = []
    self._count = 0

  @property
  def wants_more(self) -> bool:
    """Whether a further fault would be described, not only counted."""
    return len(self._told) < _SHOWN

  def place(self, number: int) -> str:
    """Returns what a row is called: file and line, or file and row from 0 on."""
    return f"{self.source}:{number}"

  def add(self, place: str, what: str) -> None:
    self._count += 1
    if self.wants_more:
      self._told.append(f"{place}: {what}")

  def check(self) -> None:
    """Raises a UserError if there is a bad row."""
    if self._count:
      more = self._count - len(self._told)
      raise UserError("; ".join(self._told) + (f"; and {more} more" if more else ""))


class Gathered(Generic[H]):
  """Rows by image, as they come: what is asked about each, and its split.

  Args:
    faults: where rows that contradict each other are told.
    same_ids: whether several rows may have one id: it is that of the first one's question, which
      others may answer too.
  """

  def __init__(self, faults: Faults, *, same_ids: bool = False):
    self._faults, self._same_ids = faults, same_ids
    self._answers: dict[H, dict[tuple[str, str], list[str]]] = {}
    self._splits: dict[H, tuple[str, str]] = {}
    self._first: dict[H, str] = {}  # The place of its first row.
    self._keys: dict[str, tuple[str, H, str]] = {}  # The first row with an id: place, about what.

  def add(self, number: int, image: H, row: Row) -> None:
    """Takes row `number`, which is about `image`."""
    place = self._faults.place(number)
    self._first.setdefault(image, place)
    asked = self._answers.setdefault(image, {})
    if row.split:
      split, first = self._splits.setdefault(image, (row.split, place))
      if split != row.split:
        self._faults.add(
          place, f"the split {row.split!r}, but its image is in {split!r} in {first}"
        )
    if row.asked is None:
      return
    key, question = row.asked.key, row.asked.question
    if key:
      first, *about = self._keys.setdefault(key, (place, image, question))
      if first != place and not self._same_ids:
        self._faults.add(place, f"the id {key[:40]!r} is that of {first} too")
      if about != [image, question]:
        key = ""
    asked.setdefault((question, key), []).extend(row.asked.answers)

  @property
  def images(self) -> list[H]:
    """The images that have a row, in the order of their first ones."""
    return list(self._first)

  def asked(self, image: H) -> tuple[Asked, ...]:
    """Returns what is asked about an image; () for one without a row."""
    rows = self._answers.get(image, {}).items()
    return tuple(Asked(question, tuple(said), key) for (question, key), said in rows)

  def splits(self) -> dict[H, str]:
    """Returns the split of every image that has a row; {} if no row says one."""
    if self._splits:
      for image, place in self._first.items():
        if image not in self._splits:
          self._faults.add(place, "no split for its image, but other rows have a split")
    return {image: split for image, (split, _) in self._splits.items()}


def read_jsonl(path: pathlib.Path, faults: Faults) -> Iterator[tuple[int, Mapping[str, Any]]]:
  """Yields (line number, object) of the lines that are objects; blank ones are nothing."""
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):  # Cut at newlines only: U+2028 is text in JSON.
      try:
        row = _parse_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
      except BadRow as e:
        faults.add(faults.place(number), str(e))
        if line[:2] in (b"\xff\xfe", b"\xfe\xff") and number == 1:
          return  # All else is of that kind.
        continue
      if row is not None:
        yield number, row


def _parse_line(line: bytes) -> Mapping[str, Any] | None:
  if not line.strip():
    return None
  try:
    row = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as e:
    utf16 = line[:2] in (b"\xff\xfe", b"\xfe\xff")
    hint = ": it looks like UTF-16" if utf16 else f" (byte 0x{line[e.start]:02x})"
    raise BadRow(f"not UTF-8{hint}; save the file as UTF-8") from None
  except RecursionError:
    raise BadRow("not JSON that can be read: nested too deeply") from None
  except ValueError as e:
    raise BadRow(f"not JSON ({e})") from None
  if not isinstance(row, dict):
    raise BadRow(
      f'{_name(row)} and not an object {{"image": …, "question": …}}: one per line is wanted'
    )
  return row


def parse(row: Mapping[str, Any], *, ask: bool = True) -> Row:
  """Checks a row.

  Args:
    row: the values by name, missing ones left out.
    ask: whether there must be a question.

  Raises:
    BadRow: a value is of the wrong kind.
  """
  asked = None
  if ask or row.get("question") is not None:
    if "question" not in row:
      raise BadRow(f"no question; the row has {', '.join(map(repr, row)) or 'nothing'}"[:200])
    question = _text(row["question"], "question")
    said = answers(row.get("answers")) or answers(row.get("answer"))
    asked = Asked(question, said, _label(row.get("id"), "id"))
  return Row(asked, _label(row.get("split"), "split"))


def answers(value: Any) -> tuple[str, ...]:
  """Returns what was given as right, as text: numbers as they are written, yes and no for bools.

  Blank texts and nulls are no answers; of an object in a list, as VQAv2 has them, its "answer"
  counts.

  Raises:
    BadRow: it is of another kind.
  """
  if isinstance(value, list | tuple):
    if len(value) > MAX_ANSWERS:
      raise BadRow(f"{len(value)} answers: more than {MAX_ANSWERS}")
    said = [x["answer"] if isinstance(x, dict) and "answer" in x else x for x in value]
  else:
    said = [value]
  return tuple(text for x in said if (text := _answer(x)))


def _answer(value: Any) -> str:
  """Returns one answer as text; "" for what is no answer."""
  if value is None:
    return ""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float):
    if math.isnan(value):  # How pandas and numpy write that there is none.
      return ""
    if math.isinf(value):
      raise BadRow(f"the answer is {value}")
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
  if isinstance(value, int | decimal.Decimal):
    return str(value)
  if not isinstance(value, str):
    raise BadRow(f"the answer is {_name(value)}: text, a number or a list of those is wanted")
  return _text(value, "answer") if value.strip() else ""


def text_of(row: Mapping[str, Any], key: str) -> str:
  """Returns a text that must be there.

  Raises:
    BadRow: it is missing, blank, too long, or no text.
  """
  if key not in row:
    raise BadRow(f"no {key}; the row has {', '.join(map(repr, row)) or 'nothing'}"[:200])
  return _text(row[key], key)


def _text(value: Any, what: str) -> str:
  if not isinstance(value, str):
    raise BadRow(f"the {what} is {_name(value)}, not text")
  if not value.strip():
    raise BadRow(f"the {what} is blank")
  if len(value) > MAX_TEXT:
    raise BadRow(f"the {what} has {len(value)} characters: more than {MAX_TEXT}")
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise BadRow(f"the {what} has half of a surrogate pair, {value[e.start : e.end]!r}") from None
  return value


def _label(value: Any, what: str) -> str:
  """Returns an id or a split; "" if there is none."""
  if value is None or (isinstance(value, str) and not value.strip()):
    return ""
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  return _text(value, what)


def _name(value: Any) -> str:
  """Returns a short description of a value of the wrong kind."""
  kinds: dict[type, Callable[[Any], str]] = {
    type(None): lambda x: "null",
    list: lambda x: f"a list of {len(x)}",
    dict: lambda x: "an object",
    bool: lambda x: str(x).lower(),
    bytes: lambda x: f"{len(x)} bytes",
  }
  return kinds.get(type(value), lambda x: repr(x)[:40])(value)
