# SPDX-License-Identifier: Apache-2.0
"""jax, set up once per process, before its first use; and what several processes tell each other.

Every process of a run executes the same host code on the same values: texts, rewards and shapes are
known to all of them, and the devices' work is split by the shardings alone. So their programs are
called in the same order with the same shapes. What only one of them can know, such as what came of
its own requests or whether it was told to stop, goes through `gather`. A result that differs
between processes would make them wait for each other for ever; `agree` finds it first.

Everything here is trivial where there is one process.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import sys
from typing import Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import threadpoolctl

from auditdm_jax.core import jsonio, machine
from auditdm_jax.core.config import UserError

T = TypeVar("T")

LOST = 75  # Exit code, EX_TEMPFAIL: another process is gone; the same command goes on.
# Added to the exit code of one of several that failed by itself. A launcher sees the greatest code
# of all, which must not be that of those who lost this one: 75, or 134, 137 and 143 by signals.
OWN = 200
_HEARTBEAT_S = 30  # A process that is silent for so long is lost, and the job ends.
_SHUTDOWN_S = 10  # How long one that is done waits for the others; `together` ends in step.
_OPTIMIZED = "--xla_backend_optimization_level"
_START_S = 600  # Machines of one job come up at different times.

# Of `jax.jit`, where it is the outermost. XLA for CPUs writes kernels through MLIR, which takes it
# as long as LLVM takes to compile them, and half a gigabyte for a step of training. Those that it
# writes without are as fast in sampling and GRPO; a repair of a tiny model would take 1.1 of its
# time. Other backends ignore the option.
PLAIN_KERNELS = {"xla_cpu_use_fusion_emitters": False}


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where this process belongs; what is left out is what the scheduler says.

  jax asks Cloud TPU, GKE, SLURM and Open MPI.

  Attributes:
    coordinator: host:port where process 0 listens; "" = ask.
    processes: how many there are; 0 = ask.
    process: which one this is; -1 = ask.
  """

  coordinator: str = ""
  processes: int = 0
  process: int = -1


def setup(
  *,
  devices: int = 0,
  cluster: Cluster | None = None,
  cache_dir: str | os.PathLike | None = None,
) -> None:
  """Joins the other processes, turns on the compilation cache, splits the CPU if asked.

  NumPy's own matrix products get one thread: all are small, and the threads of its library wait for
  one another by spinning, which took a third of the CPU time of a report. XLA for CPUs optimises
  the kernels that it writes less, which are no slower for it: its large products are not among
  them.

  Args:
    devices: how many CPU devices this process shows, to try a mesh without one; 0 leaves them
      alone.
    cluster: the processes to join; None = this is the only one.
    cache_dir: where compiled programs are kept between runs; by default what the variable
      JAX_COMPILATION_CACHE_DIR says, else a folder of the user's cache.

  Raises:
    UserError: the other processes cannot be found.
    RuntimeError: `devices` or `cluster` is given and jax is already in use.
  """
  threadpoolctl.threadpool_limits(1, user_api="blas")
  given = os.environ.get("XLA_FLAGS", "")
  if _OPTIMIZED not in given and not importlib.metadata.entry_points(group="jax_plugins"):
    os.environ["XLA_FLAGS"] = f"{given} {_OPTIMIZED}=1"
  if devices:
    jax.config.update("jax_num_cpu_devices", devices)
  # jax gives its config the options one by one, so that a type checker does not know them.
  configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
  folder = pathlib.Path(cache_dir or configured or default_cache_dir())
  folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  if cluster is not None:
    _join(cluster)


def use_one_thread() -> None:
  """Lets XLA for CPUs have one thread, unless the variable NPROC says otherwise.

  Programs of tiny models are as fast with it: their pieces take no longer than it takes to hand
  them out, and threads that wait for more of them spin. XLA asks once, when the devices are first
  used, so that this uses them; the processes that this one starts choose for themselves.
  """
  if "NPROC" in os.environ:
    return
  os.environ["NPROC"] = "1"
  try:
    jax.devices()
  finally:
    del os.environ["NPROC"]


def stay_off_accelerators() -> None:
  """Leaves them to another process of this machine; to be called before jax is used.

  Nor must CUDA's libraries be there, without which jax prints the traceback of its plugin's error.
  """
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  jax.config.update("jax_platforms", "cpu")


def _join(cluster: Cluster) -> None:
  given = cluster.coordinator
  port = re.fullmatch(r".+:(\d{1,5})", given)
  if given and not (port and 0 < int(port[1]) < 1 << 16):
    raise UserError(f"--coordinator={given}: must be host:port, such as 10.0.0.2:8476")
  if 0 < cluster.processes <= cluster.process:
    raise UserError(
      f"--process={cluster.process}: of --processes={cluster.processes} the last one is"
      f" {cluster.processes - 1}"
    )
  # Its handler of SIGTERM would take the place of ours, which asks the trainer to save and leave.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      cluster.coordinator or None,
      cluster.processes or None,
      None if cluster.process < 0 else cluster.process,
      initialization_timeout=_START_S,
      heartbeat_timeout_seconds=_HEARTBEAT_S,
      shutdown_timeout_seconds=_SHUTDOWN_S,
    )
  except ValueError as e:
    raise UserError(
      f"--distributed: {e} No scheduler was found that knows it: give --coordinator=host:port,"
      " --processes and --process"
    ) from e


def default_cache_dir() -> pathlib.Path:
  """Returns auditdm_jax/xla in the user's cache folder; xla-zstd from Python 3.14 on.

  jax compresses by zstd there and by zlib elsewhere, and names of programs do not say which: what
  the other one has stored is damaged to it, and a warning in each run.
  """
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  name = "xla-zstd" if importlib.util.find_spec("_zstd") else "xla"
  return pathlib.Path(base) / "auditdm_jax" / name


def describe_devices() -> list[str]:
  """Returns one line per kind of device, such as "8 × cpu (cpu)", for the manifest."""
  kinds = [f"{d.platform} ({d.device_kind})" for d in jax.devices()]
  return [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]


@contextlib.contextmanager
def together() -> Iterator[None]:
  """The body of a run: all processes leave it in step, or none goes on for long.

  A process whose own code fails says why and ends, see `leave`. The others notice when they wait
  for it, or by its silence, and end with `LOST`.

  Raises:
    SystemExit: the connection to another process broke.
  """
  try:
    yield
    barrier()
  except (RuntimeError, ValueError) as e:  # Which of them depends on the way of the call.
    if jax.process_count() == 1 or not _is_about_others(str(e)):
      raise
    print(
      f"auditdm_jax: process {jax.process_index()} of {jax.process_count()}: another process is"
      f" gone, whose log says why; run the same command to continue\n  {str(e)[:300]}",
      file=sys.stderr,
    )
    raise SystemExit(LOST) from e


def _is_about_others(message: str) -> bool:
  """Returns whether an error is about a connection: of gloo, NCCL or jax's own service."""
  words = ("Gloo", "NCCL", "CoordinationService", "coordination service")
  return any(word in message for word in words)


def leave(code: int) -> NoReturn:
  """Ends this process; one of several that failed does not wait for the others to end too."""
  sys.stdout.flush()
  sys.stderr.flush()
  if code and jax.distributed.is_initialized():
    os._exit(code + OWN if code in (1, 2) else code)
  sys.exit(code)


def index() -> int:
  """Returns which process this is."""
  return jax.process_index()


def count() -> int:
  """Returns how many processes there are."""
  return jax.process_count()


def is_main() -> bool:
  """Returns whether this process writes what all of them share."""
  return jax.process_index() == 0


def mine(rows: Sequence[T], process: int | None = None) -> Sequence[T]:
  """This or another process's share of a list that all have.

  Every n-th, so that what comes in blocks is shared out, and a longer list only adds to a share.
  """
  return rows[jax.process_index() if process is None else process :: jax.process_count()]


def gather(value: Any) -> list[Any]:
  """Returns what every process has, by process: JSON-like values, a few megabytes at most."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(data))).tolist()
  # A power of two: few programs are compiled.
  padded = np.zeros(1 << max(sizes).bit_length(), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def agree(value: Any, what: str) -> None:
  """Checks that `value` is the same in every process.

  Raises:
    RuntimeError: it is not; `what` names it.
  """
  if jax.process_count() == 1:
    return
  found = gather(jsonio.canonical_hash(value))
  if len(set(found)) > 1:
    raise RuntimeError(f"{what} differs between processes: {found}; they cannot go on together")


def barrier() -> None:
  """Returns when all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("barrier")


def place(tree: Any, sharding: Any) -> Any:
  """`jax.device_put` that also reaches devices of other processes.

  There each process copies the parts of its own devices out of the whole arrays, which all have.

  Args:
    tree: a tree of arrays, on the host or on this process's devices.
    sharding: one, or a tree of them.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  if isinstance(sharding, jax.sharding.Sharding):
    return jax.tree.map(lambda x: _place(x, sharding), tree)
  return jax.tree.map(_place, tree, sharding)


def _place(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding)
  whole = np.asarray(x)
  return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def fetch(tree: Any) -> Any:
  """`jax.device_get` in every process, also of what lies on the devices of others.

  That goes over the devices a piece at a time: a model that is split over them fits into none.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(lambda x: np.asarray(x) if _is_here(x) else in_pieces(x), tree)


def _is_here(x: Any) -> bool:
  return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def programs(jitted: Any) -> int:
  """Returns how many programs of a jitted function were compiled in this process."""
  return jitted._cache_size()  # jax has no public name for it.


def forget_programs() -> None:
  """Frees the memory of all programs of this process, and of what they were traced to.

  What is called again is traced again, and loaded from the cache on disk.
  """
  jax.clear_caches()
  gc.collect()  # Their owners hold themselves, by jitted methods.
  machine.trim_heap()


def in_pieces(x: jax.Array, *, most: int = 1 << 28) -> np.ndarray:
  """Returns an array on every process's host; at most about `most` bytes lie whole on a device."""
  if not isinstance(x.sharding, NamedSharding):
    raise TypeError(f"an array of several processes has a mesh, and not {x.sharding}")
  whole = NamedSharding(x.sharding.mesh, PartitionSpec())
  if x.nbytes <= most or x.ndim == 0:
    return np.asarray(_piece(whole, x.shape[:1])(x, 0))
  rows = max(1, most * len(x) // x.nbytes)
  out = np.empty(x.shape, x.dtype)
  for start in range(0, len(x), rows):
    size = min(rows, len(x) - start)
    out[start : start + size] = np.asarray(_piece(whole, (size,))(x, start))
  return out


@functools.lru_cache(maxsize=64)
def _piece(whole: NamedSharding, size: tuple[int, ...]) -> Callable[[jax.Array, int], jax.Array]:
  """x, start -> x[start : start + size], whole on every device; () for a scalar."""

  def cut(x, start):
    return jax.lax.dynamic_slice_in_dim(x, start, *size) if size else x

  return jax.jit(cut, out_shardings=whole)
