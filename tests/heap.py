# SPDX-License-Identifier: Apache-2.0
"""A heap with freed memory between pieces that are in use, and how much the process holds."""

import ctypes
import os
import pathlib

import pytest

needs_glibc = pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps what is freed"
)
FREED = 4_000 * 15 / 16 * 2**16  # Bytes that are free after `fragmented`.


def fragmented() -> list[bytearray]:
  """Returns a piece of each megabyte, and the last, so that `free` alone gives nothing back."""
  pieces = [bytearray(2**16) for _ in range(4_000)]  # Each below malloc's threshold for mmap.
  return pieces[::16] + pieces[-1:]


def resident() -> int:
  """Returns how many bytes of memory the process holds."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")
