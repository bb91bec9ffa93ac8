# SPDX-License-Identifier: Apache-2.0
"""Faults of the image service, and of what its messages are compiled from."""

import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from auditdm_jax.images import codec, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ClientConfig
from tests.faults import little, seen
from tests.images import rogue

_PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


def service_gone(root: pathlib.Path) -> seen.Seen:
  """The image service is gone in the middle of a step."""
  body = (
    "from auditdm_jax.rl.probing import check_valid; import types\n"
    "  check_valid([types.SimpleNamespace(invalid='UNAVAILABLE: no\\x1b[2J connection')] * 4, 0.2,"
    " step=3)"
  )
  said = seen.one_line(seen.program(body, root / "run"), 75)
  assert "The same command continues" in said and "\x1b" not in said
  return seen.Seen("one line, exit 75: launchers start it again", repr(said))


def service_gone_at_start(root: pathlib.Path) -> seen.Seen:
  """The image service is not there when a run that had it goes on."""
  body = (
    "from auditdm_jax.stages import service; from auditdm_jax.images.config import ImagesConfig\n"
    "  c = ImagesConfig(address='127.0.0.1:9', ready_s=0.5)\n"
    "  service.connected(c, {}, local=workdir, known=KNOWN).__enter__()"
  )
  later = seen.one_line(seen.program(body.replace("KNOWN", "True"), root / "a"), 75)
  seen.one_line(seen.program(body.replace("KNOWN", "False"), root / "b"), 2)
  return seen.Seen("one line; exit 75 if it was there before, else 2", repr(later))


def _response(request: Any, image: Any, *, of: np.ndarray = _PICTURE) -> Any:
  return stubs.ImageResponse(
    request_id=request.request_id, image=image, sha256=hashlib.sha256(of).digest(), model="m"
  )


def _garbled(request: Any) -> Any:
  """Returns what a service that has lost its mind answers to a prompt that names the way."""
  raw, png = codec.encode(_PICTURE), codec.encode(_PICTURE, stubs.PNG)
  floats = stubs.Image(
    encoding=raw.encoding, width=16, height=16, data=_PICTURE.astype(np.float32).tobytes()
  )
  cut = stubs.Image(encoding=raw.encoding, width=16, height=16, data=raw.data[:100])
  torn = stubs.Image(encoding=png.encoding, width=16, height=16, data=png.data[:60])
  bomb = stubs.Image(encoding=png.encoding, width=1 << 15, height=1 << 15, data=png.data)
  answers = {
    "wrong size": _response(request, codec.encode(_PICTURE[:8])),
    "wrong dtype": _response(request, floats),
    "truncated bytes": _response(request, cut),
    "torn file": _response(request, torn),
    "a bomb": _response(request, bomb),
    "no image": stubs.ImageResponse(request_id=request.request_id),
    "another's image": _response(request, raw, of=_PICTURE[::-1].copy()),
    "another's id": stubs.ImageResponse(request_id="0" * 32, image=raw),
  }
  return answers[request.prompt]


_WAYS = (
  *("wrong size", "wrong dtype", "truncated bytes", "torn file"),
  *("a bomb", "no image", "another's image", "another's id"),
)


def service_garbage(root: pathlib.Path) -> seen.Seen:
  """The image service answers with garbage, which the auditor has no part in."""
  with rogue.scripted(lambda request, context, number: _garbled(request)) as address:
    with ImageClient(address) as client:
      asked = [client.generate(way, seed=0, width=16, height=16) for way in _WAYS]
      found = [future.result(60.0) for future in asked]
  for way, result in zip(_WAYS, found, strict=True):
    assert result.image is None and result.failure is not None, way
    assert result.failure.fault == "service" and "\n" not in result.failure.message, way
  return seen.Seen(
    "no image is taken; the samples are invalid, and rewarded with nothing",
    f"{', '.join(_WAYS)}: each a failure of the service, asked again once",
  )


def service_noise(root: pathlib.Path) -> seen.Seen:
  """Something else listens where the image service should: it answers with noise."""
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]

    def noise():
      while True:
        try:
          connection, _ = listener.accept()
        except OSError:  # Closed: the end.
          return
        with connection:
          connection.sendall(os.urandom(1 << 12))

    threading.Thread(target=noise, daemon=True).start()
    with ImageClient(f"127.0.0.1:{port}", config=ClientConfig(deadline_s=3.0)) as client:
      failure = client.generate("a", seed=0, width=16, height=16).result(60.0).failure
      try:
        client.wait_ready(1.0)
      except TimeoutError as e:
        said = str(e)
    listener.shutdown(socket.SHUT_RDWR)
  assert failure is not None and failure.fault == "service"
  assert f"no image service at 127.0.0.1:{port}" in said and "\n" not in said
  return seen.Seen("one line; a run that had it ends with exit 75", f"{failure.reason.name}")


def no_protoc(root: pathlib.Path) -> seen.Seen:
  """A compiler of protos that cannot run: it is not there, and its module raises."""
  broken = root / "grpc_tools"
  broken.mkdir()
  (broken / "__init__.py").write_text("raise ImportError('libprotoc.so: cannot open')")
  code = "from auditdm_jax.images import stubs; print(stubs.SERVICE.full_name)"
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONPATH": f"{root}:{little.ROOT}", "PATH": str(root)},
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0 and done.stdout.strip() == stubs.SERVICE.full_name, done.stderr
  return seen.Seen("not needed: the compiled form is in the package", "stubs without a compiler")
