# SPDX-License-Identifier: Apache-2.0
"""Files and folders of a run, on this machine or in an object store (gs://bucket/run).

In an object store, a file is whole or not there, and nothing can be appended to it.
"""

from collections.abc import Iterator
import contextlib
import errno
import itertools
import os
import pathlib
import tempfile
from typing import Any

from auditdm_jax.core import disk
from auditdm_jax.core.config import UserError

_counter = itertools.count()


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether it is in an object store, as gs://bucket/run is."""
  return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> Any:
  """Returns a `pathlib.Path`, or etils' twin for an object store: pathlib takes gs:// for gs:/."""
  if not is_remote(path):
    return pathlib.Path(path)
  # Only here: the image server's environment has neither.
  from etils import epath
  import fsspec.config

  # What other processes write must be seen.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  return epath.Path(path)


def shared() -> pathlib.Path:
  """Returns the folder of configs/, data/ and examples/: the checkout, or in an installed one."""
  package = pathlib.Path(__file__).parents[1]
  return share if (share := package / "share").is_dir() else package.parent


def made(folder: str | os.PathLike[str]) -> Any:
  """Makes the folder of a run if it is not there; returns its absolute path.

  Raises:
    UserError: it cannot be made, or nothing can be written there.
  """
  path = as_path(folder)
  path = path if is_remote(path) else path.absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{folder}: no folder can be made: {e.strerror or e}") from e
  if not is_remote(folder):
    _check_writable(path, folder)
  return path


def _check_writable(path: pathlib.Path, folder: str | os.PathLike[str]) -> None:
  """Looks whether files can be made in a folder; that its disk is full is another matter."""
  try:
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(f"{folder}: nothing can be written there: {e.strerror or e}") from e


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder of this machine to write files into; those of a remote one are copied there then."""
  there = as_path(folder)
  if not is_remote(folder):
    yield there
    return
  with tempfile.TemporaryDirectory() as root:
    local = pathlib.Path(root, there.name)
    local.mkdir()
    yield local
    for path in sorted(local.rglob("*")):
      if path.is_file():
        (there / path.relative_to(local).as_posix()).write_bytes(path.read_bytes())


@contextlib.contextmanager
def reading(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """The folder, or for the time of the block a copy of a remote one on this machine."""
  there = as_path(folder)
  if not is_remote(folder):
    yield there
    return
  with tempfile.TemporaryDirectory() as root:
    local = pathlib.Path(root, there.name)
    local.mkdir()
    _copy(there, local)
    yield local


def _copy(there: Any, local: pathlib.Path) -> None:
  """Copies what is in a remote folder, and in those below it, into one of this machine."""
  for path in there.iterdir():
    if path.is_dir():
      (local / path.name).mkdir()
      _copy(path, local / path.name)
    else:
      (local / path.name).write_bytes(path.read_bytes())


def write_bytes(path: str | os.PathLike, data: bytes, *, durable: bool = True) -> None:
  """Writes a file that is either the old one or the new one, never a part.

  Durable files hold this after a crash of the machine too, at the price of two fsyncs.
  """
  there = as_path(path)
  if is_remote(path):
    there.write_bytes(data)
    return
  there.parent.mkdir(parents=True, exist_ok=True)
  tmp = there.with_name(f".{there.name}.{os.getpid()}-{next(_counter)}.tmp")
  try:
    with disk.named(there), open(tmp, "xb") as f:
      f.write(data)
      f.flush()
      if durable:
        os.fsync(f.fileno())
    os.replace(tmp, there)
  finally:
    tmp.unlink(missing_ok=True)
  if durable:
    _sync_dir(there.parent)


def _sync_dir(path: pathlib.Path) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
