# SPDX-License-Identifier: Apache-2.0
"""Programs of a sweep, each a process of its own, one after the other or several at a time.

What a program prints goes into its log, and to the terminal with its name in front. One that fails
does not stop the others. When this process is told to stop, it stops them in order: each saves
itself, and the same command goes on from there. A process that was killed cannot stop what it has
started; a folder in which such a program is still at work is waited for.
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
import time

from auditdm_jax.audit.report import text as text_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.run import RunFolder

PROGRAM = (sys.executable, "-m", "auditdm_jax")
_POLL_S = 2.0
_STOP_S = 120.0  # For a checkpoint.
_LONGEST = 400  # Characters of the last line, as errors show it.


@dataclasses.dataclass(frozen=True)
class Job:
  """One program.

  Attributes:
    name: what messages call it.
    args: of the program.
    folder: that it works in.
    log: file that gets what it prints.
  """

  name: str
  args: tuple[str, ...]
  folder: pathlib.Path
  log: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a program ended.

  Attributes:
    job: which one.
    code: its exit code; below 0, the signal that ended it; None if it was not started.
    seconds: that it ran.
    said: its last line.
  """

  job: Job
  code: int | None
  seconds: float
  said: str


class Runner:
  """Runs jobs, at most so many at a time."""

  def __init__(self, *, at_once: int, program: Sequence[str] = PROGRAM):
    self._at_once, self._program = at_once, tuple(program)
    self._running: set[subprocess.Popen[str]] = set()
    self._lock = threading.Lock()
    self._stopped = threading.Event()

  def run(self, jobs: Sequence[Job]) -> list[Ended]:
    """Runs all jobs and returns how they ended, in their order.

    Raises:
      KeyboardInterrupt: it was told to stop; what ran is stopped by then.
    """
    with concurrent.futures.ThreadPoolExecutor(self._at_once) as pool:
      futures = [pool.submit(self._one, job) for job in jobs]
      try:
        return [future.result() for future in futures]
      except BaseException:
        self._stop()
        raise

  def _stop(self) -> None:
    """Stops what runs, starts nothing more, and waits."""
    self._stopped.set()
    with self._lock:
      running = list(self._running)
    for process in running:
      process.terminate()
    end = time.monotonic() + _STOP_S
    for process in running:
      try:
        process.wait(max(end - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        process.kill()

  def _one(self, job: Job) -> Ended:
    self._wait_for_others(job)
    process = self._start(job)
    if process is None:
      return Ended(job, None, 0.0, "")
    start, said = time.monotonic(), ""
    assert process.stdout is not None
    with open(job.log, "a", encoding="utf-8") as log, process.stdout:
      for line in process.stdout:
        log.write(line)
        log.flush()
        if line := text_lib.visible(line.rstrip()):
          said = line
          print(f"{job.name} | {line}", flush=True)
    code = process.wait()
    with self._lock:
      self._running.discard(process)
    return Ended(job, code, time.monotonic() - start, said[:_LONGEST])

  def _start(self, job: Job) -> subprocess.Popen[str] | None:
    """Starts a job; None if no more are to be started."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with self._lock:
      if self._stopped.is_set():
        return None
      process = subprocess.Popen(
        [*self._program, *job.args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C is for this process, which stops its children in order.
      )
      self._running.add(process)
    return process

  def _wait_for_others(self, job: Job) -> None:
    """Waits until nobody works in the folder of a job."""
    told = False
    while not self._stopped.is_set() and _is_taken(job.folder):
      if not told:
        print(f"{job.name} | waits for another process that works in {job.folder}", flush=True)
      told = True
      self._stopped.wait(_POLL_S)


def _is_taken(folder: pathlib.Path) -> bool:
  if not (folder / ".lock").exists():
    return False
  try:
    with RunFolder(folder, config_hash="").locked():
      return False
  except UserError:
    return True
