# SPDX-License-Identifier: Apache-2.0
"""What the compiler says about one program: does it fit, and what does it move.

The TPU's compiler writes down its buffers and the final program before it generates code, which is
19 of 20 parts of its work: by default the process is stopped there.
"""

from collections.abc import Callable
import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from auditdm_jax.core.config import UserError
from auditdm_jax.plan import chips
from auditdm_jax.plan import traffic as traffic_lib
from auditdm_jax.plan.child import Task

_LAST = "*after_optimizations_after_buffer_assignment.txt"
_REPORT = "*after_optimizations-memory-usage-report.txt"
_LARGEST = 4  # Buffers that are named.
# By whose compiler it is: modules, one of which has it, and what to install. Neither needs a chip.
_COMPILERS = {
  "tpu": (("libtpu",), "jax[tpu]"),
  "cuda": (("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"), "jax-cuda12-plugin"),
  "cpu": ((), ""),
}
_POLL_S = 0.2


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What is known of a program.

  Attributes:
    flops: operations of all chips together.
    stays: bytes of its arguments and results that are on a chip before and after.
    total: bytes on a chip while it runs; what the compiler would need if it refused.
    refused: whether the compiler refused, because that is more than there is.
    buffers: the largest ones, as "443.6 MiB bf16[34,2,1336,2560]".
    traffic: None if it was refused.
    cpu_s: CPU seconds of the verdict.
  """

  flops: float
  stays: int
  total: float
  refused: bool
  buffers: tuple[str, ...]
  traffic: traffic_lib.Traffic | None
  cpu_s: float


def check(where: chips.Slice) -> None:
  """Raises a UserError if nothing can be compiled for these chips here."""
  modules, package = _COMPILERS[where.chip.compiler]
  if modules and not any(map(_is_installed, modules)):
    raise UserError(
      f"--topology={where.name}: needs the compiler of the {where.chip.kind}, which is in a package"
      f' of its own: pip install "{package}=={jax.__version__}"'
    )


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # Nor is what it would be in.
    return False


def compile_program(
  build: Callable[..., Any], where: chips.Slice, *, full: bool = False, timeout_s: float = 1800
) -> Compiled:
  """Compiles a program in a process of its own.

  Args:
    build: a picklable function of the slice's devices that returns a `child.Built`.
    where: the chips.
    full: generate code too, which takes minutes and may find more that is wrong.
    timeout_s: longest wait.

  Raises:
    UserError: the config asks for what cannot be built.
    RuntimeError: the compiler failed otherwise than for want of memory.
  """
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path),
    # libtpu lets one process at a time have it, for the sake of chips that are not there.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
  }
  with tempfile.TemporaryDirectory(prefix="plan_") as folder:
    dump, err = pathlib.Path(folder) / "dump", pathlib.Path(folder) / "stderr"
    out = pathlib.Path(folder) / "stdout"
    with out.open("w") as stdout, err.open("w") as stderr:
      process = subprocess.Popen(
        [sys.executable, "-m", "auditdm_jax.plan.child"],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=env,
      )
      try:
        process.stdin.write(pickle.dumps(Task(build, where.name, str(dump))))
        process.stdin.close()
        cpu_s = _wait(process, None if full or not where.is_tpu else dump, timeout_s)
      finally:
        process.kill()
        process.wait()
    said: dict[str, Any] = {}
    for line in out.read_text().splitlines():
      said |= json.loads(line)
    return _verdict(said, dump, err.read_text(), cpu_s or said.get("cpu_s", 0.0))


def _wait(process: subprocess.Popen, dump: pathlib.Path | None, timeout_s: float) -> float:
  """Waits until the process has ended, or has written its last file to `dump`.

  Returns its CPU seconds, or 0 if it has ended.
  """
  until = time.monotonic() + timeout_s
  while process.poll() is None:
    if time.monotonic() > until:
      raise RuntimeError(f"a program took more than {timeout_s:g} s to compile")
    found = list(dump.glob(_LAST)) if dump is not None else []
    if found and _is_whole(found[0]):
      return _cpu_seconds(process.pid)
    time.sleep(_POLL_S)
  return 0.0


def _is_whole(path: pathlib.Path) -> bool:
  """Whether a module's text has ended: its entry comes last and closes in the first column."""
  return path.read_text().rstrip().endswith("\n}")


def _cpu_seconds(pid: int) -> float:
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _verdict(said: dict[str, Any], dump: pathlib.Path, errors: str, cpu_s: float) -> Compiled:
  if "mistake" in said:
    raise UserError(said["mistake"])
  if "stays" not in said:
    raise RuntimeError(f"a program could not be built:\n{errors[-3000:]}")
  known = {"flops": said["flops"], "stays": int(said["stays"]), "cpu_s": cpu_s}
  refused = re.search(r"RESOURCE_EXHAUSTED.*?\(?([\d.]+)([GMK])\)? exceeds", errors, re.DOTALL)
  refused = refused or re.search(r"RESOURCE_EXHAUSTED.*?Used ([\d.]+)([GMK]) of", errors, re.DOTALL)
  if refused:
    total = float(refused[1]) * {"G": 2**30, "M": 2**20, "K": 2**10}[refused[2]]
    return Compiled(**known, total=total, refused=True, buffers=(), traffic=None)
  texts = sorted(dump.glob(_LAST)) or sorted(dump.glob("*after_optimizations.txt"))
  if not texts or ("total" not in said and not list(dump.glob(_REPORT))):
    raise RuntimeError(f"a program could not be compiled:\n{errors[-3000:]}")
  total, buffers = said.get("total", 0.0), ()
  for path in dump.glob(_REPORT):  # Of a TPU's: all at its fullest, as the compiler itself checks.
    total, buffers = _read_report(path.read_text())
  traffic = traffic_lib.read(texts[-1].read_text())
  return Compiled(**known, total=total, refused=False, buffers=buffers, traffic=traffic)


def _read_report(text: str) -> tuple[float, tuple[str, ...]]:
  """Returns the bytes in the chip's main memory, and the largest buffers."""
  found = re.search(r"\(color=0\)\s+Total bytes: (\d+)", text)
  if found is None:
    raise RuntimeError("the compiler's report names no total")
  total = float(found[1])
  rows = re.findall(r"\);\s+([\d.]+)([GMK])iB;\s+\d+;\s+\d+; (.*)", text)
  scale = {"G": 2**30, "M": 2**20, "K": 2**10}
  sized = sorted(((float(n) * scale[u], shapes) for n, u, shapes in rows), reverse=True)
  return total, tuple(
    f"{size / 2**20:.0f} MiB {shapes.split(', ')[0]}" for size, shapes in sized[:_LARGEST]
  )
