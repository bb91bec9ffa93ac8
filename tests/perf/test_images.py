# SPDX-License-Identifier: Apache-2.0
"""What the image service costs, and what depth, batches and replicas bring; ratios within one run.

Random FLUX pipelines at 64 pixels in a server process of their own: `tiny` has 0.17 M parameters
and FLUX.1-dev's 28 steps, `scenes` the size and the 12 guided steps of the pipeline for scenes.
Costs are in CPU seconds of server and client together, against the same batches in this process:
on one core that is also the wall time, and other programs do not disturb it much. What FLUX costs
is by calculation, 2.2 s for an image of 512 pixels on a large GPU.

Replicas and depth are measured with a backend that sleeps, as a process that waits for its GPU.

COMMAND
  python -m pytest -s -m perf tests/perf/test_images.py
"""

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import time

import pytest

pytest.importorskip("diffusers")

from auditdm_jax.images import process  # noqa: E402
from auditdm_jax.images.client import ImageClient  # noqa: E402
from auditdm_jax.images.config import ClientConfig  # noqa: E402
from auditdm_jax.images.requests import Generate  # noqa: E402
from tests.images import tiny_pipelines  # noqa: E402

pytestmark = pytest.mark.perf

ROUNDS, IMAGES, BATCH = 5, 64, 16
TURNS = 24  # The two sides take turns by the batch, so that what disturbs hits both.
FLUX_S = 2.2  # FLUX.1-dev, 512 pixels, 28 steps, at 500 TFLOP/s
CONFIG = """
from ml_collections import ConfigDict
def get_config():
  return ConfigDict({"images": {
    "backend": "diffusers", "port": 0, "width": 64, "height": 64,
    "batching": {"max_batch": %d, "max_wait_ms": 200.0},
    "model": {"generate": %r, "device": "cpu", "max_sequence_length": 32,
              "steps": %d, "guidance": %f},
  }})
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  model = tiny_pipelines.build(tmp_path_factory.mktemp("pipelines"))
  return dataclasses.replace(model, steps=28)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scenes") / "flux"
  flux = tiny_pipelines.flux
  flux.pipeline(tiny_pipelines.WORDS, tiny_pipelines.vae(), flux.SCENES).save_pretrained(folder)
  return dataclasses.replace(
    tiny_pipelines.ModelConfig(), generate=str(folder), steps=12, guidance=2.0
  )


@contextlib.contextmanager
def _diffusion(model, folder, max_batch=BATCH):
  """A server process of the tiny pipeline; yields its handle and a client."""
  config = folder / "config.py"
  config.write_text(CONFIG % (max_batch, model.generate, model.steps, model.guidance))
  with process.spawn(str(config), log=folder / "images.log") as service:
    with ImageClient(service.address, config=ClientConfig(max_in_flight=2 * BATCH)) as client:
      yield service, client


def _requests(first, n):
  return [Generate(f"a red circle {k}", k, 64, 64) for k in range(first, first + n)]


def _cpu_s(pid):
  """CPU seconds that a process's threads have used, to the nanosecond."""
  tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
  return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _ask(client, requests, depth):
  """Wall seconds for all; every one must be an image, made now."""
  start = time.monotonic()
  for _, result in client.map_unordered(requests, depth=depth):
    assert result.failure is None, result.failure
    assert not result.timings.cached
  return time.monotonic() - start


class _InProcess:
  """The pipeline called without a service, by the same arguments."""

  def __init__(self, model):
    from diffusers import FluxPipeline
    import torch

    torch.set_num_threads(1)
    self._torch, self._model = torch, model
    self._pipe = FluxPipeline.from_pretrained(model.generate)
    self._pipe.set_progress_bar_config(disable=True)

  def _guidance(self, rows):
    if self._pipe.transformer.config.guidance_embeds:
      return dict(guidance_scale=self._model.guidance)
    return dict(true_cfg_scale=self._model.guidance, negative_prompt=[""] * rows)

  def make(self, first, rows):
    with self._torch.inference_mode():
      return self._pipe(
        prompt=[f"a red circle {k}" for k in range(first, first + rows)],
        width=64,
        height=64,
        num_inference_steps=self._model.steps,
        max_sequence_length=32,
        **self._guidance(rows),
        generator=[self._torch.Generator().manual_seed(k) for k in range(first, first + rows)],
      ).images


def _cost(model, tmp_path):
  """CPU of the service by that of the pipeline, and CPU milliseconds more per image."""
  pipe = _InProcess(model)
  pipe.make(0, BATCH)
  alone, served, walls = [], [], []
  with _diffusion(model, tmp_path) as (service, client):
    _ask(client, _requests(10**6, BATCH), 2 * BATCH)
    for k in range(TURNS):
      start, wall = time.process_time(), time.monotonic()
      pipe.make(k * BATCH, BATCH)
      alone.append(time.process_time() - start)
      wall = time.monotonic() - wall
      start = time.process_time() + _cpu_s(service.pid)
      walls.append(_ask(client, _requests(k * BATCH, BATCH), 2 * BATCH) / wall)
      served.append(time.process_time() + _cpu_s(service.pid) - start)
  ratio = statistics.median(b / a for a, b in zip(alone, served, strict=True))
  extra_ms = 1e3 * (statistics.median(served) - statistics.median(alone)) / BATCH
  own_ms = 1e3 * statistics.median(alone) / BATCH
  print(
    f"\nservice against in process, {model.steps} steps, batches of {BATCH}:"
    f" {100 * (ratio - 1):+.1f} % of CPU ({extra_ms:+.2f} ms an image of {own_ms:.1f}),"
    f" wall x{statistics.median(walls):.2f}; of a FLUX image {extra_ms / 10 / FLUX_S:.2f} %"
  )
  return ratio, extra_ms


def test_cost_of_the_service_with_the_tiny_pipeline(tiny, tmp_path):
  _, extra_ms = _cost(tiny, tmp_path)
  assert extra_ms / 1e3 / FLUX_S <= 0.01


def test_cost_of_the_service_with_a_pipeline_of_scenes_size(scenes, tmp_path):
  ratio, _ = _cost(scenes, tmp_path)
  assert ratio <= 1.05


def test_batching_gain(tiny, tmp_path):
  pipe = _InProcess(tiny)
  pipe.make(0, 1), pipe.make(0, BATCH)
  one, full = [], []
  with contextlib.ExitStack() as stack:
    clients = {}
    for rows in (1, BATCH):
      folder = tmp_path / str(rows)
      folder.mkdir()
      clients[rows] = stack.enter_context(_diffusion(tiny, folder, rows))[1]
    rate = {rows: [] for rows in clients}
    for k in range(ROUNDS):
      for rows, times in ((1, one), (BATCH, full)):
        start = time.process_time()
        for first in range(0, BATCH, rows):
          pipe.make(first, rows)
        times.append(time.process_time() - start)
        requests = _requests(k * IMAGES, IMAGES)
        rate[rows].append(IMAGES / _ask(clients[rows], requests, 2 * BATCH))
  inside = statistics.median(a / b for a, b in zip(one, full, strict=True))
  gain = statistics.median(b / a for a, b in zip(rate[1], rate[BATCH], strict=True))
  print(
    f"\nbatches of {BATCH} against 1: x{gain:.1f} through the service, x{inside:.1f} in process"
  )
  assert gain >= 0.8 * inside


@contextlib.contextmanager
def _sleeping(folder, replicas, *, max_in_flight):
  """Servers whose backend takes 100 ms a batch of up to 8 rows; yields a client of all."""
  command = [sys.executable, "-m", "tests.images.fake", "--sleep_s=0.1", "--max_batch=8"]
  with contextlib.ExitStack() as stack:
    services = [
      stack.enter_context(process.start(command, log=folder / f"{k}.log")) for k in range(replicas)
    ]
    addresses = [service.address for service in services]
    yield stack.enter_context(
      ImageClient(addresses, config=ClientConfig(max_in_flight=max_in_flight))
    )


def _small(first, n):
  return [Generate("a circle", k, 8, 8) for k in range(first, first + n)]


def test_throughput_by_depth(tmp_path):
  ideal, rates = 8 / 0.1, {}
  with _sleeping(tmp_path, 1, max_in_flight=64) as client:
    for k, depth in enumerate((1, 2, 4, 8, 16, 32, 64)):
      n = max(8, 6 * depth)
      rates[depth] = n / _ask(client, _small(k * 1000, n), depth) / ideal
  print("\nrequests in flight: share of the full-batch rate, batches of 8")
  print("  ".join(f"{depth}: {rate:.2f}" for depth, rate in rates.items()))
  assert rates[16] >= 0.8  # Twice the batch is enough: one runs, one waits.


def test_two_replicas_against_one(tmp_path):
  one, two = [], []
  for k in range(3):
    for replicas, times in ((1, one), (2, two)):
      folder = tmp_path / f"{k}-{replicas}"
      with _sleeping(folder, replicas, max_in_flight=16) as client:
        _ask(client, _small(0, 16 * replicas), 16 * replicas)
        times.append(_ask(client, _small(1000, 256), 16 * replicas))
  gain = statistics.median(a / b for a, b in zip(one, two, strict=True))
  print(f"\ntwo equal replicas against one: x{gain:.2f}")
  assert gain >= 1.8
