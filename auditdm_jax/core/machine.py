# SPDX-License-Identifier: Apache-2.0
"""What a run takes of its machine: compilations, memory, and the peak it is measured against."""

import ctypes
import os
import resource
import sys
from typing import Self

import jax
import jax.monitoring

# Dense bf16 FLOP/s of one device as jax names its kind, from the vendors' data sheets.
_PEAK_FLOPS = {
  "TPU v3": 61.5e12,  # per core, which is what jax calls a device there
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
  """Counts the programs that this process compiles, or loads from the cache, while it is open."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs, kwargs
    self.count += event == _COMPILED

  def close(self) -> None:
    jax.monitoring.unregister_event_duration_listener(self._hear)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc) -> None:
    self.close()


def peak_memory() -> int:
  """Most bytes in use so far on the fullest device; on a CPU those of the process."""
  stats = [d.memory_stats() for d in jax.local_devices()]
  used = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
  if used:
    return max(used)
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def trim_heap() -> None:
  """Gives the system the memory that this process has freed, where the C library is glibc.

  glibc keeps what lies between pieces that are in use: a third of a gigabyte of what XLA's compiler
  took for a step of GRPO, until the process ends.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)


def device_memory() -> int | None:
  """Bytes that the smallest of this process's devices has; None where they do not say, as a CPU."""
  stats = [d.memory_stats() for d in jax.local_devices()]
  limits = [s["bytes_limit"] for s in stats if s and "bytes_limit" in s]
  return min(limits, default=None)


def host_memory() -> int:
  """Bytes of memory of this machine."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_flops(kind: str | None = None) -> float | None:
  """Dense bf16 FLOP/s of a kind of device, by default this process's; None if it is not known."""
  kind = kind or jax.local_devices()[0].device_kind
  # The longest name first: "TPU v5 lite" is no "TPU v5", and an "H100 80GB HBM3" is an H100.
  for name in sorted(_PEAK_FLOPS, key=len, reverse=True):
    if kind.startswith(name):
      return _PEAK_FLOPS[name]
  return None
