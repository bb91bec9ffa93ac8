# SPDX-License-Identifier: Apache-2.0
"""What a run leaves on disk: append-only records, images named by their content, atomic JSON.

A record is one line of JSON and counts from the moment its newline is on disk. Whatever follows the
last newline of a shard is a write that was cut short: readers skip it, the next append removes it,
and the run that resumes writes it again, since its key is not among `Records.keys`.

A folder may be one of an object store (gs://bucket/run), where an object is whole or not there and
nothing can be appended: there each append is an object of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import logging
import math
import os
import pathlib
import re
import tempfile
from typing import Any, BinaryIO

import ml_collections
import numpy as np
from PIL import Image

from auditdm_jax.core.config import UserError

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # No dash: it separates the name from the process.
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_counter = itertools.count()


def plain(obj: Any) -> Any:
  """Returns `obj` in terms of JSON: numpy, dataclasses and paths made plain, NaN and ±inf null."""
  if obj is None or isinstance(obj, str | bool | int):
    return obj
  if isinstance(obj, float | np.floating):
    return float(obj) if math.isfinite(obj) else None
  if isinstance(obj, np.generic | np.ndarray):
    return plain(obj.tolist())
  if isinstance(obj, Mapping | ml_collections.ConfigDict):
    return {str(key): plain(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [plain(value) for value in obj]
  if isinstance(obj, set | frozenset):
    return sorted(plain(value) for value in obj)
  if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
    return {f.name: plain(vars(obj)[f.name]) for f in dataclasses.fields(obj)}
  if isinstance(obj, os.PathLike):
    return os.fspath(obj)
  raise TypeError(f"cannot be written as JSON: {type(obj).__name__} {obj!r}")


def canonical_hash(obj: Any) -> str:
  """Returns 32 hex digits that depend on the content of a JSON-like object, not on key order."""
  text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_remote(path: str | os.PathLike) -> bool:
  """Whether it is in an object store, as gs://bucket/run is."""
  return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> Any:
  """A `pathlib.Path`, or its twin of etils for an object store; pathlib takes gs:// for gs:/."""
  if not is_remote(path):
    return pathlib.Path(path)
  # Only here: the image server's environment has neither.
  from etils import epath
  import fsspec.config

  # What other processes write must be seen.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  return epath.Path(path)


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder of this machine to write files into; those of a remote one are copied there then."""
  folder = as_path(folder)
  if not is_remote(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory() as root:
    local = pathlib.Path(root, folder.name)
    local.mkdir()
    yield local
    for path in sorted(local.rglob("*")):
      if path.is_file():
        (folder / path.relative_to(local).as_posix()).write_bytes(path.read_bytes())


@contextlib.contextmanager
def reading(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """The folder, or for the time of the block a copy of a remote one on this machine."""
  folder = as_path(folder)
  if not is_remote(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory() as root:
    local = pathlib.Path(root, folder.name)
    local.mkdir()
    for path in folder.iterdir():
      (local / path.name).write_bytes(path.read_bytes())
    yield local


def write_bytes(path: str | os.PathLike, data: bytes, *, durable: bool = True) -> None:
  """Writes a file that is either the old one or the new one, never a part.

  Durable files hold this after a crash of the machine too, at the price of two fsyncs.
  """
  path = as_path(path)
  if is_remote(path):
    path.write_bytes(data)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  tmp = path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}.tmp")
  try:
    with open(tmp, "xb") as f:
      f.write(data)
      f.flush()
      if durable:
        os.fsync(f.fileno())
    os.replace(tmp, path)
  finally:
    tmp.unlink(missing_ok=True)
  if durable:
    _sync_dir(path.parent)


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes JSON atomically, indented, keys in their order."""
  text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
  write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is not JSON; a file that is not there stays a FileNotFoundError.
  """
  try:
    return json.loads(as_path(path).read_bytes())
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: not JSON: {e}") from e


class JsonLines:
  """One append-only file of JSON lines, one writer at a time, any number of readers."""

  def __init__(self, path: str | os.PathLike, *, max_row_bytes: int = 1 << 20):
    self.path = as_path(path)
    self._max_row_bytes = max_row_bytes

  def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows with one write and one fsync; on disk when it returns.

    Raises:
      ValueError: a row is too long; nothing has been written then.
    """
    lines = [self._encode(row) for row in rows]
    if not lines:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(self.path) as f:
      _cut_torn_line(f)
      f.write(b"".join(lines))
      f.flush()
      os.fsync(f.fileno())

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
    """Removes, atomically, the rows with `row[field] > step`; returns how many."""
    rows = [row for _, row in self.iterate()]
    kept = [row for row in rows if row[field] <= step]
    if len(kept) < len(rows):
      write_bytes(self.path, b"".join(self._encode(row) for row in kept))
    return len(rows) - len(kept)

  def _decode(self, line: bytes, where: str) -> dict[str, Any]:
    try:
      return json.loads(line)
    except ValueError as e:
      raise UserError(f"{self.path}: damaged {where}: {e}") from e

  def _encode(self, row: Mapping[str, Any]) -> bytes:
    line = json.dumps(plain(row), separators=(",", ":"), allow_nan=False).encode() + b"\n"
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
  """The append-only rows of a path, wherever it is."""
  kind = ObjectLines if is_remote(path) else JsonLines
  return kind(path, max_row_bytes=max_row_bytes)


class Records:
  """Append-only shards `<dir>/<name>-<process>.jsonl`, one per kind of record and process."""

  def __init__(
    self,
    dir: str | os.PathLike,
    process: int = 0,
    *,
    processes: int = 1,
    max_row_bytes: int = 1 << 20,
  ):
    """Opens the folder, which is made if it is not there.

    Args:
      dir: the folder.
      process: this one, which writes a shard of its own.
      processes: how many there are.
      max_row_bytes: longest row.
    """
    self.dir = as_path(dir)
    self.dir.mkdir(parents=True, exist_ok=True)
    self._process, self._processes = process, processes
    self._max_row_bytes = max_row_bytes
    self._keys: dict[tuple, tuple[dict[pathlib.Path, int], set]] = {}

  def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows to this process's shard; see `JsonLines.append`."""
    self._shard(name).append(rows)

  def read(self, name: str) -> list[dict[str, Any]]:
    """Returns the rows of all processes, shard by shard."""
    return list(self.iterate(name))

  def iterate(self, name: str) -> Iterator[dict[str, Any]]:
    """Yields what `read` returns without holding it all."""
    for shard in self._shards(name):
      for _, row in shard.iterate():
        yield row

  def keys(self, name: str, *fields: str) -> set:
    """Returns the values of one field, or tuples of several, over all rows: what is done already.

    Reads only what was added since the last call. The set belongs to this object: look things up
    in it, do not change it.
    """
    ends, found = self._keys.setdefault((name, fields), ({}, set()))
    for shard in self._shards(name):
      for end, row in shard.iterate(ends.get(shard.path, 0)):
        ends[shard.path] = end
        found.add(row[fields[0]] if len(fields) == 1 else tuple(row[f] for f in fields))
    return found

  def rewind(self, name: str, step: int, *, field: str = "step") -> int:
    """Removes the rows of steps after `step`, which a resumed run writes again.

    Each process sees to its own shard, and to its share of those that an earlier run of more
    processes left. Other `Records` of the same folder must be made anew afterwards. Returns how
    many were removed.
    """
    self._keys = {key: value for key, value in self._keys.items() if key[0] != name}
    return sum(
      shard.rewind(step, field=field)
      for shard in self._shards(name)
      if int(shard.path.stem.rpartition("-")[2]) % self._processes == self._process
    )

  def _shard(self, name: str) -> JsonLines:
    if not _NAME.fullmatch(name):
      raise ValueError(f"records are named like 'probes' or 'mode_rates', not {name!r}")
    path = self.dir / f"{name}-{self._process}.jsonl"
    return json_lines(path, max_row_bytes=self._max_row_bytes)

  def _shards(self, name: str) -> list[JsonLines]:
    paths = self._shard(name).path.parent.glob(f"{name}-*.jsonl")
    return [json_lines(p) for p in sorted(paths, key=lambda p: (len(p.name), p.name))]


class Images:
  """Lossless images `<dir>/<image_id>.png`; the id is the sha256 of the shape and the RGB bytes."""

  def __init__(self, dir: str | os.PathLike):
    self.dir = as_path(dir)
    self.dir.mkdir(parents=True, exist_ok=True)

  @staticmethod
  def id_of(image: np.ndarray) -> str:
    """Returns the id of u8[H,W,3] without storing it."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise ValueError(f"an image is u8[H,W,3], got {image.dtype}{list(image.shape)}")
    digest = hashlib.sha256(np.asarray(image.shape, "<u4").tobytes())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()

  def put(self, image: np.ndarray) -> str:
    """Stores u8[H,W,3] if it is not there yet; returns its id.

    Not fsynced, which would cost more than making the image: the name is the hash of the content,
    so damage by a crash of the machine is seen when it is read, and the same draw makes it again.
    """
    image_id = self.id_of(image)
    path = self.path(image_id)
    if not path.exists():
      png = io.BytesIO()
      Image.fromarray(np.ascontiguousarray(image)).save(png, "PNG", compress_level=1)
      write_bytes(path, png.getvalue(), durable=False)
    return image_id

  def get(self, image_id: str) -> np.ndarray:
    """Returns u8[H,W,3].

    Raises:
      KeyError: there is no such image.
      UserError: the file is damaged.
    """
    path = self.path(image_id)
    try:
      with path.open("rb") as file, Image.open(file) as f:
        image = np.asarray(f.convert("RGB"))
    except FileNotFoundError:
      raise KeyError(f"no image {image_id} in {self.dir}") from None
    except (OSError, SyntaxError, ValueError) as e:
      raise UserError(f"{path}: damaged ({e}); remove it") from e
    if self.id_of(image) != image_id:
      raise UserError(f"{path}: damaged, its content is not what its name says; remove it")
    return image

  def path(self, image_id: str) -> pathlib.Path:
    """Returns where the image is or would be."""
    if not _IMAGE_ID.fullmatch(image_id):
      raise ValueError(f"not an image id: {image_id!r}")
    return self.dir / f"{image_id}.png"

  def __contains__(self, image_id: str) -> bool:
    return self.path(image_id).exists()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file for appending while nobody else does."""
  while True:
    f = open(path, "a+b")  # Created if need be.
    fcntl.flock(f, fcntl.LOCK_EX)
    # A rewind may have replaced the file between the open and the lock.
    if path.exists() and os.path.samestat(os.fstat(f.fileno()), path.stat()):
      break
    f.close()
  with f:
    yield f


def _cut_torn_line(f: BinaryIO) -> None:
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


def _sync_dir(path: pathlib.Path) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
