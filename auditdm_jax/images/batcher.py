# SPDX-License-Identifier: Apache-2.0
"""Between the calls and the backend: join, cache, bounded queue, batches, one worker thread.

  submit ─ cached? ─ in flight? ─ admit ─▶ queue ─▶ batch of one key ─▶ worker thread ─▶ outcome
            └ answer   └ join       └ refuse: draining, full, too late

Everything here runs on one event loop; only the backend runs in the worker thread, because
pipelines are not thread-safe.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable, Iterator
import contextlib
import dataclasses
import hashlib
import logging
import math
import threading
import time

from auditdm_jax.images import worker
from auditdm_jax.images.backend import Backend, Cancelled, Info, Job, Made
from auditdm_jax.images.config import Batching, Limits
from auditdm_jax.images.failures import NoImageReason, Refused
from auditdm_jax.images.results import Cache, Done, Outcome, check_same, unwrap
from auditdm_jax.images.telemetry import Metrics, outline, shown_id, text_hash

_LOG = logging.getLogger(__name__)
_KNOWN_KEYS = 256  # of those whose batches' time is remembered; a guidance scale is part of one.
_SMOOTH = 0.3  # Weight of the newest batch in what a batch is expected to take.


@dataclasses.dataclass(frozen=True)
class Queued:
  position: int
  eta_s: float


@dataclasses.dataclass(frozen=True)
class Step:
  done: int
  of: int


@dataclasses.dataclass(eq=False)
class _Entry:
  """A job under way, shared by all calls with its id."""

  job: Job
  future: asyncio.Future[Outcome]
  since: float
  deadline: float
  waiters: int = 0
  step: Step | None = None  # Set once it runs.
  watchers: list[asyncio.Event] = dataclasses.field(default_factory=list)

  def tell(self) -> None:
    for event in self.watchers:
      event.set()


@dataclasses.dataclass(eq=False)
class _Running:
  entries: list[_Entry]
  start: float
  abandoned: threading.Event = dataclasses.field(default_factory=threading.Event)


class JobQueue:
  """Runs jobs on a backend in batches; every submit ends in Done or Refused.

  Attributes:
    broken: set if it can run no more.
  """

  def __init__(self, batching: Batching, limits: Limits, metrics: Metrics):
    self._batching, self._limits, self._metrics = batching, limits, metrics
    self._queue: dict[str, _Entry] = {}  # in order of arrival
    self._queued: collections.Counter[tuple] = collections.Counter()  # by key
    self._queued_bytes = 0
    self._open: dict[str, _Entry] = {}  # queued or running
    self._running: _Running | None = None
    self._cache = Cache(limits.cache_mb * 2**20)
    self._arrived, self._idle = asyncio.Event(), asyncio.Event()
    self._idle.set()
    self._draining, self.broken = False, asyncio.Event()
    self._batch_s: dict[tuple, float] = {}  # per key, smoothed
    self._thread = worker.Threads("backend")
    self._runner: worker.Runner | None = None
    self._task: asyncio.Task | None = None

  async def start(self, make_backend: Callable[[], Backend]) -> Info:
    """Loads the backend, in the thread that will call it."""
    make = lambda: worker.Runner(make_backend(), max_batch=self._batching.max_batch)  # noqa: E731
    self._runner = await self._thread.call(make)
    self._task = asyncio.create_task(self._run())
    self._task.add_done_callback(self._ended)
    return self._runner.info

  def _ended(self, task: asyncio.Task) -> None:
    """The loop ends by cancellation only; by a bug of ours nobody would answer any more."""
    if task.cancelled():
      return
    _LOG.critical("the batcher ended", exc_info=task.exception())
    self._draining = True
    for entry in list(self._open.values()):
      self._finish(entry, Refused(NoImageReason.DRAINING, "the server has to stop"))
    self.broken.set()

  async def drain(self, grace_s: float) -> None:
    """Takes nothing new, waits for what is under way, gives up what is left after the grace."""
    self._draining = True
    try:
      await asyncio.wait_for(self._idle.wait(), grace_s)
    except TimeoutError:
      _LOG.warning("%d requests given up after %.1f s of draining", len(self._open), grace_s)
    if self._running is not None:
      self._running.abandoned.set()
    if self._task is not None:
      self._task.cancel()
    for entry in list(self._open.values()):
      self._finish(entry, Refused(NoImageReason.DRAINING, "the server stopped"))
    self._thread.close()

  async def submit(self, job: Job, *, timeout_s: float) -> Done:
    """Returns the image of a job; raises Refused. Callers that joined a cancelled one stay."""
    if outcome := self._from_cache(self._cache.get(job)):
      return outcome
    with self._joined(job, timeout_s) as entry:
      return await _wait(entry, timeout_s)

  async def watch(self, job: Job, *, timeout_s: float) -> AsyncIterator[Queued | Step | Done]:
    """As `submit`, with what happens on the way; states that pass quickly may be left out."""
    if outcome := self._from_cache(self._cache.get(job)):
      yield outcome
      return
    with self._joined(job, timeout_s) as entry:
      changed, last = asyncio.Event(), None
      entry.watchers.append(changed)
      until = time.monotonic() + timeout_s
      while not entry.future.done():
        changed.clear()
        if (now := self._state(entry)) != last:
          yield (last := now)
        try:
          await asyncio.wait_for(changed.wait(), until - time.monotonic())
        except TimeoutError:
          break
      yield await _wait(entry, until - time.monotonic())

  async def result(self, request_id: str, *, timeout_s: float) -> Done:
    """Returns the image under an id, waited for if it is under way; raises Refused."""
    if outcome := self._from_cache(self._cache.get_id(request_id)):
      return outcome
    if request_id not in self._open:
      raise Refused(
        NoImageReason.UNKNOWN_ID, f"{request_id}: not under way, and not among the last"
      )
    with self._joined(self._open[request_id].job, timeout_s) as entry:
      return await _wait(entry, timeout_s)

  def _from_cache(self, outcome: Outcome | None) -> Done | None:
    if outcome is None:
      return None
    self._metrics.cache_hits.inc()
    return dataclasses.replace(unwrap(outcome), cached=True)

  @contextlib.contextmanager
  def _joined(self, job: Job, timeout_s: float) -> Iterator[_Entry]:
    """The entry of a job for one more caller, who leaves it at the end."""
    entry = self._open.get(job.request_id)
    if entry is None:
      entry = self._admit(job, timeout_s)
    else:
      check_same(job, entry.job.fingerprint)
      self._metrics.joins.inc()
    entry.deadline = max(entry.deadline, time.monotonic() + timeout_s)
    entry.waiters += 1
    try:
      yield entry
    finally:
      entry.waiters -= 1
      if not entry.waiters and not entry.future.done():
        self._unwanted(entry)

  def _unwanted(self, entry: _Entry) -> None:
    """Nobody waits any more: out of the queue, or, if none of the batch is wanted, an early end."""
    if self._queue.get(entry.job.request_id) is entry:
      self._dequeue(entry)
      self._close(entry)
    elif (running := self._running) and not any(e.waiters for e in running.entries):
      running.abandoned.set()
      for other in running.entries:
        self._close(other)  # Whoever asks again begins anew.

  def _admit(self, job: Job, timeout_s: float) -> _Entry:
    if self._draining:
      raise Refused(NoImageReason.DRAINING, "the server is about to stop")
    eta = self._eta(job)
    if len(self._queue) >= self._limits.max_queue:
      raise Refused(
        NoImageReason.QUEUE_FULL,
        f"{len(self._queue)} requests are queued",
        retry_s=min(eta / 2, 2.0),
      )
    if self._queued_bytes + job.source_bytes > self._limits.max_queue_mb * 2**20:
      raise Refused(
        NoImageReason.QUEUE_FULL, "too many bytes are queued", retry_s=min(eta / 2, 2.0)
      )
    if timeout_s < eta:
      # Forget a little each time: one slow spell must not shut the door for good.
      self._batch_s = {key: 0.9 * seconds for key, seconds in self._batch_s.items()}
      raise Refused(NoImageReason.DEADLINE, f"{timeout_s:.3f} s left, expected to need {eta:.3f} s")
    now = time.monotonic()
    entry = _Entry(job, asyncio.get_running_loop().create_future(), now, now + timeout_s)
    self._queue[job.request_id] = self._open[job.request_id] = entry
    self._queued[job.key] += 1
    self._queued_bytes += job.source_bytes
    self._gauge()
    self._idle.clear()
    self._arrived.set()
    return entry

  def _eta(self, job: Job) -> float:
    """Returns the seconds until a job that came now would be done, as far as past batches tell."""
    left = 0.0
    if self._running is not None:
      usual = self._batch_s.get(self._running.entries[0].job.key, 0.0)
      left = max(usual - (time.monotonic() - self._running.start), 0.0)
    for key, count in (self._queued + collections.Counter([job.key])).items():
      left += math.ceil(count / self._runner.rows(key)) * self._batch_s.get(key, 0.0)
    return left

  def _state(self, entry: _Entry) -> Queued | Step:
    if entry.step is not None:
      return entry.step
    ids = list(self._queue)
    position = ids.index(entry.job.request_id)
    return Queued(position, self._eta(entry.job))

  def _dequeue(self, entry: _Entry) -> None:
    del self._queue[entry.job.request_id]
    self._queued[entry.job.key] -= 1
    if not self._queued[entry.job.key]:
      del self._queued[entry.job.key]
    self._queued_bytes -= entry.job.source_bytes
    self._gauge()

  def _gauge(self) -> None:
    self._metrics.queue_depth.set(len(self._queue))
    self._metrics.queue_bytes.set(self._queued_bytes)

  async def _run(self) -> None:
    while True:
      entries = await self._next_batch()
      if entries:
        await self._run_batch(entries)

  async def _run_batch(self, entries: list[_Entry]) -> None:
    loop = asyncio.get_running_loop()
    running = self._running = _Running(entries, time.monotonic())

    def progress(done: int, of: int) -> None:
      if running.abandoned.is_set():
        raise Cancelled
      loop.call_soon_threadsafe(_stepped, entries, Step(done, of))

    _stepped(entries, Step(0, 0))
    for entry in self._queue.values():
      entry.tell()  # Their places have changed.
    job = entries[0].job
    try:
      rows = await self._thread.call(self._runner.run, [e.job for e in entries], progress)
    except Cancelled:
      self._metrics.cancelled.inc()
      # It would have taken this long at least: late requests can be refused early.
      seconds = time.monotonic() - running.start
      self._learn(job.key, max(self._batch_s.get(job.key, 0.0), seconds))
      return
    finally:
      self._running = None
    seconds = time.monotonic() - running.start
    known = self._batch_s.get(job.key, seconds)
    self._learn(job.key, (1 - _SMOOTH) * known + _SMOOTH * seconds)
    self._metrics.ran(job.mode, len(entries), self._runner, seconds)
    for entry, row in zip(entries, rows):
      self._finish(entry, _outcome(entry, row, running.start, seconds, len(entries)))

  def _learn(self, key: tuple, seconds: float) -> None:
    """Remembers what a batch of a key takes, in the place of the key that ran longest ago."""
    self._batch_s.pop(key, None)
    self._batch_s[key] = seconds
    if len(self._batch_s) > _KNOWN_KEYS:
      del self._batch_s[next(iter(self._batch_s))]

  async def _next_batch(self) -> list[_Entry]:
    """Returns the oldest request and those that can share its call, in order of arrival."""
    self._arrived.clear()
    if not self._queue:
      await self._arrived.wait()
    head = next(iter(self._queue.values()), None)  # A cancelled one may be gone again.
    if head is None:
      return []
    until = head.since + self._batching.max_wait_ms / 1e3
    rows = self._runner.rows(head.job.key)
    while self._queued[head.job.key] < rows:
      self._arrived.clear()
      try:
        await asyncio.wait_for(self._arrived.wait(), until - time.monotonic())
      except TimeoutError:
        break
    now, batch = time.monotonic(), []
    for entry in [e for e in self._queue.values() if e.job.key == head.job.key]:
      if len(batch) == rows:
        break
      self._dequeue(entry)
      if entry.deadline < now:
        self._finish(entry, Refused(NoImageReason.DEADLINE, "expired in the queue"))
      else:
        batch.append(entry)
        self._metrics.queue_seconds.observe(now - entry.since)
    return batch

  def _finish(self, entry: _Entry, outcome: Outcome) -> None:
    # A backend's failure may pass; images and bad captions stay what they are.
    if isinstance(outcome, Done) or outcome.reason is NoImageReason.INVALID_INSTRUCTION:
      self._cache.put(entry.job, outcome)
    self._close(entry)
    if not entry.future.done():
      entry.future.set_result(outcome)
    entry.tell()

  def _close(self, entry: _Entry) -> None:
    if self._open.get(entry.job.request_id) is entry:  # It may have begun anew.
      del self._open[entry.job.request_id]
    if not self._open:
      self._idle.set()


def _stepped(entries: list[_Entry], step: Step) -> None:
  for entry in entries:
    entry.step = step
    entry.tell()


async def _wait(entry: _Entry, timeout_s: float) -> Done:
  try:
    return unwrap(await asyncio.wait_for(asyncio.shield(entry.future), timeout_s))
  except TimeoutError:
    raise Refused(NoImageReason.DEADLINE, f"not done within {timeout_s:.3f} s") from None


def _outcome(
  entry: _Entry, row: Made | Exception, start: float, seconds: float, batch_size: int
) -> Outcome:
  if isinstance(row, Refused):
    return row
  if isinstance(row, ValueError):
    return Refused(NoImageReason.INVALID_INSTRUCTION, str(row))
  if isinstance(row, Exception):
    name, text = shown_id(entry.job.request_id), text_hash(entry.job.text)
    _LOG.error("backend failed on %s, text %s: %s", name, text, outline(row))
    return Refused(NoImageReason.INTERNAL, f"{type(row).__name__}: {row}")
  digest = hashlib.sha256(row.image.tobytes()).digest()
  return Done(
    row.image, digest, entry.job.seed, start - entry.since, seconds, batch_size, row.truncated
  )
