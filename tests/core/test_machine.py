# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest

from auditdm_jax.core import machine
from tests import heap


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


@heap.needs_glibc
def test_freed_memory_between_what_is_in_use_goes_back():
  kept = heap.fragmented()
  before = heap.resident()
  machine.trim_heap()
  assert before - heap.resident() > heap.FREED / 2
  assert all(len(piece) == 2**16 for piece in kept)


@pytest.mark.parametrize(
  ("kind", "tflops"),
  [("NVIDIA H100 80GB HBM3", 989), ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU v5", 459)],
)
def test_peaks_by_kind(kind, tflops):
  assert machine.peak_flops(kind) == tflops * 1e12


def test_an_unknown_kind_has_no_peak():
  assert machine.peak_flops("cpu") is None
