# SPDX-License-Identifier: Apache-2.0
"""Threads next to the event loop, and how the one that owns the backend pads and halves a batch."""

import asyncio
from collections.abc import Callable, Sequence
import queue
import threading
from typing import Any, TypeVar

import numpy as np

from auditdm_jax.images.backend import Backend, Cancelled, Info, Job, Made, Progress

T = TypeVar("T")


class Threads:
  """Run calls in the order they come. Daemons: what hangs in one cannot hold up the exit."""

  def __init__(self, name: str, count: int = 1):
    self._calls: queue.SimpleQueue = queue.SimpleQueue()
    self._count = count
    for _ in range(count):
      threading.Thread(target=self._run, name=name, daemon=True).start()

  async def call(self, function: Callable[..., T], *args: Any) -> T:
    """Returns the result of function(*args)."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    self._calls.put((function, args, loop, future))
    return await future

  def close(self) -> None:
    """Ends the threads after the calls they have."""
    for _ in range(self._count):
      self._calls.put(None)

  def _run(self) -> None:
    while (call := self._calls.get()) is not None:
      function, args, loop, future = call
      if future.cancelled():  # Who called has left before its turn came.
        continue
      try:
        done, value = future.set_result, function(*args)
      except BaseException as error:  # Whatever it is, the caller waits for it.
        done, value = future.set_exception, error
      try:
        loop.call_soon_threadsafe(_unless_done, future, done, value)
      except RuntimeError:  # The loop was closed meanwhile: nobody waits.
        return
      # What may be large is not kept until the next call.
      call = function = args = future = done = value = None


def _unless_done(future: asyncio.Future, done: Callable, value: Any) -> None:
  if not future.done():
    done(value)


class Runner:
  """Calls a backend; one row per job, whatever the backend does."""

  def __init__(self, backend: Backend, *, max_batch: int):
    self._backend, self.info = backend, backend.info()
    self.max_batch = min([max_batch, *self.info.batch_sizes[-1:]])
    self.out_of_memory = 0
    self._caps: dict[tuple, int] = {}

  def rows(self, key: tuple) -> int:
    """Returns how many jobs of a key a batch may have."""
    return self._caps.get(key, self.max_batch)

  def run(self, jobs: Sequence[Job], progress: Progress) -> list[Made | Exception]:
    """One outcome per job; jobs share a key.

    Raises:
      Cancelled: by `progress`.
    """
    try:
      return self._padded(jobs, progress)
    except Cancelled:
      raise
    except MemoryError as error:
      self.out_of_memory += 1
      if jobs[0].deterministic and self.info.batch_sizes:
        # A smaller batch would make another image.
        return [
          _failure(error, "deterministic batches have a fixed size; lower batching.max_batch")
          for _ in jobs
        ]
      if len(jobs) > 1:
        self._caps[jobs[0].key] = max(padded_size(len(jobs), self.info, False) // 2, 1)
        return self._halves(jobs, progress)
      return [_failure(error, "too large even alone")]
    except BaseException as error:  # A panic of a Rust library is no Exception.
      if len(jobs) == 1:
        return [_failure(error, "alone in its batch")]
      return self._halves(jobs, progress)  # One row is the poison: the halves tell.

  def _halves(self, jobs: Sequence[Job], progress: Progress) -> list[Made | Exception]:
    half = (len(jobs) + 1) // 2
    return self.run(jobs[:half], progress) + self.run(jobs[half:], progress)

  def _padded(self, jobs: Sequence[Job], progress: Progress) -> list[Made | Exception]:
    surplus = padded_size(len(jobs), self.info, jobs[0].deterministic) - len(jobs)
    rows = self._backend.run([*jobs, *[jobs[-1]] * surplus], progress)
    if len(rows) != len(jobs) + surplus:
      raise RuntimeError(f"{len(rows)} rows for {len(jobs) + surplus} requests")
    return [_checked(row, job) for row, job in zip(rows, jobs)]


def padded_size(rows: int, info: Info, deterministic: bool) -> int:
  """Returns the number of rows a backend is given: one of its sizes, if it has any."""
  if not info.batch_sizes:
    return rows
  if deterministic:
    return info.batch_sizes[-1]
  return next((size for size in info.batch_sizes if size >= rows), rows)


def _failure(error: BaseException, note: str) -> Exception:
  # Never a ValueError: what is raised is the backend's fault and not the caption's.
  failure = RuntimeError(f"{type(error).__name__}: {error} ({note})")
  failure.__cause__ = error
  return failure.with_traceback(error.__traceback__)


def _checked(row: Made | Exception, job: Job) -> Made | Exception:
  if isinstance(row, Exception):
    return row
  if not isinstance(row, Made) or not isinstance(row.image, np.ndarray):
    return TypeError(f"the backend made a {type(row).__name__}, not an image")
  want = (job.height, job.width, 3)
  if row.image.dtype != np.uint8 or row.image.shape != want:
    shape = f"{row.image.dtype}{list(row.image.shape)}"
    return TypeError(f"the backend made {shape}, not uint8{list(want)}")
  return row
