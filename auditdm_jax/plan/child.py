# SPDX-License-Identifier: Apache-2.0
"""Compiles one program in a process of its own, which may be killed once it has said enough.

Reads a pickled `Task` from stdin, prints one line of JSON before it compiles and one after, and
leaves what the compiler thinks in `Task.dump`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import math
import pickle
import sys
import time
from typing import Any

import jax
from jax.sharding import Mesh

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.plan import chips, work

# Name of the compiled module: its files in the dump are found by it.
NAME = "planned"


@dataclasses.dataclass(frozen=True)
class Built:
  """A function with the shapes and shardings to compile it for."""

  function: Callable[..., Any]  # jitted
  args: tuple[Any, ...]
  mesh: Mesh
  stays: Any  # of args and results what is on the devices before and after


@dataclasses.dataclass(frozen=True)
class Task:
  build: Callable[[Sequence[Any]], Built]
  topology: str
  dump: str


def main() -> int:
  task: Task = pickle.load(sys.stdin.buffer)
  where = chips.parse(task.topology)
  if where.chip.compiler == "cpu":
    runtime.setup(devices=where.size)
  # What is compiled for a chip that is not here cannot be read back.
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    devices = where.devices()
    built = task.build(devices)
    with mesh_lib.use(built.mesh), jax.default_device(devices[0]):
      traced = built.function.trace(*built.args)
  except UserError as e:
    say(mistake=str(e))
    return 2
  with mesh_lib.use(built.mesh):
    say(flops=work.flops(traced.jaxpr.jaxpr), stays=bytes_per_device(built.stays))
    lowered = traced.lower(lowering_platforms=(where.chip.compiler,))
  options: dict[str, Any] = {"xla_dump_to": task.dump}
  if where.chip.compiler == "cuda":
    # Which of its own kernels would win against cuBLAS is measured on a device; without one, those
    # that it takes fail for some shapes.
    options["xla_gpu_enable_triton_gemm"] = False
  compiled = lowered.compile(compiler_options=options)
  memory = compiled.memory_analysis()
  say(
    total=memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  )
  return 0


def say(**values: float | str) -> None:
  print(json.dumps(values | {"cpu_s": time.process_time()}), flush=True)


def bytes_per_device(args: Any) -> int:
  """Returns the bytes of the program's arguments on one device."""
  arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.ShapeDtypeStruct)]
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


if __name__ == "__main__":
  sys.exit(main())
