# SPDX-License-Identifier: Apache-2.0
"""What the programs of a config take on the devices that are here, beside what `plan` says.

  python -m benchmarks.planned --config=configs/paligemma2.py:on=h200 --topology=gpu:h200x1
  python -m benchmarks.planned --config=configs/scenes.py --topology=cpu:1 --only=train,sample

Each program of a GRPO step, and of the repair, runs in a process of its own with random weights and
full rows: no file of a model is read. The devices of the topology have to be here, in one process.

  floor s    of `plan`: the slowest of operations, memory and links at the data sheets' rates
  s          median call, the first of which compiles and is not counted; least and most in brackets
  of floor   share of the floor; what is computed again counts as work
  MFU        of the learner: useful operations only, against the dense bf16 peak
  GiB        at the fullest, of a device that says so; `plan` is what its compiler said before

A step is the sum over calls, without the image service and the host's own work. `benchmarks/gpu.sh`
is what to run on a single H100 or H200.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import machine, overrides, runtime
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.plan import chips, compiling, steps, table
from auditdm_jax.rl import flops
from auditdm_jax.rl.batch import LearnerBatch
from auditdm_jax.stages import plan, sections

CHILD = "child"  # The argument by which a process knows that it is to run a program.
_NAME = 44  # Columns of a program's name.
_COMPILERS = 4  # Plans that are made at a time.

_FLAGS = flags.FlagValues()  # Its own: another benchmark has flags of the same names.
_CONFIG = overrides.define("The config.", flag_values=_FLAGS)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "The devices, such as gpu:h200x1.", flag_values=_FLAGS
)
_ONLY = flags.DEFINE_list("only", [], "Programs whose names start so.", flag_values=_FLAGS)
_TIMES = flags.DEFINE_integer(
  "times", 5, "Calls of each program.", lower_bound=1, flag_values=_FLAGS
)
_JSON = flags.DEFINE_string("json", "", "File for all that was measured.", flag_values=_FLAGS)


@dataclasses.dataclass(frozen=True)
class Task:
  """A program to run.

  Attributes:
    step: which.
    where: the devices that it is planned for.
    times: calls that count.
    auditor: whose updates are measured, if it is one.
    kl: whether the learner computes a KL too.
  """

  step: steps.PlannedProgram
  where: chips.Slice
  times: int
  auditor: VlmConfig
  kl: bool


def run(task: Task) -> dict[str, Any]:
  """Returns the seconds of each call of a program with arguments that mean nothing.

  Raises:
    UserError: the devices here are others than it is planned for.
  """
  devices, where = jax.devices(), task.where
  kind = devices[0].device_kind
  if len(devices) < where.size or machine.peak_flops(kind) != where.chip.flops:
    raise UserError(f"--topology={where.name}: there are {len(devices)} devices of {kind} here")
  built = task.step.build(devices[: where.size])
  args, seconds = _filled(built.args), []
  with mesh_lib.use(built.mesh):
    for _ in range(task.times + 1):
      args = jax.tree.map(_again, args, built.args)  # What the call before has used up.
      jax.block_until_ready(args)
      begin = time.perf_counter()
      jax.block_until_ready(built.function(*args))
      seconds.append(time.perf_counter() - begin)
  batches = [x for x in built.args if isinstance(x, LearnerBatch)]
  stats = devices[0].memory_stats() or {}
  return {
    "device": kind,
    "compile_s": seconds[0],
    "seconds": seconds[1:],
    "peak_bytes": stats.get("peak_bytes_in_use"),
    "useful_flops": sum(
      flops.learning(task.auditor, jax.tree.map(_ones, b), kl=task.kl) for b in batches
    ),
  }


def _filled(shapes: Any) -> Any:
  return jax.tree.map(lambda x: _fill(x) if isinstance(x, jax.ShapeDtypeStruct) else x, shapes)


def _again(x: Any, shape: Any) -> Any:
  return _fill(shape) if isinstance(x, jax.Array) and x.is_deleted() else x


def _fill(x: jax.ShapeDtypeStruct) -> jax.Array:
  """Returns small random numbers, or tokens that every vocabulary has and that end nothing."""

  def make() -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
      return (0.04 * jax.random.uniform(jax.random.key(0), x.shape)).astype(x.dtype)
    return jnp.full(x.shape, x.dtype == jnp.bool or 7, x.dtype)

  return jax.jit(make, out_shardings=x.sharding)()


def _ones(x: jax.ShapeDtypeStruct) -> np.ndarray:
  return np.ones(x.shape, x.dtype)


def run_apart(task: Task) -> dict[str, Any]:
  """Returns what `run` does, from a process of its own; {"error": …} if it failed."""
  command = [sys.executable, "-m", "benchmarks.planned", CHILD]
  done = subprocess.run(command, input=pickle.dumps(task), capture_output=True, check=False)
  if done.returncode:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = [x for x in lines if "RESOURCE_EXHAUSTED" in x or "UserError" in x]
    return {"error": (said or lines or ["it said nothing"])[-1][:300]}
  return json.loads(done.stdout.splitlines()[-1])


def line(row: table.ProgramRow, found: dict[str, Any], where: chips.Slice) -> str:
  head = f"{row.step.name[:_NAME]:{_NAME}} {row.step.calls:5d}"
  if "error" in found:
    return f"{head}  {found['error']}"
  taken, peak, fullest = found["seconds"], where.chip.flops, found["peak_bytes"]
  median, useful = float(np.median(taken)), found["useful_flops"] / where.size
  floor = f"{row.best:8.3f} {row.best / median:8.1%}" if peak else f"{'':17}"
  mfu = f"{useful / median / peak:6.1%}" if peak and useful else f"{'':6}"
  used = f"{fullest / chips.GIB:7.2f}" if fullest else f"{'':7}"
  return (
    f"{head} {median:8.3f} {f'({min(taken):.3f} to {max(taken):.3f})':20} {floor} {mfu}"
    f" {row.compiled.total / chips.GIB:7.2f} {used} {found['compile_s']:7.0f}"
  )


def main(argv: Sequence[str]) -> int:
  try:
    overrides.parse_flags(_FLAGS, list(argv[1:]), sections.AuditConfig)
    if _CONFIG.value is None or _TOPOLOGY.value is None:
      raise UserError("--config and --topology are needed")
    where = chips.parse(_TOPOLOGY.value)
    runtime.stay_off_accelerators()  # They are for the processes that run programs.
    compiling.check(where)
    planned = plan.read(_CONFIG.value)
    only = tuple(_ONLY.value or [""])
    some = [s for s in steps.steps(planned, where.size) if s.name.startswith(only)]
    if not some:
      raise UserError(f"--only={','.join(only)}: no such program")
    with futures.ThreadPoolExecutor(_COMPILERS) as pool:
      compiled = list(pool.map(lambda s: compiling.compile_program(s.build, where), some))
    whole, found = table.make(where, list(zip(some, compiled)), run_steps=1), {}
    print(
      f"{where.name}, {_TIMES.value} calls each\n{'program':{_NAME}} {'calls':>5} {'s':>8} {'':20}"
      f" {'floor s':>8} {'of floor':>8} {'MFU':>6} {'planned':>7} {'GiB':>7} {'first s':>7}",
      flush=True,
    )
    for row in whole.rows:
      kl = planned.grpo.kl_coef > 0
      task = Task(row.step, where, _TIMES.value, planned.auditor, kl)
      found[row.step.name] = run_apart(task)
      print(line(row, found[row.step.name], where), flush=True)
  except UserError as e:
    print(f"benchmarks.planned: {e}", file=sys.stderr)
    return 2
  timed = {name: float(np.median(f["seconds"])) for name, f in found.items() if "seconds" in f}
  missing = [s.name for s in some if s.calls and s.name not in timed]
  step_s = sum(s.calls * timed.get(s.name, 0.0) for s in some)
  print(f"calls of a step: {step_s:.1f} s", end="")
  print("; planned {:.1f} to {:.1f}".format(*whole.step_s) if where.chip.flops else "")
  if missing:
    print(f"without {', '.join(missing)}, which failed")
  if _JSON.value:
    text = json.dumps({"plan": table.as_dict(whole), "measured": found}, indent=1)
    pathlib.Path(_JSON.value).write_text(text)
  return 1 if missing else 0


if __name__ == "__main__":
  if sys.argv[1:] == [CHILD]:
    task: Task = pickle.load(sys.stdin.buffer)
    runtime.setup(devices=0 if task.where.chip.flops else task.where.size)
    print(json.dumps(run(task)))
  else:
    sys.exit(main(sys.argv))
