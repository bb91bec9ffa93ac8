# SPDX-License-Identifier: Apache-2.0
"""The bounded queue between the requests and the model's thread.

  submit ─ full? ─▶ queue ─▶ batch of one key ─▶ the model's thread ─▶ outcome of each

The oldest request decides the key, so that none starves. While the model is busy, requests gather
by themselves. When it has answered, the next batch waits a little for as many as there were:
clients that ask again at once stay together, and a client that is alone waits for nobody.
"""

import asyncio
from collections.abc import Callable, Sequence
import dataclasses
import logging
import time

from auditdm_jax.images.worker import Threads
from auditdm_jax.serving.engine import Ask
from auditdm_jax.serving.errors import ApiError
from auditdm_jax.vlm import Completion

_LOG = logging.getLogger(__name__)
_SMOOTH = 0.3  # Weight of the newest batch in what a request is expected to take.
# How long an idle model waits for others: a share of the time of the last batch, within bounds.
_WAIT_SHARE, _LEAST_WAIT_S, _MOST_WAIT_S = 0.1, 0.005, 0.25

Run = Callable[[Sequence[Ask]], Sequence[Completion | Exception]]


@dataclasses.dataclass(frozen=True)
class Sharing:
  """How requests share the model.

  Attributes:
    max_batch: requests in one call.
    max_queue: requests that wait; more are told to come again.
    timeout_s: how long a request may take once it has come in, waiting included.
  """

  max_batch: int = 64
  max_queue: int = 256
  timeout_s: float = 600.0


@dataclasses.dataclass(eq=False)
class _Entry:
  ask: Ask
  future: asyncio.Future[Completion]


class Batcher:
  """Answers requests in batches, on one thread; belongs to one event loop.

  Args:
    run: answers a batch; called on the model's thread only.
    batching: the limits.
  """

  def __init__(self, run: Run, batching: Sharing):
    self._run, self._batching = run, batching
    self._queue: list[_Entry] = []  # In order of arrival.
    self._running: list[_Entry] = []
    self._arrived = asyncio.Event()
    self._expected = 1  # Requests that come together, as of last time.
    self._wait_until = 0.0  # For them.
    self._seconds = 0.0  # That a request takes, smoothed.
    self._thread = Threads("model")
    self._task: asyncio.Task | None = None

  def start(self) -> None:
    """Begins to answer."""
    self._task = asyncio.create_task(self._loop())
    self._task.add_done_callback(self._ended)

  def close(self) -> None:
    """Ends; whoever still waits is told."""
    if self._task is not None:
      self._task.cancel()
    self._give_up(ApiError(503, "the server stopped", code="stopped", retry_s=1.0))
    self._thread.close()

  @property
  def is_alive(self) -> bool:
    """Whether requests are answered."""
    return self._task is not None and not self._task.done()

  @property
  def queued(self) -> int:
    """How many requests wait."""
    return len(self._queue)

  @property
  def running(self) -> int:
    """How many requests the model is answering."""
    return len(self._running)

  def check(self) -> None:
    """Raises an ApiError if one more request would not be answered, or cannot wait."""
    if not self.is_alive:
      raise ApiError(503, "the model answers no more: the log says why", code="not_ready")
    if len(self._queue) >= self._batching.max_queue:
      raise ApiError(
        429,
        f"{len(self._queue)} requests are waiting already",
        code="queue_full",
        # Half of them are done by then.
        retry_s=len(self._queue) * self._seconds / 2,
      )

  async def submit(self, ask: Ask) -> Completion:
    """Returns the completion; one that is cancelled leaves the queue.

    Raises:
      ApiError: the queue is full, or the model failed.
    """
    self.check()
    entry = _Entry(ask, asyncio.get_running_loop().create_future())
    self._queue.append(entry)
    self._arrived.set()
    try:
      return await entry.future
    finally:
      if entry in self._queue:
        self._queue.remove(entry)

  async def _loop(self) -> None:
    while True:
      batch = await self._next_batch()
      start = time.monotonic()
      self._running = batch
      outcomes = await self._thread.call(self._run, [entry.ask for entry in batch])
      self._running = []
      self._learn(len(batch), time.monotonic() - start)
      for entry, outcome in zip(batch, outcomes):
        _finish(entry, outcome)

  def _learn(self, rows: int, seconds: float) -> None:
    """Sets what the next batch waits for, and what a request is expected to take."""
    self._expected = min(rows + len(self._queue), self._batching.max_batch)
    wait_s = min(max(_WAIT_SHARE * seconds, _LEAST_WAIT_S), _MOST_WAIT_S)
    self._wait_until = time.monotonic() + wait_s
    weight = _SMOOTH if self._seconds else 1.0
    self._seconds += weight * (seconds / rows - self._seconds)

  async def _next_batch(self) -> list[_Entry]:
    """Takes the oldest request and those that can share its call, in order of arrival."""
    while True:
      await self._gather(1, None)
      await self._gather(self._expected, self._wait_until)
      if self._queue:  # Those who waited may have left.
        key = self._queue[0].ask.key
        batch = [entry for entry in self._queue if entry.ask.key == key]
        batch = batch[: self._batching.max_batch]
        self._queue = [entry for entry in self._queue if entry not in batch]
        return batch

  async def _gather(self, enough: int, until: float | None) -> None:
    """Waits for so many requests, at most until then."""
    while len(self._queue) < enough:
      left = None if until is None else until - time.monotonic()
      self._arrived.clear()
      try:
        await asyncio.wait_for(self._arrived.wait(), left)
      except TimeoutError:
        return

  def _ended(self, task: asyncio.Task) -> None:
    """The loop ends when it is cancelled only; after a bug nobody would be answered any more."""
    if not task.cancelled():
      _LOG.critical("the batcher ended", exc_info=task.exception())
      self._give_up(ApiError(503, "the server failed", code="not_ready"))

  def _give_up(self, error: ApiError) -> None:
    for entry in [*self._queue, *self._running]:
      _fail(entry, error)
    self._queue.clear()


def _finish(entry: _Entry, outcome: Completion | Exception) -> None:
  if isinstance(outcome, Exception):
    _LOG.error("the model failed on a request", exc_info=outcome)
    _fail(entry, ApiError(500, "the model failed on this request", code="model_failed"))
  elif not entry.future.done():
    entry.future.set_result(outcome)


def _fail(entry: _Entry, error: ApiError) -> None:
  if not entry.future.done():
    entry.future.set_exception(error)
