# SPDX-License-Identifier: Apache-2.0
"""What a disk may refuse: errors that are neither a bug nor a value of the config."""

from collections.abc import Iterator
import contextlib
import errno
import os
import re

_SAID = {
  errno.ENOSPC: "the disk{of} is full",
  errno.EDQUOT: "the disk quota{of} is used up",
  errno.EFBIG: "a file{of} may not grow further: the limit is that of `ulimit -f` or of the disk",
  errno.EROFS: "the disk{of} is read-only",
  errno.EACCES: "permission denied{of}",
  errno.EPERM: "permission denied{of}",
  errno.EIO: "the disk{of} fails: {reason}",
  errno.ESTALE: "the network folder{of} was mounted anew: {reason}",
  errno.EMFILE: "too many open files: the limit is that of `ulimit -n`",
  errno.ENFILE: "too many open files on this machine",
}
# Code tries and goes another way: what fails after that need not be their doing.
_OFTEN_HANDLED = frozenset({errno.EACCES, errno.EPERM})
# How tensorstore, which writes checkpoints, quotes the system inside a message of its own.
_QUOTED = re.compile(r"(?:OS error |os error |os_error_code=')(\d+)")


def trouble(error: BaseException) -> str | None:
  """Returns in one line what the disk refused, or None if this is an error of another kind.

  The error or what it was raised from may be one of the system, or a library's that quotes one.
  """
  seen: set[int] = set()
  cause: BaseException | None = error
  while cause is not None and id(cause) not in seen:
    seen.add(id(cause))
    number = _number(cause)
    if number in _SAID and (cause is error or number not in _OFTEN_HANDLED):
      path = cause.filename if isinstance(cause, OSError) else None
      of = f" of {os.fspath(path)}" if isinstance(path, str | os.PathLike) else ""
      return _SAID[number].format(of=of, reason=os.strerror(number))
    cause = cause.__cause__ or cause.__context__
  return None


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
  """Adds the path to what the system says of a write, which names none by itself."""
  try:
    yield
  except OSError as e:
    if e.errno is not None and e.filename is None:
      e.filename = os.fspath(path)
    raise


def _number(error: BaseException) -> int | None:
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  match = _QUOTED.search(str(error))
  return int(match[1]) if match else None
