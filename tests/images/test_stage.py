# SPDX-License-Identifier: Apache-2.0
"""`python -m auditdm_jax serve-images` with the scenes backend."""

import pathlib
import socket
import subprocess
import sys

import pytest

from auditdm_jax.core.config import UserError, build
from auditdm_jax.images import process
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ImagesConfig
from auditdm_jax.images.failures import NoImageReason
from auditdm_jax.scenes import seen
from auditdm_jax.scenes.needle import NEEDLE

CONFIG = """
from ml_collections import ConfigDict
def get_config():
  return ConfigDict({"images": {"backend": "scenes", "error_rate": 0.0, "port": 0}, "other": 1})
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return str(path)


def test_serves_scenes(config, tmp_path):
  log = tmp_path / "images.log"
  with process.spawn(config, log=log, overrides={"images.error_rate": 0.5}) as service:
    with ImageClient(service.address) as client:
      info = client.info()
      result = client.generate("no such words", seed=0, width=64, height=64).result(10.0)
    libraries = pathlib.Path(f"/proc/{service.pid}/maps").read_text()
    assert service.stop() == 0
  assert (info.name, info.properties["error_rate"]) == ("scenes", "0.5")
  assert (result.failure.reason, result.failure.fault) == (
    NoImageReason.INVALID_INSTRUCTION,
    "auditor",
  )
  assert "grpc" in libraries and "jaxlib" not in libraries


def test_serves_the_larger_world(config, tmp_path):
  overrides = {"images.backend": "needle", "images.width": 96, "images.height": 96}
  with process.spawn(config, log=tmp_path / "images.log", overrides=overrides) as service:
    with ImageClient(service.address) as client:
      assert (client.info().name, client.info().sizes) == ("needle", ((96, 96),))
      text = "a big striped red cup behind a wall"
      drawn = client.generate(text, seed=0, width=96, height=96).result(10.0)
      edited = client.edit(drawn.image, "make the red cup maroon", seed=1).result(10.0)
  (thing,) = seen(edited.image, NEEDLE).objects
  assert (thing.shape, thing.texture, thing.color, thing.walled) == (
    "cup",
    "striped",
    "maroon",
    True,
  )


@pytest.mark.parametrize(
  "override, message",
  [
    ("--config.images.backend=scene", "'scene' is not one of 'scenes', 'needle', "),
    ("--config.images.port=70000", "images.port=70000: must be at least 0 and at most 65535"),
    ("--config.images.error_rate=7.0", "error_rate is a share between 0 and 1"),  # Of the backend.
  ],
)
def test_mistakes_are_one_line(config, override, message):
  command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={config}", override]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_warm_up_that_fails_is_one_line_beside_the_log(tmp_path):
  path = tmp_path / "config.py"
  model = '"model": {"generate": "flux", "url": "http://127.0.0.1:1/v1"}'
  path.write_text(CONFIG.replace('"scenes", "error_rate": 0.0', f'"openai", {model}'))
  command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={path}"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  said = [line for line in done.stderr.splitlines() if not line.startswith('{"time"')]
  assert done.returncode == 2
  assert len(said) == 1 and "the warm-up image failed: EndpointError" in said[0]


@pytest.mark.parametrize(
  "section, message",
  [
    (dict(client=dict(max_in_flight=0)), "images.client.max_in_flight=0: must be at least 1"),
    (dict(width=0), "images.width=0: must be at least 1 and at most"),
    (dict(height=-64), "images.height=-64: must be at least 1"),
    (dict(drain_s=float("nan")), "images.drain_s=nan: must be at least 0"),
    (dict(batching=dict(max_batch=0)), "images.batching.max_batch=0: must be at least 1"),
    (dict(limits=dict(max_pixels=0)), "images.limits.max_pixels=0: must be at least 1"),
    (dict(limits=dict(max_pixels=2**31)), "max_pixels=2147483648: must be at least 1 and at most"),
    (dict(limits=dict(min_side=512, max_side=256)), "min_side=512 leaves no size"),
    (dict(limits=dict(min_side=0)), "images.limits.min_side=0: must be at least 1"),
    (dict(model=dict(multiple=0)), "images.model.multiple=0: must be at least 1"),
    (dict(model=dict(sizes=((0, 64),))), "images.model.sizes.width=0: must be at least 1"),
    (dict(limits=dict(max_deadline_s=0)), "max_deadline_s=0.0: must be above 0"),
  ],
)
def test_values_out_of_range_are_named(section, message):
  with pytest.raises(UserError, match=message):
    build(ImagesConfig, section, name="config.images")


def test_a_taken_port_is_one_line(config):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={config}"]
    command.append(f"--config.images.port={port}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2
  assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr
