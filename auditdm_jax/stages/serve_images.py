# SPDX-License-Identifier: Apache-2.0
"""Serves images from captions and edit instructions over gRPC until it is told to stop.

  python -m auditdm_jax serve-images --config=configs/scenes.py --config.images.port=8500

Prints {"address": "host:port"} as a line of JSON when it is ready. Everything else goes to stderr.
"""

import asyncio
import json
import logging
import pathlib

import ml_collections

from auditdm_jax.core import config as core_config
from auditdm_jax.images import process, server
from auditdm_jax.images.backend import Backend
from auditdm_jax.images.config import ImagesConfig


def main(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
  """Serves what config.images says; the service keeps nothing in the workdir."""
  del workdir
  if "images" not in config:
    raise core_config.UserError("the config has no section `images`")
  images = core_config.build(ImagesConfig, config.images, name="config.images")
  logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
  process.stop_with_parent()
  try:
    asyncio.run(server.serve(images, _backend_maker(images), announce=_announce))
  except server.StartError as error:
    raise core_config.UserError(str(error)) from error
  return 0


def _backend_maker(images: ImagesConfig):
  """Returns what loads the backend; an unknown name is an error before the port opens."""
  if images.backend == "scenes":
    return lambda: _scenes(images)
  raise core_config.UserError(f"config.images.backend: {images.backend!r} is not one of 'scenes'")


def _scenes(images: ImagesConfig) -> Backend:
  # Here and not above: a server of another backend must start without the world's libraries.
  from auditdm_jax.scenes import image_backend

  return image_backend.ScenesBackend(error_rate=images.error_rate, seed=images.seed)


def _announce(address: str) -> None:
  print(json.dumps({"address": address}), flush=True)
