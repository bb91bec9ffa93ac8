# SPDX-License-Identifier: Apache-2.0
"""Between the calls and the backend: join, cache, bounded queue, batches, one worker thread.

  submit ─ cached? ─ in flight? ─ admit ─▶ queue ─▶ batch of one key ─▶ worker thread ─▶ outcome
            └ answer   └ join       └ refuse: draining, full, too late

Everything here runs on one event loop; only `run_batch` runs in the worker thread, because
pipelines are not thread-safe.
"""

import asyncio
import collections
from concurrent import futures
import dataclasses
import hashlib
import logging
import time
from typing import Any

import numpy as np

from auditdm_jax.images.backend import Backend, Job, run_batch
from auditdm_jax.images.config import Batching, Limits
from auditdm_jax.images.failures import Reason, Refused

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Done:
  """A finished image.

  Attributes:
    image: u8[H,W,3].
    sha256: of its bytes.
  """

  image: np.ndarray
  sha256: bytes
  queue_s: float
  compute_s: float
  batch_size: int
  cached: bool = False


Outcome = Done | Refused


@dataclasses.dataclass(eq=False)
class _Entry:
  """A job under way, shared by all calls with its id."""

  job: Job
  future: asyncio.Future[Outcome]
  since: float
  deadline: float
  waiters: int = 0


class _Cache:
  """The last outcomes by request id, bounded by bytes."""

  _OVERHEAD = 1024

  def __init__(self, max_bytes: float):
    self._max_bytes, self._bytes = max_bytes, 0
    self._items: collections.OrderedDict[str, tuple[bytes, Outcome, int]] = (
      collections.OrderedDict()
    )

  def get(self, job: Job) -> Outcome | None:
    if job.request_id not in self._items:
      return None
    fingerprint, outcome, _ = self._items[job.request_id]
    _check_same(job, fingerprint)
    self._items.move_to_end(job.request_id)
    return outcome

  def put(self, job: Job, outcome: Outcome) -> None:
    size = self._OVERHEAD + (outcome.image.nbytes if isinstance(outcome, Done) else 0)
    self._items[job.request_id] = (job.fingerprint, outcome, size)
    self._bytes += size
    while self._bytes > self._max_bytes:
      self._bytes -= self._items.popitem(last=False)[1][2]


def _check_same(job: Job, fingerprint: bytes) -> None:
  if job.fingerprint != fingerprint:
    raise Refused(Reason.ID_REUSED, f"{job.request_id}: the same id with another body")


class Batcher:
  """Runs jobs on a backend in batches; every submit ends in Done or Refused."""

  def __init__(self, backend: Backend, batching: Batching, limits: Limits):
    self._backend, self._batching, self._limits = backend, batching, limits
    self._queue: list[_Entry] = []
    self._open: dict[str, _Entry] = {}  # queued or running
    self._cache = _Cache(limits.cache_mb * 2**20)
    self._arrived = asyncio.Event()
    self._idle = asyncio.Event()
    self._idle.set()
    self._draining = False
    self._batch_s: dict[tuple, float] = {}  # per key, smoothed
    self._worker = futures.ThreadPoolExecutor(1, thread_name_prefix="backend")
    self._task: asyncio.Task | None = None

  def start(self) -> None:
    self._task = asyncio.create_task(self._run())

  async def drain(self, grace_s: float) -> None:
    """Takes nothing new, waits for what is under way, gives up what is left after the grace."""
    self._draining = True
    try:
      await asyncio.wait_for(self._idle.wait(), grace_s)
    except TimeoutError:
      _LOG.warning("%d requests given up after %.1f s of draining", len(self._open), grace_s)
    self._task.cancel()
    for entry in list(self._open.values()):
      self._finish(entry, Refused(Reason.DRAINING, "the server stopped"))
    self._worker.shutdown(wait=False, cancel_futures=True)

  async def submit(self, job: Job, *, timeout_s: float) -> Done:
    """The image of a job; raises Refused. Cancelling one caller leaves those that joined it."""
    if outcome := self._cache.get(job):
      return dataclasses.replace(_unwrap(outcome), cached=True)
    entry = self._open.get(job.request_id)
    if entry is None:
      entry = self._admit(job, timeout_s)
    _check_same(job, entry.job.fingerprint)
    entry.deadline = max(entry.deadline, time.monotonic() + timeout_s)
    entry.waiters += 1
    try:
      return _unwrap(await asyncio.wait_for(asyncio.shield(entry.future), timeout_s))
    except TimeoutError:
      raise Refused(Reason.DEADLINE, f"not done within {timeout_s:.3f} s") from None
    finally:
      entry.waiters -= 1
      if not entry.waiters and entry in self._queue:
        self._queue.remove(entry)
        self._close(entry)

  def _admit(self, job: Job, timeout_s: float) -> _Entry:
    if self._draining:
      raise Refused(Reason.DRAINING, "the server is about to stop")
    queued_bytes = sum(e.job.source_bytes for e in self._queue) + job.source_bytes
    if len(self._queue) >= self._limits.max_queue:
      raise Refused(Reason.QUEUE_FULL, f"{len(self._queue)} requests are queued")
    if queued_bytes > self._limits.max_queue_mb * 2**20:
      raise Refused(Reason.QUEUE_FULL, "too many bytes are queued")
    batches = len(self._queue) // self._batching.max_batch + 1
    if timeout_s < (eta := batches * self._batch_s.get(job.key, 0.0)):
      # Forget a little each time: one slow spell must not shut the door for good.
      self._batch_s[job.key] *= 0.9
      raise Refused(Reason.DEADLINE, f"{timeout_s:.3f} s left, expected to need {eta:.3f} s")
    now = time.monotonic()
    entry = _Entry(job, asyncio.get_running_loop().create_future(), now, now + timeout_s)
    self._queue.append(entry)
    self._open[job.request_id] = entry
    self._idle.clear()
    self._arrived.set()
    return entry

  async def _run(self) -> None:
    loop = asyncio.get_running_loop()
    while True:
      batch = await self._next_batch()
      if not batch:
        continue
      start = time.monotonic()
      jobs = [entry.job for entry in batch]
      rows = await loop.run_in_executor(self._worker, run_batch, self._backend, jobs)
      seconds = time.monotonic() - start
      known = self._batch_s.get(jobs[0].key, seconds)
      self._batch_s[jobs[0].key] = 0.7 * known + 0.3 * seconds
      for entry, row in zip(batch, rows):
        self._finish(entry, _outcome(entry, row, start, seconds, len(batch)))

  async def _next_batch(self) -> list[_Entry]:
    """The oldest request and those that can share its call, in order of arrival."""
    self._arrived.clear()
    if not self._queue:
      await self._arrived.wait()
    head = self._queue[0] if self._queue else None  # A cancelled one may be gone again.
    if head is None:
      return []
    until = head.since + self._batching.max_wait_ms / 1e3
    while self._matching(head) < self._batching.max_batch:
      self._arrived.clear()
      try:
        await asyncio.wait_for(self._arrived.wait(), until - time.monotonic())
      except TimeoutError:
        break
    now = time.monotonic()
    batch = []
    for entry in [e for e in self._queue if e.job.key == head.job.key]:
      if len(batch) == self._batching.max_batch:
        break
      self._queue.remove(entry)
      if entry.deadline < now:
        self._finish(entry, Refused(Reason.DEADLINE, "expired in the queue"))
      else:
        batch.append(entry)
    return batch

  def _matching(self, head: _Entry) -> int:
    return sum(entry.job.key == head.job.key for entry in self._queue)

  def _finish(self, entry: _Entry, outcome: Outcome) -> None:
    # A backend's failure may pass; images and bad captions stay what they are.
    if isinstance(outcome, Done) or outcome.reason is Reason.INVALID_INSTRUCTION:
      self._cache.put(entry.job, outcome)
    self._close(entry)
    if not entry.future.done():
      entry.future.set_result(outcome)

  def _close(self, entry: _Entry) -> None:
    self._open.pop(entry.job.request_id, None)
    if not self._open:
      self._idle.set()


def _unwrap(outcome: Outcome) -> Done:
  if isinstance(outcome, Refused):
    raise Refused(outcome.reason, outcome.message)
  return outcome


def _outcome(entry: _Entry, row: Any, start: float, seconds: float, batch_size: int) -> Outcome:
  if isinstance(row, ValueError):
    return Refused(Reason.INVALID_INSTRUCTION, str(row))
  if isinstance(row, Exception):
    # The text itself is the users' affair; its hash finds it again.
    text = hashlib.sha256(entry.job.text.encode()).hexdigest()[:12]
    _LOG.error("backend failed on %s, text %s", entry.job.request_id, text, exc_info=row)
    return Refused(Reason.INTERNAL, f"{type(row).__name__}: {row}")
  digest = hashlib.sha256(row.tobytes()).digest()
  return Done(row, digest, start - entry.since, seconds, batch_size)
