# SPDX-License-Identifier: Apache-2.0
"""The files as the authors of a benchmark publish them: what their readers have in common.

A reader returns compact rows, from which items are made when they are asked for.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any, Generic, TypeVar

from tensorflow_datasets.core import hashing

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.layouts.base import UNEXPECTED, named, reason_of, wrong_layout
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.rows import BadRow

T = TypeVar("T")
_SHOWN = 3


class RawItems(Generic[T]):
  """Rows of one split, and how an item is made of each.

  Args:
    rows: compact, as there may be hundreds of thousands.
    make: row -> item.
  """

  def __init__(self, rows: Sequence[T], make: Callable[[T], BenchmarkItem]):
    self._rows, self._make = rows, make

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> BenchmarkItem:
    return self._make(self._rows[i])


def whole(items: Sequence[BenchmarkItem]) -> "RawItems[BenchmarkItem]":
  """Returns items that are made already.

  Raises:
    BadRow: there are none.
  """
  if not items:
    raise BadRow("no questions")
  return RawItems(items, lambda item: item)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raw:
  """A benchmark's own files.

  Attributes:
    read: (folder, their split) -> items.
    splits: our splits -> theirs.
    files: what is expected, with {split} for their split.
  """

  read: Callable[[pathlib.Path, str], RawItems]
  splits: Mapping[str, str]
  files: tuple[str, ...]

  kind = "raw"

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    return tuple(file.replace("{split}", self.splits[split]) for file in self.files)

  def open(self, path: pathlib.Path, split: str) -> RawItems:
    """Opens a split; see `layouts.open_items`."""
    if not path.is_dir():
      raise wrong_layout(path, self.expected(split)[:1], self.expected(split))
    try:
      return self.read(path, self.splits[split])
    except MissingFiles as e:
      raise wrong_layout(path, e.names, self.expected(split)) from e
    except UserError:
      raise
    except UNEXPECTED as e:
      expected = "; ".join(self.expected(split))
      raise UserError(f"{path}: {reason_of(e)}; expected {expected}") from e


class MissingFiles(Exception):
  """Files that are not there.

  Attributes:
    names: relative to the folder.
  """

  def __init__(self, *names: str):
    super().__init__(*names)
    self.names = names


def read_json(folder: pathlib.Path, *names: str, hook: Callable[[dict], Any] | None = None) -> Any:
  """Returns the content of the first of these files that is there.

  Args:
    folder: where they are.
    *names: alternatives.
    hook: makes an object compact as soon as it is parsed.

  Raises:
    MissingFiles: none is.
    UserError: it is not JSON.
  """
  for name in names:
    if (folder / name).is_file():
      if hook is None:
        return jsonio.read_json(folder / name)
      try:
        return json.loads((folder / name).read_bytes(), object_hook=hook)
      except (ValueError, RecursionError) as e:
        raise UserError(f"{folder / name}: not JSON: {e}") from e
  raise MissingFiles(names[0])


def listed(content: Any, key: str, file: str) -> list:
  """Returns a list of objects that a JSON file has under a key."""
  if not isinstance(content, dict) or not isinstance(content.get(key), list):
    raise BadRow(f"{file} has no list {key!r}")
  return content[key]


def file_of(root: pathlib.Path, *names: str) -> pathlib.Path:
  """Returns the first of these files that is there.

  Raises:
    MissingFiles: none is.
  """
  for name in names:
    if (root / name).is_file():
      return root / name
  raise MissingFiles(names[0])


def folder_of(root: pathlib.Path, *names: str) -> pathlib.Path:
  """Returns the first of these folders that is there.

  Raises:
    MissingFiles: none is.
  """
  for name in names:
    if (root / name).is_dir():
      return root / name
  raise MissingFiles(f"{names[0]}/")


def check_pictures(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Checks that every picture is there, by one listing of the folder where that will do.

  Raises:
    UserError: some are not.
  """
  names = set(names)
  there: Collection[str] = set(os.listdir(folder))
  missing = sorted(x for x in names - set(there) if not (folder / x).is_file())
  if missing:
    raise UserError(
      f"{folder}: {len(missing)} of {len(names)} pictures are not there: {named(missing[:_SHOWN])}"
    )


def tfds_order(keys: Sequence[Any], split: str) -> list[int]:
  """Returns the places of these keys in the order in which TFDS writes the split.

  TFDS shuffles by a hash of key and split, so that a slice such as big_vision's minival,
  validation[-10240:], is the same questions everywhere.
  """
  hasher = hashing.Hasher(split)
  hashes = [hasher.hash_key(key) for key in keys]
  return sorted(range(len(keys)), key=hashes.__getitem__)
