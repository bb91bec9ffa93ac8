# SPDX-License-Identifier: Apache-2.0
"""Pictures that are listed in memory: files of a folder, or cells of a table, and their questions.

What is not in memory are the pictures themselves: each is read and decoded when it is asked for.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import pathlib
from typing import Protocol

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.pools import base
from auditdm_jax.core.pools.remembered import Remembered, version_of
from auditdm_jax.core.pools.rows import Asked
from auditdm_jax.core.pools.shares import NoSplit, Shares


class Source(Protocol):
  """Where one picture is stored."""

  @property
  def name(self) -> str:
    """File, or file and row."""
    ...

  def stored(self) -> base.Stored:
    """Returns the picture, undecoded."""
    ...

  def version(self) -> str:
    """Returns what changes when the picture does; "" if that is not known."""
    ...


@dataclasses.dataclass(frozen=True, slots=True)
class FileSource:
  """A picture file."""

  path: str

  @property
  def name(self) -> str:
    return self.path

  def stored(self) -> str:
    return self.path

  def version(self) -> str:
    try:
      return version_of(self.path)
    except OSError as e:
      raise UserError(f"{self.path} cannot be read: {e.strerror}") from e


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """A picture and what is asked about it."""

  source: Source
  asked: tuple[Asked, ...]


class ListedPool(base.Pool):
  """The entries of one split."""

  def __init__(self, entries: Sequence[Entry], split: str, ids: Remembered):
    super().__init__(split, ids)
    self._entries = entries

  def __len__(self) -> int:
    return len(self._entries)

  def questions(self, i: int) -> tuple[str, ...]:
    return tuple(asked.question for asked in self._entries[i].asked)

  def answers(self, i: int) -> tuple[tuple[str, ...], ...]:
    return tuple(asked.answers for asked in self._entries[i].asked)

  def question_ids(self, i: int) -> tuple[str, ...]:
    places = super().question_ids(i)
    return tuple(asked.key or p for asked, p in zip(self._entries[i].asked, places, strict=True))

  def _stored(self, i: int) -> base.Stored:
    return self._entries[i].source.stored()

  def _name(self, i: int) -> str:
    return self._entries[i].source.name

  def _version(self, i: int) -> str:
    return self._entries[i].source.version()


def pool_of(
  entries: Sequence[Entry],
  given: Mapping[int, str],
  split: str,
  *,
  where: pathlib.Path,
  shares: Shares,
  ids: Remembered,
) -> ListedPool:
  """Returns the pool of one split.

  Args:
    entries: those of all splits.
    given: the split of each entry that is in one, by place; {} if the source gives no splits.
    split: which one.
    where: the source, for errors.
    shares: how images are shared out if the source gives no splits.
    ids: the image ids that are known.

  Raises:
    NoSplit: there is no such split, or it is empty.
    UserError: pictures cannot be read.
  """
  if given:
    chosen = [entries[k] for k, name in given.items() if name == split]
    if left_out := len(entries) - len(given):
      logging.warning("%s: %d images are in no split and left out", where, left_out)
    if not chosen:
      known = sorted(set(given.values()))
      hint = did_you_mean(split, known)
      raise NoSplit(f"{where}: no split {split!r}{hint}; splits: {', '.join(known)[:300]}")
    return ListedPool(chosen, split, ids)
  shares.check(split, str(where))
  image_ids = ListedPool(entries, split, ids).image_ids(range(len(entries)))
  chosen = [entry for entry, i in zip(entries, image_ids, strict=True) if shares.split(i) == split]
  if not chosen:
    raise NoSplit(
      f"{where}: none of its {len(entries)} images falls to the split {split!r}, whose share is"
      f" {shares.of[split]:.0%}; give it a larger share, or say splits in the rows"
    )
  return ListedPool(chosen, split, ids)
