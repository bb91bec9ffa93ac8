# SPDX-License-Identifier: Apache-2.0
"""Starts the same program in several processes of one job."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import socket
import subprocess
import sys
import time

import pytest

GRACE_S = 60.0
ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a process ended: `after_s` is when, since the first one did."""

  code: int
  out: str
  err: str
  after_s: float


@pytest.fixture(scope="session")
def start_all(tmp_path_factory) -> Callable[..., list[Ended]]:
  """Runs a command once per process, with what each must know of the others appended."""
  tmp_path = tmp_path_factory.mktemp("processes")
  started: list[subprocess.Popen] = []

  def run(command: Sequence[str], processes: int, *, timeout_s: float = 900) -> list[Ended]:
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    logs = []
    for k in range(processes):
      own = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={k}"]
      own = ["--distributed", *own] if processes > 1 else []
      out, err = (tmp_path / f"{len(started)}.{name}" for name in ("out", "err"))
      logs.append((out, err))
      with out.open("wb") as o, err.open("wb") as e:
        started.append(
          subprocess.Popen(
            [sys.executable, *command, *own],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=o,
            stderr=e,
          )
        )
    ends = _wait(started[-processes:], time.monotonic() + timeout_s)
    return [
      Ended(p.returncode, out.read_text(), err.read_text(), end - min(ends))
      for p, end, (out, err) in zip(started[-processes:], ends, logs)
    ]

  yield run
  for process in started:
    process.kill()


def _wait(processes: Sequence[subprocess.Popen], until: float) -> list[float]:
  """When each one ended; what is left a minute after the first did is killed."""
  ends: dict[int, float] = {}
  while len(ends) < len(processes):
    for k, process in enumerate(processes):
      if k not in ends and process.poll() is not None:
        ends[k] = time.monotonic()
        until = min(until, ends[k] + GRACE_S)
    if time.monotonic() > until:
      for process in processes:
        process.kill()
    time.sleep(0.05)
  return [ends[k] for k in range(len(processes))]
