# SPDX-License-Identifier: Apache-2.0
"""Diffusion through gRPC: in a process of its own, offline; the same request is the same image."""

import importlib.util
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("diffusers")

from auditdm_jax.core import config as config_lib  # noqa: E402
from auditdm_jax.images import process  # noqa: E402
from auditdm_jax.images.client import ImageClient  # noqa: E402
from auditdm_jax.images.config import Batching, ClientConfig, ImagesConfig  # noqa: E402
from auditdm_jax.images.diffusers_backend import DiffusersBackend  # noqa: E402
from auditdm_jax.images.failures import NoImageReason  # noqa: E402
from auditdm_jax.images.requests import Edit, Generate, Options  # noqa: E402
from tests.images import fake, tiny_pipelines  # noqa: E402

CONFIG = """
from ml_collections import ConfigDict
def get_config():
  return ConfigDict({"images": {
    "backend": "diffusers", "port": 0, "width": 64, "height": 64,
    "batching": {"max_batch": 4, "max_wait_ms": 50.0},
    "model": {"generate": %r, "edit": %r, "device": "cpu", "steps": 4, "max_sequence_length": 32},
  }})
"""
FIXED = Options(deterministic=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tiny_pipelines.build(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def config(tmp_path, model):
  path = tmp_path / "config.py"
  path.write_text(CONFIG % (model.generate, model.edit))
  return str(path)


def _source(k, width=64, height=64):
  return np.random.default_rng(k).integers(0, 256, (height, width, 3), np.uint8)


def _generate(k, **fields):
  return Generate(**(dict(prompt=f"a red circle {k}", seed=k, width=64, height=64) | fields))


def _edit(k, **fields):
  return Edit(**(dict(image=_source(k), instruction="make it blue", seed=k) | fields))


def _made(future):
  result = future.result(60.0)
  assert result.failure is None, result.failure
  return result


def test_a_request_is_the_same_bytes_after_a_retry_a_restart_alone_or_in_a_batch(config, tmp_path):
  requests = [make(k, options=FIXED) for k in range(4) for make in (_generate, _edit)]
  log = tmp_path / "images.log"
  with process.spawn(config, log=log) as service, ImageClient(service.address) as client:
    first = [_made(f) for f in [client.submit(r) for r in requests]]
    again = [_made(client.submit(r)) for r in requests]
    info = client.info()
    libraries = pathlib.Path(f"/proc/{service.pid}/maps").read_text()
    assert service.stop() == 0
  assert {"generate", "edit", "sham"} == set(info.modes)
  assert "libtorch" in libraries and "jaxlib" not in libraries
  assert max(r.timings.batch_size for r in first) > 1
  assert all(r.timings.cached for r in again)
  with process.spawn(config, log=log) as service, ImageClient(service.address) as client:
    alone = [_made(client.submit(r)) for r in reversed(requests)][::-1]
    assert client.info().identity == info.identity
  assert {r.timings.batch_size for r in alone} == {1}
  assert not any(r.timings.cached for r in alone)
  for a, b, c in zip(first, again, alone, strict=True):
    assert a.model == c.model == info.identity
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.image, c.image)
  assert len({r.image.tobytes() for r in first}) == len(requests)
  assert "red circle" not in log.read_text()  # Nothing that was asked for is in the log.


def test_a_model_that_is_not_there_is_one_line(config):
  command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={config}"]
  done = subprocess.run(
    [*command, "--config.images.model.edit=/nowhere"], capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 2
  assert "'/nowhere' is neither a folder" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def service(model):
  """A server in this process; yields its backend and address."""
  backend = DiffusersBackend(model, max_batch=4)
  config = ImagesConfig(width=64, height=64, batching=Batching(max_batch=4, max_wait_ms=20.0))
  with fake.serving(backend, config) as (_, address, _):
    yield backend, address


@pytest.fixture
def client(service):
  with ImageClient(service[1]) as client:
    yield client


@pytest.mark.parametrize("size", [(70, 50), (64, 72), (8, 8)])
def test_a_size_the_pipeline_would_round_is_refused(client, size):
  width, height = size
  for request in (_generate(0, width=width, height=height), _edit(0, image=_source(0, *size))):
    failure = client.submit(request).result(30.0).failure
    assert failure.reason is NoImageReason.INVALID_REQUEST and "multiples of 16" in failure.message


def test_what_cannot_share_a_call_does_not(service, client, monkeypatch):
  """Many at once, of all kinds, from many threads: each is what it is alone, and one calls."""
  backend, _ = service
  threads, calls, run = set(), [], backend.run

  def spy(jobs, progress):
    threads.add(threading.get_ident())
    calls.append([job.key for job in jobs])
    return run(jobs, progress)

  monkeypatch.setattr(backend, "run", spy)
  kinds = [
    lambda k: _generate(k, options=FIXED),
    lambda k: _edit(k, options=FIXED),
    lambda k: _generate(k, options=Options(steps=2, deterministic=True)),
    lambda k: _generate(k, options=Options(guidance=7.0, deterministic=True)),
    lambda k: _generate(k, width=48, height=96, options=FIXED),
    lambda k: _edit(k, image=_source(k, 96, 48), options=FIXED),
  ]
  requests = [kind(k) for k in range(3) for kind in kinds]
  together = [_made(f) for f in [client.submit(r) for r in requests]]
  assert all(len(set(keys)) == 1 for keys in calls)
  assert len(calls) < len(requests) and len(threads) == 1
  with fake.serving(backend, ImagesConfig(width=64, height=64, batching=Batching(4, 0.0))) as s:
    with ImageClient(s[1]) as other:
      for request, result in zip(requests, together, strict=True):
        np.testing.assert_array_equal(_made(other.submit(request)).image, result.image)
  sizes = {r.image.shape for r in together}
  assert sizes == {(64, 64, 3), (96, 48, 3), (48, 96, 3)}


def test_a_text_that_was_cut_is_reported(client):
  short, long = (_made(client.submit(_generate(0, prompt="red " * n))) for n in (5, 60))
  assert long.truncated and not short.truncated


def test_options_the_model_has_not_are_refused(client):
  request = _generate(0, options=Options(negative="blue"))
  assert client.submit(request).result(30.0).failure.reason is NoImageReason.UNSUPPORTED


def test_a_sham_goes_through_the_autoencoder_and_is_pasted(client):
  image, mask = _source(5), np.zeros((64, 64), bool)
  mask[16:32, 16:32] = True
  result = _made(client.sham(image, mask, seed=0))
  np.testing.assert_array_equal(result.image[~mask], image[~mask])
  assert (result.image[mask] != image[mask]).any()


def test_the_scenes_config_can_name_it(model):
  """`configs/scenes.py:images=diffusion` is a complete config of a service."""
  path = pathlib.Path(__file__).parents[2] / "configs" / "scenes.py"
  spec = importlib.util.spec_from_file_location("scenes_config", path)
  scenes = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(scenes)
  section = scenes.get_config("images=diffusion").images
  section.model.generate, section.model.edit = model.generate, model.edit
  images = config_lib.build(ImagesConfig, section, name="config.images")
  backend = DiffusersBackend(images.model, max_batch=images.batching.max_batch)
  with fake.serving(backend, images) as (_, address, _):
    with ImageClient(
      address, config=ClientConfig(deterministic=images.client.deterministic)
    ) as client:
      assert _made(client.edit(_source(0), "make the red circle blue", seed=1)).image.any()
  with pytest.raises(ValueError, match="exact or diffusion"):
    scenes.get_config("images=magic")
