# SPDX-License-Identifier: Apache-2.0
"""Questions per second through `Endpoint`, over those of a bare loop around openai's client.

COMMAND
  python -m benchmarks.endpoints [--url=http://127.0.0.1:8000/v1 --model=NAME] [--questions=400]
    [--concurrency=8] [--size=64] [--latency=0.05] [--rounds=5]

Both sides ask the same server the same questions about the same pictures with as many requests at
the same time, in turns. The bare loop is given its pictures encoded and does nothing with the
answers; `Endpoint` hashes, encodes, checks, counts and writes each to disk before it is handed out.
Without --url a server of its own answers after --latency seconds, in a process of its own.
"""

import asyncio
from collections.abc import Iterator, Sequence
import contextlib
import logging
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import numpy as np
import openai

from auditdm_jax.endpoints.config import EndpointConfig, LimitConfig, PictureConfig
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.pictures import data_url

_URL = flags.DEFINE_string("url", "", "base_url of a server; '' = one of its own")
_MODEL = flags.DEFINE_string("model", "fake", "the model's name there")
_QUESTIONS = flags.DEFINE_integer("questions", 400, "questions per turn")
_CONCURRENCY = flags.DEFINE_integer("concurrency", 8, "requests at the same time")
_SIZE = flags.DEFINE_integer("size", 64, "side of the pictures")
_LATENCY = flags.DEFINE_float("latency", 0.05, "seconds that the server of its own takes")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each side")


def measure(
  config: EndpointConfig, *, questions: int, size: int, rounds: int
) -> list[tuple[float, float]]:
  """Returns (bare, ours) questions per second of each round."""
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(questions // 4)]
  images = [images[i % len(images)] for i in range(questions)]
  found = []
  for turn in range(-1, rounds):  # The first one warms up.
    prompts = [f"question {i} of turn {turn}" for i in range(questions)]
    bare_s = asyncio.run(_bare(config, images, [f"bare {p}" for p in prompts]))
    with tempfile.TemporaryDirectory() as folder, Endpoint(config, cache=folder) as endpoint:
      start = time.perf_counter()
      replies = endpoint.answer(images, prompts, max_new_tokens=8)
      ours_s = time.perf_counter() - start
    if lost := [reply for reply in replies if reply.text is None]:
      raise RuntimeError(f"{len(lost)} of {questions} without an answer, such as {lost[0]}")
    if turn >= 0:
      found.append((questions / bare_s, questions / ours_s))
  return found


@contextlib.contextmanager
def fake_server(latency_s: float) -> Iterator[str]:
  """The base_url of the tests' server in a process of its own."""
  command = [sys.executable, "-m", "tests.endpoints.fake_server", f"--latency={latency_s}"]
  root = pathlib.Path(__file__).parent.parent
  with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
    try:
      assert server.stdout is not None
      yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
      server.kill()


async def _bare(
  config: EndpointConfig, images: Sequence[np.ndarray], prompts: Sequence[str]
) -> float:
  """Seconds of a loop that anybody would write."""
  urls = {id(image): data_url(image, config.pictures) for image in images}
  slots = asyncio.Semaphore(config.limits.concurrency)
  async with openai.AsyncOpenAI(base_url=config.base_url, api_key="none") as client:

    async def one(image: np.ndarray, prompt: str) -> str | None:
      async with slots:
        answer = await client.chat.completions.create(
          model=config.model,
          temperature=0,
          max_tokens=9,
          messages=[
            {
              "role": "user",
              "content": [
                {"type": "image_url", "image_url": {"url": urls[id(image)]}},
                {"type": "text", "text": prompt},
              ],
            }
          ],
        )
      return answer.choices[0].message.content

    start = time.perf_counter()
    await asyncio.gather(*map(one, images, prompts))
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
  del argv
  logging.getLogger("httpx2").setLevel(logging.WARNING)  # For the bare loop, too.
  server = contextlib.nullcontext(_URL.value) if _URL.value else fake_server(_LATENCY.value)
  with server as url:
    config = EndpointConfig(
      url,
      _MODEL.value,
      pictures=PictureConfig(),
      limits=LimitConfig(concurrency=_CONCURRENCY.value),
    )
    found = measure(config, questions=_QUESTIONS.value, size=_SIZE.value, rounds=_ROUNDS.value)
  for bare, ours in found:
    print(f"bare {bare:7.1f}/s   Endpoint {ours:7.1f}/s   ratio {ours / bare:.3f}")
  ratios = [ours / bare for bare, ours in found]
  low, high = min(ratios), max(ratios)
  print(
    f"median ratio {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] of {len(found)} rounds"
  )


if __name__ == "__main__":
  app.run(main)
