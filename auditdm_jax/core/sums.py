# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of files beside them: what flips on a disk or is copied in part is noticed.

The file is that of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks a folder too. It is
written where the format itself has no checksums: beside checkpoints of Orbax and model folders.
"""

from collections.abc import Iterable
from concurrent import futures
import hashlib
import os
import pathlib
import re

from auditdm_jax.core import paths

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_PIECE = 1 << 20  # Bytes that are in memory at a time.
_THREADS = 4  # hashlib lets other threads run meanwhile.


def write(folder: pathlib.Path, files: Iterable[pathlib.Path] | None = None) -> None:
  """Writes the sums of files into their folder.

  Args:
    folder: the folder.
    files: which of its files; None = all that are there, also in folders below.
  """
  wanted = folder.rglob("*") if files is None else files
  found = sorted(path for path in wanted if path.is_file() and path != folder / NAME)
  names = [path.relative_to(folder).as_posix() for path in found]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    lines = [f"{digest}  {name}\n" for digest, name in zip(pool.map(_digest, found), names)]
  # Not durable: after a crash of the machine an empty file says that the rest may be empty too.
  paths.write_bytes(folder / NAME, "".join(lines).encode(), durable=False)


def wrong(folder: pathlib.Path, *, share: tuple[int, int] = (0, 1)) -> str:
  """Returns the first file that is not what was written; "" if all are, or nothing was noted.

  Args:
    folder: a folder with or without sums.
    share: (i, n): only every n-th file from the i-th on, when n processes share the work.
  """
  try:
    text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
  except (FileNotFoundError, NotADirectoryError):
    return ""
  except IsADirectoryError:
    return NAME
  rows = [_LINE.fullmatch(line) for line in text.splitlines()]
  parsed = [(row[1], row[2]) for row in rows if row and _is_inside(row[2])]
  if not text.endswith("\n") or len(parsed) < len(rows):
    return NAME
  mine = parsed[share[0] :: share[1]]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    digests = pool.map(lambda row: _digest(folder / row[1]), mine)
    return next((name for (want, name), got in zip(mine, digests) if want != got), "")


def _is_inside(name: str) -> bool:
  """Returns whether a name, which may be a stranger's, stays in its folder."""
  path = pathlib.PurePosixPath(name)
  return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _digest(path: str | os.PathLike) -> str:
  """Returns the 64 hex digits of a file; "" if there is none."""
  digest = hashlib.sha256()
  try:
    with open(path, "rb", buffering=0) as f:
      while piece := f.read(_PIECE):
        digest.update(piece)
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
    return ""
  return digest.hexdigest()
