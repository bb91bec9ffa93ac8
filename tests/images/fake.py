# SPDX-License-Identifier: Apache-2.0
"""A backend that does what the text says, and a server of it in this or in another process."""

import argparse
import asyncio
from collections.abc import Callable
import contextlib
import json
import logging
import socket
import threading
import time

import numpy as np

from auditdm_jax.images import process, server
from auditdm_jax.images.config import Batching, ImagesConfig


class FakeBackend:
  """Pixels are a function of text, seed and source; some words mean trouble."""

  def __init__(self, sleep_s: float = 0.0):
    self.sleep_s = sleep_s
    self.calls: list[list[str]] = []

  def generate(self, prompts, seeds, *, width, height):
    self._begin(prompts)
    return [self._row(p, s, (height, width, 3)) for p, s in zip(prompts, seeds)]

  def edit(self, images, instructions, seeds):
    self._begin(instructions)
    return [
      self._row(t, s, i.shape, i) for i, t, s in zip(images, instructions, seeds, strict=True)
    ]

  def info(self):
    return {"name": "fake", "sleep_s": self.sleep_s}

  def _begin(self, texts):
    self.calls.append(texts)
    time.sleep(self.sleep_s)
    if any("poison" in t for t in texts):
      raise MemoryError("out of memory")

  def _row(self, text, seed, shape, source=0):
    if "impossible" in text:
      return ValueError(f"cannot draw {text!r}")
    if "broken" in text:
      return KeyError("weights")
    if "small" in text:
      return np.zeros((1, 1, 3), np.uint8)
    noise = np.random.default_rng([seed, *text.encode()]).integers(0, 256, shape, np.uint8)
    return noise ^ np.uint8(source)


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


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--sleep_s", type=float, default=0.0)
  parser.add_argument("--max_batch", type=int, default=4)
  args = parser.parse_args()
  logging.basicConfig(level=logging.INFO)
  process.stop_with_parent()
  config = ImagesConfig(
    width=8, height=8, port=args.port, batching=Batching(max_batch=args.max_batch)
  )
  asyncio.run(
    server.serve(
      config,
      lambda: FakeBackend(args.sleep_s),
      announce=lambda address: print(json.dumps({"address": address}), flush=True),
    )
  )


if __name__ == "__main__":
  main()
