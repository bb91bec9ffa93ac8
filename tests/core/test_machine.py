# SPDX-License-Identifier: Apache-2.0
import ctypes
import os
import pathlib

import jax
import jax.numpy as jnp
import pytest

from auditdm_jax.core import machine


def test_programs_are_counted_while_it_is_open():
  double, triple = (jax.jit(lambda x, k=k: x * k) for k in (2, 3))
  x = jnp.arange(4.0)
  with machine.Compilations() as compiled:
    double(x).block_until_ready()
    first = compiled.count
    double(x + 0).block_until_ready()
    before = compiled.count
    double(x).block_until_ready()
    assert first >= 1 and compiled.count == before
  triple(x).block_until_ready()
  assert compiled.count == before


def test_memory_of_the_process():
  assert 2**24 < machine.peak_memory() < 2**44


def _resident() -> int:
  """Bytes of memory that the process holds now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_freed_memory_between_what_is_in_use_goes_back():
  """A piece that stays is in every megabyte, so that free alone gives nothing back."""
  pieces = [bytearray(2**16) for _ in range(4_000)]  # Each below malloc's threshold for mmap.
  kept = pieces[::16] + pieces[-1:]
  del pieces
  before = _resident()
  machine.trim_heap()
  assert before - _resident() > 2**27
  assert all(len(piece) == 2**16 for piece in kept)


@pytest.mark.parametrize(
  ("kind", "tflops"),
  [("NVIDIA H100 80GB HBM3", 989), ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v5", 459)],
)
def test_peaks_by_kind(kind, tflops):
  assert machine.peak_flops(kind) == tflops * 1e12


def test_an_unknown_kind_has_no_peak():
  assert machine.peak_flops("cpu") is None
