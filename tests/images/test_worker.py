# SPDX-License-Identifier: Apache-2.0
"""Batches as the backend sees them: padded, halved, checked, given up."""

import asyncio
import contextlib
import dataclasses
import gc
import weakref

import numpy as np
import pytest

from auditdm_jax.images import worker
from auditdm_jax.images.backend import Cancelled, Job, Made
from tests.images import fake


def _jobs(*texts, **fields):
  return [Job(f"id {t}", t, 0, 8, 8, **fields) for t in texts]


def _runner(backend, max_batch=8):
  return worker.Runner(backend, max_batch=max_batch)


def _ignore(done, of):
  del done, of


def _texts(n):
  return [f"row {i}" for i in range(n)]


def _assert_images(rows, texts):
  for row, text in zip(rows, texts, strict=True):
    np.testing.assert_array_equal(row.image, fake.pixels(text, 0))


@pytest.mark.parametrize("rows, padded", [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8)])
def test_batches_are_padded_to_fixed_sizes(rows, padded):
  backend = fake.FakeBackend(batch_sizes=(1, 2, 4, 8))
  made = _runner(backend).run(_jobs(*_texts(rows)), _ignore)
  assert len(backend.calls[0]) == padded
  _assert_images(made, _texts(rows))


def test_a_deterministic_batch_has_one_size_whatever_it_holds():
  backend = fake.FakeBackend(batch_sizes=(1, 2, 4))
  for rows in (1, 3):
    _runner(backend).run(_jobs(*_texts(rows), deterministic=True), _ignore)
  assert [len(call) for call in backend.calls] == [4, 4]


def test_a_batch_is_no_larger_than_the_largest_size():
  assert _runner(fake.FakeBackend(batch_sizes=(1, 2)), max_batch=16).max_batch == 2


def test_out_of_memory_halves_and_remembers():
  backend = fake.FakeBackend(fits=2)
  runner = _runner(backend)
  jobs = _jobs(*_texts(8))
  _assert_images(runner.run(jobs, _ignore), _texts(8))
  assert [len(call) for call in backend.calls] == [8, 4, 2, 2, 4, 2, 2]
  assert runner.rows(jobs[0].key) == 2
  other = dataclasses.replace(jobs[0], width=16)
  assert runner.rows(other.key) == 8, "another size may fit"
  assert runner.out_of_memory == 3


def test_a_row_that_does_not_fit_alone_fails_as_the_services_fault():
  (row,) = _runner(fake.FakeBackend(fits=0)).run(_jobs("x"), _ignore)
  assert isinstance(row, RuntimeError) and "MemoryError" in str(row)


def test_a_deterministic_batch_is_never_made_smaller():
  backend = fake.FakeBackend(fits=2, batch_sizes=(1, 4))
  rows = _runner(backend).run(_jobs("a", "b", deterministic=True), _ignore)
  assert len(backend.calls) == 1
  assert all("max_batch" in str(row) for row in rows)


def test_one_poisoned_row_fails_alone():
  backend = fake.FakeBackend()
  texts = [*_texts(6), "poison", "impossible"]
  rows = _runner(backend).run(_jobs(*texts), _ignore)
  _assert_images(rows[:6], texts[:6])
  assert isinstance(rows[6], RuntimeError) and "a kernel died" in str(rows[6])
  assert isinstance(rows[7], ValueError), "its own answer, untouched by its neighbour"


def test_a_panic_is_a_poison_like_any_other():
  class Panic(BaseException):  # As pyo3's, of the tokenizers library.
    pass

  class Panicky(fake.FakeBackend):
    def run(self, jobs, progress):
      if any("panic" in j.text for j in jobs):
        raise Panic("called `Option::unwrap()` on a `None` value")
      return super().run(jobs, progress)

  rows = _runner(Panicky()).run(_jobs("a", "panic", "b"), _ignore)
  assert isinstance(rows[1], RuntimeError) and "Panic" in str(rows[1])
  _assert_images([rows[0], rows[2]], ["a", "b"])


def test_what_a_backend_raises_is_never_the_captions_fault():
  class Buggy(fake.FakeBackend):
    def run(self, jobs, progress):
      raise ValueError("a bug")

  rows = _runner(Buggy()).run(_jobs("a", "b"), _ignore)
  assert [type(row) for row in rows] == [RuntimeError, RuntimeError]


@pytest.mark.parametrize(
  "rows",
  [[], [Made(np.zeros((8, 8, 3), np.float32))], [Made(np.zeros((8, 9, 3), np.uint8))], [None]],
)
def test_rows_that_are_no_images_are_failures(rows):
  class Odd(fake.FakeBackend):
    def run(self, jobs, progress):
      return rows

  (row,) = _runner(Odd()).run(_jobs("x"), _ignore)
  assert isinstance(row, Exception) and not isinstance(row, ValueError)


def test_cancelled_passes_through_and_leaves_the_backend_usable():
  runner = _runner(fake.FakeBackend(steps=4))
  seen = []

  def stop_at_two(done, of):
    seen.append((done, of))
    if done == 2:
      raise Cancelled

  with pytest.raises(Cancelled):
    runner.run(_jobs("x", steps=4), stop_at_two)
  assert seen == [(1, 4), (2, 4)]
  _assert_images(runner.run(_jobs("x", steps=4), _ignore), ["x"])


def test_a_thread_that_waits_keeps_nothing_of_its_last_call():
  class Large(list):
    """A list that can be referred to weakly."""

  def refuse(value):
    raise ValueError(value)

  async def run():
    threads, kept = worker.Threads("test"), []
    for function in (lambda value: value, refuse):
      value = Large()
      kept.append(weakref.ref(value))
      call = threads.call(function, value)
      del value
      with contextlib.suppress(ValueError):
        await call
      del call
    for _ in range(100):  # The thread lets go after it has told.
      gc.collect()
      if all(ref() is None for ref in kept):
        break
      await asyncio.sleep(0.05)
    threads.close()
    return [ref() is None for ref in kept]

  assert asyncio.run(run()) == [True, True]
