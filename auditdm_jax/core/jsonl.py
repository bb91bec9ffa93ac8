# SPDX-License-Identifier: Apache-2.0
"""Append-only files of JSON, one row a line.

A row counts from the moment its newline is on disk. Whatever follows the last newline is a write
that was cut short: readers skip it, and the next append removes it.

In an object store nothing can be appended: there each append is an object of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import io
import json
import logging
import os
import pathlib
from typing import Any

from auditdm_jax.core import disk, jsonio, paths
from auditdm_jax.core.config import UserError


class JsonLines:
  """One append-only file of JSON lines, one writer at a time, any number of readers."""

  def __init__(self, path: str | os.PathLike, *, max_row_bytes: int = 1 << 20):
    self.path = paths.as_path(path)
    self._max_row_bytes = max_row_bytes

  def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows with one write and one fsync; on disk when it returns, or not there at all.

    Raises:
      ValueError: a row is too long; nothing has been written then.
      OSError: the disk does not take them.
    """
    lines = [self._encode(row) for row in rows]
    if not lines:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with disk.named(self.path), _locked(self.path) as f:
      end = _cut_torn_line(f)
      try:
        _write_all(f, b"".join(lines))
        os.fsync(f.fileno())
      except OSError:  # A full disk has taken some of the rows.
        with contextlib.suppress(OSError):
          f.truncate(end)
        raise

  def iterate(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (byte offset after the row, row) from byte `start` on, a torn last line left out.

    Raises:
      UserError: a complete line is not JSON; a missing file has no rows.
    """
    if not self.path.exists():
      return
    end = start
    with open(self.path, "rb") as f:
      f.seek(start)
      for line in f:
        if not line.endswith(b"\n"):
          logging.warning("%s: leaving out %d bytes of a torn last line", self.path, len(line))
          return
        end += len(line)
        yield end, self._decode(line, f"in the line before byte {end}")

  def rewind(self, step: int, *, field: str = "step") -> int:
    """Removes, atomically, the rows with `row[field] > step`; returns how many.

    Rows that come in the order of that field, as a run writes them, are not held: the file is cut.
    """
    start, cut, removed, in_order = 0, 0, 0, True
    for end, row in self.iterate():
      if row[field] > step:
        cut, removed = (cut if removed else start), removed + 1
      elif removed:
        in_order = False
      start = end
    if removed and in_order:
      with _locked(self.path) as f:
        f.truncate(cut)
        os.fsync(f.fileno())
    elif removed:
      kept = [row for _, row in self.iterate() if row[field] <= step]
      paths.write_bytes(self.path, b"".join(self._encode(row) for row in kept))
    return removed

  def _decode(self, line: bytes, where: str) -> dict[str, Any]:
    try:
      return json.loads(line)
    except ValueError as e:
      raise UserError(f"{self.path}: damaged {where}: {e}") from e

  def _encode(self, row: Mapping[str, Any]) -> bytes:
    line = json.dumps(jsonio.plain(row), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(line) > self._max_row_bytes:
      raise ValueError(
        f"{self.path}: a row has {len(line)} bytes, more than {self._max_row_bytes}; "
        f"its longest field is {max(row, key=lambda k: len(str(row[k])))!r}"
      )
    return line


class ObjectLines(JsonLines):
  """`JsonLines` in an object store: `<path>/<number>` for each append, from 1 on."""

  def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
      number = max(self._numbers(), default=0) + 1
      self._part(number).write_bytes(b"".join(map(self._encode, rows)))

  def iterate(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number of the row's object, row) of the objects after `start`."""
    for number in self._numbers():
      if number > start:
        for line in self._part(number).read_bytes().splitlines():
          yield number, self._decode(line, f"in object {number}")

  def rewind(self, step: int, *, field: str = "step") -> int:
    removed = 0
    for number in self._numbers():
      rows = [row for n, row in self.iterate(number - 1) if n == number]
      kept = [row for row in rows if row[field] <= step]
      removed += len(rows) - len(kept)
      if not kept:
        self._part(number).unlink()
      elif len(kept) < len(rows):
        self._part(number).write_bytes(b"".join(map(self._encode, kept)))
    return removed

  def _numbers(self) -> list[int]:
    return sorted(int(p.name) for p in self.path.iterdir()) if self.path.exists() else []

  def _part(self, number: int) -> Any:
    return self.path / f"{number:08d}"


def json_lines(path: str | os.PathLike, *, max_row_bytes: int = 1 << 20) -> JsonLines:
  """Returns the append-only rows of a path, wherever it is."""
  kind = ObjectLines if paths.is_remote(path) else JsonLines
  return kind(path, max_row_bytes=max_row_bytes)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[io.FileIO]:
  """Opens a file for appending while nobody else does."""
  while True:
    # Created if need be. Without a buffer nothing is left to be written when it is closed.
    f = open(path, "a+b", buffering=0)
    fcntl.flock(f, fcntl.LOCK_EX)
    # A rewind may have replaced the file between the open and the lock.
    if path.exists() and os.path.samestat(os.fstat(f.fileno()), path.stat()):
      break
    f.close()
  with f:
    yield f


def _write_all(f: io.FileIO, data: bytes) -> None:
  view = memoryview(data)
  while view:
    view = view[f.write(view) :]


def _cut_torn_line(f: io.FileIO) -> int:
  """Removes what follows the last newline; returns where the file ends then."""
  size = end = f.seek(0, os.SEEK_END)
  while end:
    start = max(0, end - (1 << 16))
    f.seek(start)
    newline = f.read(end - start).rfind(b"\n")
    if newline >= 0:
      end = start + newline + 1
      break
    end = start
  if end < size:
    logging.warning("%s: removing %d bytes of a torn last line", f.name, size - end)
    f.truncate(end)
  return end
