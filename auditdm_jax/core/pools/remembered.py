# SPDX-License-Identifier: Apache-2.0
"""What is known about files that have not changed: image ids, hashes of embedded pictures.

Decoding and hashing a photograph costs 5 to 200 ms, and every stage of every run asks for the id.
Values are kept in the user's cache under what they follow from: path, size and times of a file.
"""

from collections.abc import Mapping
import errno
import logging
import os
import pathlib
import stat
import time
from typing import Any

from auditdm_jax.core import jsonio, jsonl
from auditdm_jax.core.config import UserError

# A file that is as young may change again without another size or time: some file systems count
# in steps of two seconds.
_YOUNG_NS = 2 * 10**9
_ROW_BYTES = 1 << 26


class Remembered:
  """A table of JSON values by key, which outlives the process.

  It is a cache: without a folder, or in one that cannot be written, it forgets.

  Args:
    folder: where it is kept; None = nowhere.
    *about: what all its values depend on; another one is another table.
  """

  def __init__(self, folder: str | os.PathLike | None, *about: str):
    self._file = None
    self._known: dict[str, Any] = {}
    if folder is None:
      return
    name = f"{jsonio.canonical_hash(about)}.jsonl"
    self._file = jsonl.JsonLines(pathlib.Path(folder, name), max_row_bytes=_ROW_BYTES)
    try:
      for _, row in self._file.iterate():
        self._known[row["key"]] = row["value"]
    except (KeyError, OSError, TypeError, UserError) as e:
      logging.warning("%s: left out, it cannot be read (%s)", self._file.path, e)
      self._file = None

  def __contains__(self, key: str) -> bool:
    return key in self._known

  def __getitem__(self, key: str) -> Any:
    return self._known[key]

  def put(self, values: Mapping[str, Any]) -> None:
    """Keeps values; those under the key "" are of files that may still change."""
    values = {key: value for key, value in values.items() if key and key not in self._known}
    self._known |= values
    if not values or self._file is None:
      return
    try:
      self._file.append([{"key": key, "value": value} for key, value in values.items()])
    except (OSError, ValueError) as e:
      logging.warning("%s: nothing is kept there (%s)", self._file.path, e)
      self._file = None


def version_of(path: str | os.PathLike) -> str:
  """Returns what changes when a file does; "" if it is so young that this is not sure.

  Raises:
    OSError: it is not there, or no file.
  """
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):
    raise OSError(errno.EINVAL, "not a file", os.fspath(path))
  if time.time_ns() - found.st_ctime_ns < _YOUNG_NS:
    return ""
  where = os.path.abspath(path)
  # The time of the last change of the entry too: `cp -p` and `touch -r` keep the other one.
  return f"{where}|{found.st_size}|{found.st_mtime_ns}|{found.st_ctime_ns}"
