# SPDX-License-Identifier: Apache-2.0
"""`python -m auditdm_jax serve-images` with the scenes backend."""

import pathlib
import socket
import subprocess
import sys

import pytest

from auditdm_jax.images import process
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.failures import Reason

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
  assert (result.failure.reason, result.failure.fault) == (Reason.INVALID_INSTRUCTION, "auditor")
  assert "grpc" in libraries and "jaxlib" not in libraries


@pytest.mark.parametrize(
  "override, message",
  [
    ("--config.images.backend=scene", "'scene' is not one of 'scenes', 'diffusers', 'openai'"),
    ("--config.images.port=70000", "port 70000 is not between 0 and 65535"),
  ],
)
def test_mistakes_are_one_line(config, override, message):
  command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={config}", override]
  done = subprocess.run(command, capture_output=True, text=True, timeout=20)
  assert done.returncode == 2
  assert message in done.stderr and "Traceback" not in done.stderr


def test_a_taken_port_is_one_line(config):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={config}"]
    command.append(f"--config.images.port={port}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
  assert done.returncode == 2
  assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr
