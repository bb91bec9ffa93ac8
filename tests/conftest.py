# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU, offline and quietly; what needs several devices gets a process."""

import os
import tempfile

# Before anything imports jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["GRPC_VERBOSITY"] = "ERROR"
# Tests compile much and compute little. Without its fusion emitters XLA compiles in half the time.
for _flag in (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
):
  if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
# What one test has compiled is there for all others and for the processes that they start.
if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers have that of the process that started them.
  _COMPILED = tempfile.TemporaryDirectory(prefix="xla-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from collections.abc import Callable  # noqa: E402
import gc  # noqa: E402
import pathlib  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import textwrap  # noqa: E402

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent
# A shell's background job is started with SIGINT ignored, which the tests' processes would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# Each compiled program takes some memory maps. Linux gives a process 65,530 of them by default, and
# LLVM crashes when they run out.
_MANY_MAPS = 30_000


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
  """Drops compiled programs between modules once there are many of them."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
    sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture
def run_python() -> Callable[..., str]:
  """Runs Python source in a fresh process, with `devices` CPU devices; returns its stdout.

  Fails the test with the process's stderr if it does not exit with `code`.
  """

  def run(source: str, *, devices: int = 1, code: int = 0, timeout_s: float = 120) -> str:
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(source)],
      cwd=ROOT,
      env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=timeout_s,
      check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout

  return run
