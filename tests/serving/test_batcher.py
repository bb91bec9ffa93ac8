# SPDX-License-Identifier: Apache-2.0
"""The queue: which requests share a call, who waits for whom, and what ends a wait."""

import asyncio
import threading
import time

import numpy as np
import pytest

from auditdm_jax.serving import batcher as batcher_lib
from auditdm_jax.serving.batcher import Batcher, Sharing
from auditdm_jax.serving.engine import Ask
from auditdm_jax.serving.errors import ApiError
from auditdm_jax.serving.pictures import Square
from auditdm_jax.vlm import Completion

SQUARE = Square(np.zeros((8, 8, 3), np.uint8), b"x")


def ask(i, *, prompt=5, longest=8, images=0):
  return Ask((i,) * prompt, (SQUARE,) * images, longest, 0.0, 0)


class Model:
  """Says the first token of each prompt; each call takes `seconds`, or until `go` is set."""

  def __init__(self, seconds=0.0):
    self.seconds, self.batches, self.go = seconds, [], threading.Event()

  def __call__(self, asks):
    self.batches.append([a.ids[0] for a in asks])
    if self.seconds:
      time.sleep(self.seconds)
    else:
      self.go.wait(10)
    return [
      ValueError("poison") if a.ids[0] == 13 else Completion((a.ids[0],), truncated=False)
      for a in asks
    ]


def run(scenario, model, **batching):
  """Runs a coroutine function on a batcher, which it gets."""

  async def main():
    batcher = Batcher(model, Sharing(**batching))
    batcher.start()
    try:
      return await asyncio.wait_for(scenario(batcher), 20)
    finally:
      batcher.close()

  return asyncio.run(main())


async def until(condition):
  while not condition():
    await asyncio.sleep(0.002)


def test_what_comes_while_the_model_is_busy_shares_a_call():
  model = Model()

  async def scenario(batcher):
    first = asyncio.create_task(batcher.submit(ask(0)))
    await until(lambda: model.batches)
    rest = [asyncio.create_task(batcher.submit(ask(i))) for i in range(1, 6)]
    await until(lambda: batcher.queued == 5)
    model.go.set()
    return [(await task).tokens for task in (first, *rest)]

  assert run(scenario, model, max_batch=4) == [(i,) for i in range(6)]
  assert model.batches == [[0], [1, 2, 3, 4], [5]]


def test_a_batch_is_of_one_key_and_the_oldest_goes_first():
  model = Model()
  kinds = [{}, {"images": 1}, {}, {"longest": 100}, {"prompt": 40}, {"images": 1}, {"longest": 9}]

  async def scenario(batcher):
    first = asyncio.create_task(batcher.submit(ask(0)))
    await until(lambda: model.batches)
    rest = [asyncio.create_task(batcher.submit(ask(i, **kind))) for i, kind in enumerate(kinds, 1)]
    await until(lambda: batcher.queued == len(kinds))
    model.go.set()
    await asyncio.gather(first, *rest)

  run(scenario, model)
  # Answers of 8 and of 9 tokens are not worth two calls.
  assert model.batches == [[0], [1, 3, 7], [2, 6], [4], [5]]


def closed_loop(model, clients, rounds=6):
  """Clients that ask again as soon as they are answered; one of them is early."""

  async def scenario(batcher):
    async def client(i):
      await asyncio.sleep(0.03 * (i > 0))
      for _ in range(rounds):
        await batcher.submit(ask(i))
        await asyncio.sleep(0.002)

    await asyncio.gather(*(client(i) for i in range(clients)))

  run(scenario, model)


def test_clients_that_ask_again_at_once_stay_together():
  """Without a wait, those that came first and the rest would take turns for ever."""
  model = Model(seconds=0.1)
  closed_loop(model, 8)
  sizes = [len(batch) for batch in model.batches]
  assert sum(sizes) == 48 and sizes.count(8) >= 4, sizes


def test_a_client_that_is_alone_waits_for_nobody(monkeypatch):
  for bound in ("_LEAST_WAIT_S", "_MOST_WAIT_S"):
    monkeypatch.setattr(batcher_lib, bound, 1.0)
  start = time.monotonic()
  closed_loop(Model(seconds=0.01), 1)
  assert time.monotonic() - start < 3


def test_a_full_queue_says_when_to_come_again():
  model = Model()

  async def scenario(batcher):
    tasks = [asyncio.create_task(batcher.submit(ask(0)))]
    await until(lambda: model.batches)
    tasks += [asyncio.create_task(batcher.submit(ask(i))) for i in (1, 2)]
    await until(lambda: batcher.queued == 2)
    with pytest.raises(ApiError, match="2 requests are waiting") as error:
      await batcher.submit(ask(3))
    with pytest.raises(ApiError, match="2 requests are waiting"):
      batcher.check()
    model.go.set()
    await asyncio.gather(*tasks)
    batcher.check()
    return error.value

  error = run(scenario, model, max_queue=2)
  assert (error.status, error.code, int(error.headers["Retry-After"]) >= 1) == (
    429,
    "queue_full",
    True,
  )


def test_who_leaves_or_waits_too_long_is_not_asked_about():
  model = Model()

  async def scenario(batcher):
    busy = asyncio.create_task(batcher.submit(ask(0)))
    await until(lambda: model.batches)
    leaves = asyncio.create_task(batcher.submit(ask(1)))
    late = asyncio.create_task(asyncio.wait_for(batcher.submit(ask(2)), 0.3))
    await until(lambda: batcher.queued == 2)
    leaves.cancel()
    await until(lambda: batcher.queued == 1)
    with pytest.raises(TimeoutError):
      await late
    assert batcher.queued == 0
    model.go.set()
    assert (await busy).tokens == (0,)
    return await batcher.submit(ask(3))

  assert run(scenario, model).tokens == (3,)
  assert model.batches == [[0], [3]]


def test_a_failure_is_of_one_request():
  model = Model(seconds=0.01)

  async def scenario(batcher):
    asked = [batcher.submit(ask(i)) for i in (12, 13, 14)]
    return await asyncio.gather(*asked, return_exceptions=True)

  said = run(scenario, model)
  assert [c.tokens for c in said if isinstance(c, Completion)] == [(12,), (14,)]
  assert isinstance(said[1], ApiError) and said[1].status == 500 and "poison" not in str(said[1])


def test_after_a_bug_everyone_is_told():
  def broken(asks):
    raise SystemError("bug")

  async def scenario(batcher):
    for _ in range(2):
      with pytest.raises(ApiError) as error:
        await batcher.submit(ask(0))
      assert error.value.status == 503
      await until(lambda: not batcher.is_alive)

  run(scenario, broken)


def test_closing_tells_those_who_wait():
  model = Model()

  async def scenario(batcher):
    tasks = [asyncio.create_task(batcher.submit(ask(0)))]
    await until(lambda: model.batches)
    tasks.append(asyncio.create_task(batcher.submit(ask(1))))
    await until(lambda: batcher.queued == 1)
    batcher.close()
    return await asyncio.gather(*tasks, return_exceptions=True)

  said = run(scenario, model)
  model.go.set()
  assert [e.status for e in said] == [503, 503]
