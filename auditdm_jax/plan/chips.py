# SPDX-License-Identifier: Apache-2.0
"""The chips a plan is made for: "v5e:4x4", "gpu:h200x8", "cpu:8"."""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any, Literal

import jax
from jax.experimental import topologies

from auditdm_jax.core import machine
from auditdm_jax.core.config import UserError, did_you_mean

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip; limits and rates of the roofline.

  Attributes:
    kind: as `core.machine` knows it.
    memory: bytes a program may use; of a TPU what the compiler says when it refuses one.
    memory_rate: bytes per second between memory and cores, from the vendors' data sheets.
    link_rate: bytes per second that a chip sends to others, one way. Of a TPU the links of a chip
      in the corner of a slice that does not wrap around: 2 of them, or 3 where it is a cube.
  """

  kind: str
  memory: float
  memory_rate: float
  link_rate: float

  @property
  def compiler(self) -> Literal["tpu", "cuda", "cpu"]:
    """Whose programs it runs."""
    return "tpu" if self.kind.startswith("TPU") else "cuda" if self.flops else "cpu"

  @property
  def flops(self) -> float | None:
    return machine.peak_flops(self.kind)


CHIPS = {
  "v5e": Chip("TPU v5e", 15.75 * GIB, 819e9, 90e9),
  "v6e": Chip("TPU v6e", 31.24 * GIB, 1640e9, 180e9),
  "v5p": Chip("TPU v5p", 95.73 * GIB, 2765e9, 270e9),
  "h100": Chip("NVIDIA H100", 79.6 * GIB, 3350e9, 450e9),
  "h200": Chip("NVIDIA H200", 139.8 * GIB, 4800e9, 450e9),
  "cpu": Chip("cpu", math.inf, math.inf, math.inf),
}
# Place in the grid that the chips of a TPU are in.
_AXES = {"v5e": 2, "v6e": 2, "v5p": 3}
_SHAPES = {
  "v5e": "v5e:1x1, 2x2, 2x4, 4x4, … 16x16",
  "v6e": "v6e:1x1, 2x2, 2x4, 4x4, … 16x16",
  "v5p": "v5p:2x2x1, 2x2x2, 2x2x4, 2x4x4, …",
}


# What XLA knows of a Hopper GPU in an SXM module, whose kinds differ in their memory alone. It is a
# stream_executor.GpuTargetConfigProto; the numbers are CUDA's own device properties.
_HOPPER = """
platform_name: "CUDA"
device_description_str: "{kind}"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: {memory_rate:.0f}
  device_memory_size: {memory:.0f}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
_GPUS = 8  # Of a machine; between machines the links are others.


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that work together.

  Attributes:
    name: as it was asked for.
    chip: its kind.
    size: how many.
  """

  name: str
  chip: Chip
  size: int

  @property
  def is_tpu(self) -> bool:
    return self.chip.compiler == "tpu"

  def devices(self) -> Sequence[Any]:
    """Its devices, which need not exist; those of a CPU must have been asked for at start."""
    if self.chip.compiler == "cpu":
      return jax.devices("cpu")[: self.size]
    if self.chip.compiler == "cuda":
      known = _HOPPER.format(**vars(self.chip))
      grid = f"1x1x{self.size}"  # NVLink domains, machines, GPUs of a machine.
      return topologies.get_topology_desc(
        platform="cuda", target_config=known, topology=grid
      ).devices
    # A host has 2x2 chips, but for the machines of one chip.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if self.size == 1 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=self.name, **alone).devices


def parse(name: str) -> Slice:
  """Reads a topology.

  Raises:
    UserError: the text names no topology.
  """
  kind, _, shape = name.partition(":")
  if kind in _AXES and re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}", shape):
    sizes = tuple(map(int, shape.split("x")))
    # Machines of 2x2 chips; v5e and v6e also have those of one.
    whole = sizes[0] % 2 == sizes[1] % 2 == 0 or (sizes == (1, 1) and _AXES[kind] == 2)
    if len(sizes) != _AXES[kind] or not whole:
      raise UserError(f"--topology={name}: no slice of {kind} has that shape; {_SHAPES[kind]}")
    return Slice(name, CHIPS[kind], math.prod(sizes))
  if kind == "cpu" and shape.isdigit() and int(shape):
    return Slice(name, CHIPS[kind], int(shape))
  gpu = re.fullmatch(r"(\w+)x(\d+)", shape) if kind == "gpu" else None
  if gpu and gpu[1] in ("h100", "h200") and int(gpu[2]):
    if int(gpu[2]) > _GPUS:
      raise UserError(f"--topology={name}: at most {_GPUS}, the GPUs of one machine, are planned")
    return Slice(name, CHIPS[gpu[1]], int(gpu[2]))
  hint = did_you_mean(kind, ["v5e", "v6e", "v5p", "gpu", "cpu"])
  raise UserError(
    f"--topology={name}: no such slice{hint}; there are v5e:4x4, v6e:2x4, v5p:2x2x2, gpu:h200x8,"
    " cpu:8 and their like"
  )
