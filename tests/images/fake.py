# SPDX-License-Identifier: Apache-2.0
"""A backend that does what the text says, and a server of it in this or in another process."""

import argparse
import asyncio
from collections.abc import Callable
import contextlib
import json
import socket
import threading
import time

import numpy as np

from auditdm_jax.images import process, server, telemetry
from auditdm_jax.images.backend import Info, Made
from auditdm_jax.images.config import Batching, ImagesConfig, Limits, Security


class _Broken(np.ndarray):
  """An image that cannot be sent: a fault behind all checks."""

  def tobytes(self, order="C"):
    raise OSError("no bytes")


class FakeBackend:
  """Pixels are a function of text, seed and source; some words mean trouble.

  Args:
    sleep_s: of a batch, over all of its steps.
    row_s: more per row.
    fits: rows that fit into its memory.

  Attributes:
    go: while it is cleared, every call is held.
  """

  def __init__(
    self, sleep_s=0.0, *, row_s=0.0, fits=1 << 30, steps=0, batch_sizes=(), revision="r1"
  ):
    self.sleep_s, self.row_s, self.fits = sleep_s, row_s, fits
    self.calls: list[list[str]] = []
    self.go = threading.Event()
    self.go.set()
    self._info = Info(
      "fake",
      revision,
      {"kind": "noise"},
      ("generate", "edit", "sham"),
      steps=steps,
      guidance=2.5 if steps else None,
      negative=bool(steps),
      batch_sizes=batch_sizes,
    )

  def info(self):
    return self._info

  def run(self, jobs, progress):
    self.calls.append([j.text for j in jobs])
    self.go.wait(60.0)
    if len(jobs) > self.fits:
      raise MemoryError(f"{len(jobs)} rows")
    if any("mismade" in j.text for j in jobs):
      return [Made(_Broken((8, 8, 3), np.uint8)) for _ in jobs]
    if any("forever" in j.text for j in jobs):
      time.sleep(60.0)
    n = max(jobs[0].steps, 1)
    for i in range(n):
      time.sleep((self.sleep_s + self.row_s * len(jobs)) / n)
      progress(i + 1, n)
    if any("poison" in j.text for j in jobs):
      raise RuntimeError("a kernel died")
    return [self._row(j) for j in jobs]

  def _row(self, job):
    if "impossible" in job.text:
      return ValueError(f"cannot draw {job.text!r}")
    if "long-winded" in job.text:
      return RuntimeError(job.text * 10)
    if "broken" in job.text:
      return KeyError("weights")
    if "small" in job.text:
      return Made(np.zeros((1, 1, 3), np.uint8))
    return Made(pixels(job.text, job.seed, job.width, job.height, job.source), "cut" in job.text)


def pixels(text, seed, width=8, height=8, source=None):
  """u8[H,W,3] that FakeBackend makes."""
  rng = np.random.default_rng([seed, *text.encode()])
  noise = rng.integers(0, 256, (height, width, 3), np.uint8)
  return noise if source is None else noise ^ source


@contextlib.contextmanager
def serving(backend, config: ImagesConfig | None = None, *, warm: Callable = lambda b: b):
  """A server on a thread of its own; yields (server, address, run) with run(coroutine)."""
  loop = asyncio.new_event_loop()
  thread = threading.Thread(target=loop.run_forever)
  thread.start()

  def run(coroutine, timeout_s=10.0):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout_s)

  async def make():
    return server.ImageServer(config or ImagesConfig(width=8, height=8))

  try:
    images = run(make())
    address = run(images.start())
    run(images.warm_up(lambda: warm(backend)))
    yield images, address, run
    run(images.drain(5.0))
  finally:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
  """Returns whether a condition has come true in time."""
  until = time.monotonic() + timeout_s
  while not condition():
    if time.monotonic() > until:
      return False
    time.sleep(0.01)
  return True


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--sleep_s", type=float, default=0.0)
  parser.add_argument("--max_batch", type=int, default=4)
  parser.add_argument("--max_queue", type=int, default=512)
  parser.add_argument("--cache_mb", type=float, default=64.0)
  parser.add_argument("--token", default="")
  parser.add_argument("--load_s", type=float, default=0.0)
  parser.add_argument("--drain_s", type=float, default=10.0)
  args = parser.parse_args()
  telemetry.log_as_json()
  process.stop_with_parent()
  config = ImagesConfig(
    width=8,
    height=8,
    port=args.port,
    batching=Batching(max_batch=args.max_batch),
    limits=Limits(max_queue=args.max_queue, cache_mb=args.cache_mb),
    security=Security(token=args.token),
    drain_s=args.drain_s,
  )

  def make():
    time.sleep(args.load_s)
    return FakeBackend(args.sleep_s)

  announce = lambda address: print(json.dumps({"address": address}), flush=True)  # noqa: E731
  asyncio.run(server.serve(config, make, announce=announce))


if __name__ == "__main__":
  main()
