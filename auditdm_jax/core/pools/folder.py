# SPDX-License-Identifier: Apache-2.0
"""Image files in folders, and the JSONL file that asks about them.

    DIR/heldout/…              a folder per split, each with its own questions.jsonl, or with one in
                               DIR that names the images from there
    DIR/…                      no such folders: the rows say splits, or images are shared out
    DIR/questions.jsonl        given itself: the images are those that its rows name

Folders are searched to any depth. A name in a row is a path from the folder of the JSONL file, or
from DIR.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import logging
import os
import pathlib
import unicodedata

from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.pools import rows as rows_lib
from auditdm_jax.core.pools.listed import Entry, FileSource, ListedPool, pool_of
from auditdm_jax.core.pools.remembered import Remembered
from auditdm_jax.core.pools.shares import NoSplit, Shares

QUESTIONS = "questions.jsonl"
_NEARBY = 2_000  # Names that an error may suggest.


@dataclasses.dataclass(frozen=True)
class _Layout:
  """What is where.

  Attributes:
    root: the folder whose images are found.
    part: the folder of the wanted split; None if there are no such folders.
    questions: the JSONL file, or None.
  """

  root: pathlib.Path | None
  part: pathlib.Path | None
  questions: pathlib.Path | None


def open_folder(
  directory: pathlib.Path,
  split: str,
  *,
  questions: pathlib.Path | None,
  shares: Shares,
  ids: Remembered,
) -> ListedPool:
  """Opens a split of a folder of images.

  Args:
    directory: the folder.
    split: the name of a folder in it, of a split that rows say, or of a share.
    questions: the JSONL file; None = its own questions.jsonl, if there is one.
    shares: how images are shared out if nothing gives splits.
    ids: the image ids that are known.

  Raises:
    UserError: no images, no such split, or rows that are wrong.
  """
  directory = _without_dots(directory)
  return _open(_layout(directory, split, questions, shares), split, shares, ids)


def open_jsonl(path: pathlib.Path, split: str, *, shares: Shares, ids: Remembered) -> ListedPool:
  """Opens a split of the images that a JSONL file names; see `open_folder`."""
  return _open(_Layout(None, None, path), split, shares, ids)


def _without_dots(path: pathlib.Path) -> pathlib.Path:
  """Returns the path without "..", so that two paths of one file are equal."""
  return path.resolve() if ".." in path.parts else path


def _layout(
  directory: pathlib.Path, split: str, questions: pathlib.Path | None, shares: Shares
) -> _Layout:
  part = directory / split
  if part.is_dir():
    own = part / QUESTIONS
    if questions is None and own.is_file():
      return _Layout(part, part, own)
    questions = questions or _questions_of(directory)
    return _Layout(directory if questions else part, part, questions)
  if others := [f"{name}/" for name in shares.of if (directory / name).is_dir()]:
    raise NoSplit(
      f"{directory}: neither a prepared data set nor a folder with images in {split}/, but there"
      f" is {', '.join(others)}"
    )
  return _Layout(directory, None, questions or _questions_of(directory))


def _questions_of(directory: pathlib.Path) -> pathlib.Path | None:
  if (directory / QUESTIONS).is_file():
    return directory / QUESTIONS
  if others := sorted(directory.glob("*.jsonl")):
    logging.warning("%s is not read: the questions of a folder are in %s", others[0], QUESTIONS)
  return None


def _open(layout: _Layout, split: str, shares: Shares, ids: Remembered) -> ListedPool:
  where = layout.part or layout.root or layout.questions or pathlib.Path()
  found = sorted(_walk(layout.root)) if layout.root else []
  faults = rows_lib.Faults(layout.questions or where)
  gathered = rows_lib.Gathered[str](faults)
  if layout.questions:
    folders = [layout.questions.parent, *([layout.root] if layout.root else [])]
    _read(layout.questions, _Names(folders, found), gathered, faults, layout.part)
  said = {} if layout.part else gathered.splits()
  faults.check()
  paths = list(dict.fromkeys([*found, *gathered.images]))
  if layout.part:
    paths = [path for path in paths if _is_in(path, layout.part)]
  if not paths:
    kinds = " ".join(sorted(pictures.SUFFIXES))
    raise UserError(
      f"{where}: neither a prepared data set nor a folder with images; known kinds: {kinds}"
    )
  entries = [Entry(FileSource(path), gathered.asked(path)) for path in paths]
  if layout.part:
    return ListedPool(entries, split, ids)
  given = {k: said[path] for k, path in enumerate(paths) if path in said}
  return pool_of(entries, given, split, where=where, shares=shares, ids=ids)


def _read(
  path: pathlib.Path,
  names: "_Names",
  gathered: rows_lib.Gathered[str],
  faults: rows_lib.Faults,
  part: pathlib.Path | None,
) -> None:
  """Reads the rows of a JSONL file; `part` is the folder of the wanted split, if there is one."""
  for number, fields in rows_lib.read_jsonl(path, faults):
    try:
      name, row = rows_lib.text_of(fields, "image"), rows_lib.parse(fields)
      image = names.find(name, hint=faults.wants_more)
      if part and row.split and _is_in(image, part) != (row.split == part.name):
        raise rows_lib.BadRow(f"the split {row.split!r}, but its image is another folder's")
    except rows_lib.BadRow as e:
      faults.add(faults.place(number), str(e))
    else:
      gathered.add(number, image, row)


def _is_in(path: str, folder: pathlib.Path) -> bool:
  return path.startswith(f"{folder}{os.sep}")


def _walk(root: pathlib.Path) -> Iterator[str]:
  """Yields the picture files in a folder to any depth; says what pictures it cannot read."""
  foreign: Counter[str] = Counter()
  seen: set[tuple[int, int]] = set()
  for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in seen:  # A link to a folder above.
      folders.clear()
      continue
    seen.add((place.st_dev, place.st_ino))
    folders[:] = sorted(name for name in folders if not _is_hidden(name))
    for name in files:
      kind = os.path.splitext(name)[1].lower()
      if _is_hidden(name):
        continue
      if kind in pictures.SUFFIXES:
        yield os.path.join(folder, name)
      elif kind in pictures.FOREIGN:
        foreign[kind] += 1
  if foreign:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(foreign.items()))
    logging.warning("%s: left out %s: convert them to PNG or JPEG", root, kinds)


def _refuse(error: OSError) -> None:
  raise UserError(f"{error.filename}: {error.strerror}") from error


def _is_hidden(name: str) -> bool:
  """Whether a file or folder is a system's own: `._a.png`, `.DS_Store`, `__MACOSX`, `@eaDir`."""
  return name.startswith((".", "@")) or name in ("__MACOSX", "lost+found", "$RECYCLE.BIN")


class _Names:
  """The files that the rows of a JSONL file may name.

  Args:
    folders: where relative names start.
    paths: the pictures that were found.
  """

  def __init__(self, folders: Iterable[pathlib.Path], paths: Iterable[str]):
    self._folders = list(dict.fromkeys(map(_without_dots, folders)))
    self._known = {_normal(path): path for path in paths}

  def find(self, name: str, *, hint: bool) -> str:
    """Returns the path of a named picture.

    Raises:
      BadRow: there is none.
    """
    if "://" in name:
      raise rows_lib.BadRow(f"the image {name[:80]!r} is an address: download it first")
    spellings = [name, _normal(name), unicodedata.normalize("NFD", name), name.replace("\\", "/")]
    for folder, spelled in itertools.product(self._folders, dict.fromkeys(spellings)):
      path = os.path.normpath(os.path.join(folder, spelled))
      if found := self._known.get(_normal(path)):
        return found
      if os.path.isfile(path):
        return path
    raise rows_lib.BadRow(f"no image {name[:200]!r}{self._nearest(name) if hint else ''}")

  def _nearest(self, name: str) -> str:
    start = f"{self._folders[0]}{os.sep}"
    names = [p.removeprefix(start) for p in itertools.islice(self._known.values(), _NEARBY)]
    deeper = [n for n in names if n.endswith(f"/{name}")]
    return f" (did you mean {deeper[0]!r}?)" if deeper else did_you_mean(name, names)


def _normal(path: str) -> str:
  """Returns a name as it is compared: é may be written as one character or as two."""
  return unicodedata.normalize("NFC", path)
