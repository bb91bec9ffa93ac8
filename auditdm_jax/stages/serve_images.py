# SPDX-License-Identifier: Apache-2.0
"""serve-images: makes images from captions and edit instructions over gRPC, until told to stop.

  python -m auditdm_jax serve-images --config=configs/scenes.py --config.images.port=8500

Prints {"address": "host:port"} as a line of JSON when it is ready. Everything else goes to stderr,
one line of JSON per event.

Reads:  config.images and the pipeline that it names.
Writes: nothing.
Costs:  a device as long as it runs: a GPU for diffusion, a CPU for scenes.
"""

import asyncio
from collections.abc import Callable
import dataclasses
import json
import pathlib

import ml_collections

from auditdm_jax.core import config as core_config
from auditdm_jax.images import process, server, telemetry
from auditdm_jax.images.backend import Backend, Info, Plain
from auditdm_jax.images.config import ImagesConfig

_BACKENDS = ("scenes", "needle", "diffusers", "openai")


@dataclasses.dataclass(frozen=True)
class ServedConfig:
  """What the service reads; the config of an audit has other sections in addition.

  Attributes:
    images: of the service.
  """

  images: ImagesConfig


def main(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
  """Serves what config.images says; the service keeps nothing in the workdir."""
  del workdir
  if "images" not in config:
    raise core_config.UserError("the config has no section `images`")
  images = core_config.build(ImagesConfig, config.to_dict()["images"], name="config.images")
  telemetry.log_as_json()
  process.stop_with_parent()
  try:
    asyncio.run(server.serve(images, _backend_maker(images), announce=_announce))
  except server.StartError as error:
    raise core_config.UserError(str(error)) from error
  return 0


def _backend_maker(images: ImagesConfig) -> Callable[[], Backend]:
  """Returns what loads the backend; an unknown name is an error before the port opens."""
  # Imported only when it is served: no backend needs the libraries of another one.
  if images.backend in ("scenes", "needle"):
    return lambda: _drawn(images)
  if images.backend == "diffusers":
    try:
      from auditdm_jax.images import diffusers_backend
    except ModuleNotFoundError as error:
      raise core_config.UserError(
        f"config.images.backend: 'diffusers' needs {error.name}: pip install -r"
        " launch/image_server/requirements.txt, or name a running service in config.images.address"
      ) from error

    model, rows = images.model, images.batching.max_batch
    return lambda: diffusers_backend.DiffusersBackend(model, max_batch=rows)
  if images.backend == "openai":
    from auditdm_jax.images import openai_backend

    model, rows = images.model, images.batching.max_batch
    return lambda: openai_backend.OpenAIBackend(model, max_batch=rows)
  if ":" in images.backend:
    make = core_config.load_function(images.backend, where="config.images.backend")
    return lambda: make(images)
  near = core_config.did_you_mean(images.backend, _BACKENDS)
  names = ", ".join(map(repr, _BACKENDS))
  raise core_config.UserError(
    f"config.images.backend: {images.backend!r} is not one of {names}{near};"
    " an import path is written package.module:NAME"
  )


def _drawn(images: ImagesConfig) -> Backend:
  from auditdm_jax.scenes import image_backend, needle, render, world

  language = needle.NEEDLE if images.backend == "needle" else world.SCENES
  draw = image_backend.ScenesBackend(language, error_rate=images.error_rate, seed=images.seed)
  size = render.pixels(language)
  info = Info(
    language.name,
    properties=draw.info(),
    modes=("generate", "edit", "sham"),
    sizes=((size, size),),
    exact=True,
  )
  return Plain(draw, info)


def _announce(address: str) -> None:
  print(json.dumps({"address": address}), flush=True)
