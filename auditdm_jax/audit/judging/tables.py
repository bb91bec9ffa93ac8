# SPDX-License-Identifier: Apache-2.0
"""Synonyms and kinds of things, from the table of this package and from a user's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import yaml

from auditdm_jax.audit.judging.normal import read
from auditdm_jax.audit.judging.plurals import is_plural_of, plurals
from auditdm_jax.audit.judging.tokens import Token
from auditdm_jax.core.config import UserError, did_you_mean

OWN = pathlib.Path(__file__).parent / "words.yaml"
_SECTIONS = ("synonyms", "kinds")
_MAX_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Lexicon:
  """What the judge knows about words.

  Attributes:
    rows: phrase → the rows of synonyms that it is in.
    above: phrase → the kinds that it is of, and theirs.
    longest: words of its longest phrase.
  """

  rows: Mapping[str, frozenset[int]]
  above: Mapping[str, frozenset[str]]
  longest: int

  def synonyms(self, a: str, b: str) -> bool:
    """Whether a row has both phrases."""
    return not self.rows.get(a, _NOTHING).isdisjoint(self.rows.get(b, _NOTHING))

  def related(self, a: str, b: str) -> bool:
    """Whether one phrase names a kind, or a synonym of a kind, that the other is of."""
    return self._is_a(a, b) or self._is_a(b, a)

  def _is_a(self, member: str, kind: str) -> bool:
    kinds = self.above.get(member, _NOTHING)
    return kind in kinds or any(self.synonyms(kind, k) for k in kinds)

  def merge(self, tokens: Sequence[Token]) -> list[Token]:
    """Tokens without those that say nothing, and with each phrase of the table as one token."""
    words = [t for t in tokens if not t.skip]
    out: list[Token] = []
    i = 0
    while i < len(words):
      length = next(self._lengths(words, i), 1)
      phrase = " ".join(t.text for t in words[i : i + length])
      out.append(words[i]._replace(text=phrase, kind="word") if length > 1 else words[i])
      i += length
    return out

  def _lengths(self, words: Sequence[Token], i: int) -> Iterator[int]:
    """Lengths, longest first, of the table's phrases of several words that begin at i."""
    for length in range(min(self.longest, len(words) - i), 1, -1):
      run = words[i : i + length]
      if any(t.cut not in ("", "-", ".") for t in run[1:]):
        continue
      phrase = " ".join(t.text for t in run)
      if phrase in self.rows or phrase in self.above:
        yield length


_NOTHING: frozenset = frozenset()


@functools.lru_cache(maxsize=16)
def load(path: str = "", *, plurals: bool = True) -> Lexicon:
  """Reads the package's table and, in addition, a user's.

  Args:
    path: of the user's table; "" = none.
    plurals: whether the plurals of its words are in it too.

  Raises:
    UserError: the file is not there, or is no such table.
  """
  synonyms, kinds = _read(OWN)
  if path:
    more, more_kinds = _read(pathlib.Path(path))
    synonyms, kinds = [*synonyms, *more], [*kinds, *more_kinds]
  rows: dict[str, set[int]] = {}
  for number, row in enumerate(synonyms):
    for phrase in _forms(row, plurals):
      rows.setdefault(phrase, set()).add(number)
  above: dict[str, set[str]] = {}
  for kind, members in kinds:
    for phrase in _forms(members, plurals):
      above.setdefault(phrase, set()).update(_forms([kind], plurals))
  alike = {phrase: {p for n in numbers for p in synonyms[n]} for phrase, numbers in rows.items()}
  closed = {phrase: frozenset(_closure(phrase, above, alike)) for phrase in above}
  return Lexicon(
    rows={phrase: frozenset(numbers) for phrase, numbers in rows.items()},
    above=closed,
    longest=max(len(phrase.split()) for phrase in (*rows, *above)),
  )


def _closure(phrase: str, above: Mapping[str, set[str]], alike: Mapping[str, set[str]]) -> set[str]:
  """All kinds above a phrase: a puppy is a dog, and a dog is an animal."""
  found: set[str] = set()
  todo = [phrase]
  while todo:
    one = todo.pop()
    names = {one, *map(_normal, alike.get(one, ()))}
    new = {kind for name in names for kind in above.get(name, ())} - found
    found |= new
    todo += new
  return found - {phrase}


def _forms(phrases: Iterable[str], plural: bool) -> Iterator[str]:
  """Normal forms of phrases, and those of their plurals."""
  for phrase in phrases:
    normal = _normal(phrase)
    yield normal
    head, _, last = normal.rpartition(" ")
    if plural and not any(is_plural_of(last, last.removesuffix(end)) for end in ("s", "es")):
      yield from (f"{head} {many}".strip() for many in plurals(last) if is_plural_of(many, last))


@functools.lru_cache(maxsize=4096)
def _normal(phrase: str) -> str:
  return read(phrase).text


def _read(path: pathlib.Path) -> tuple[list[list[str]], list[tuple[str, list[str]]]]:
  """The rows of synonyms, and (kind, members), of a file."""
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise UserError(f"judge.synonyms: {path} is larger than {_MAX_BYTES >> 20} MiB")
    data = yaml.safe_load(path.read_text("utf-8"))
  except FileNotFoundError as e:
    raise UserError(f"judge.synonyms: no file {path}") from e
  except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
    raise UserError(f"judge.synonyms: {path} is no YAML file: {' '.join(str(e).split())}") from e
  data = {} if data is None else data  # An empty file.
  if not isinstance(data, dict):
    raise UserError(f"judge.synonyms: {path} should have the keys {' and '.join(_SECTIONS)}")
  for key in data:
    if key not in _SECTIONS:
      raise UserError(
        f"judge.synonyms: {path} has an unknown key {key!r}{did_you_mean(str(key), _SECTIONS)}"
      )
  synonyms, kinds = data.get("synonyms") or [], data.get("kinds") or {}
  if not isinstance(synonyms, list) or not isinstance(kinds, dict):
    raise UserError(f"judge.synonyms: {path}: synonyms is a list of lists, kinds are lists by name")
  rows = [_row(path, f"synonyms[{i}]", row) for i, row in enumerate(synonyms)]
  named = [(str(kind), _row(path, f"kinds.{kind}", row)) for kind, row in kinds.items()]
  return rows, named


def _row(path: pathlib.Path, where: str, row: Any) -> list[str]:
  """A list of phrases; YAML reads an unquoted no as False."""
  if not isinstance(row, list) or not row:
    raise UserError(f"judge.synonyms: {path}: {where} should be a list of words, not {row!r}")
  for phrase in row:
    if not isinstance(phrase, str) or not _normal(phrase):
      raise UserError(
        f"judge.synonyms: {path}: {where} has {phrase!r}, which is no word (quote numbers, yes, no)"
      )
  return row
