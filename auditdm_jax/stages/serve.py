# SPDX-License-Identifier: Apache-2.0
"""serve: answers over HTTP as OpenAI's API does, so that what asks one can ask a model.

  python -m auditdm_jax serve --model=DIR --port=8000

Prints {"base_url": "http://127.0.0.1:8000/v1", "model": NAME} as a line of JSON when it is ready;
everything else goes to stderr. SIGTERM and Ctrl-C finish what is under way.

1. POST /v1/chat/completions, GET /v1/models, GET /health. Images come as data URLs
   (data:image/png;base64,…): nothing is fetched, and no path is opened.
2. Chat models take system messages and turns by their template. PaliGemma and pretrained models
   take one message, whose text is their prompt as it is; PaliGemma's is "answer en …" for one.
3. A request that says no temperature is answered greedily, as `answer` and `evaluate` do. One with
   a temperature and no seed gets a seed, which the answer names.
4. Requests that wait share a call of the model. What else is in the batch changes no answer.
5. Answers are whole when they are sent, streams too. A stop string cuts what was said.
6. A full queue says 429 and when to come again; errors have OpenAI's form.

Reads:  --model.
Writes: nothing.
Costs:  the device, as long as it runs.
"""

import json
import logging
import pathlib
import socket

from absl import flags
import numpy as np
import uvicorn

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.images.config import is_loopback
from auditdm_jax.serving.app import ModelServer
from auditdm_jax.serving.batcher import Sharing
from auditdm_jax.serving.engine import Engine
from auditdm_jax.serving.intake import Intake, RequestLimits
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Prompt, Vlm, load_vlm

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "The model: a folder, or an npz file of big_vision.",
  required=True,
  flag_values=FLAGS,
)
_NAME = flags.DEFINE_string(
  "name", None, "What requests call it; by default the name of the folder.", flag_values=FLAGS
)
_HOST = flags.DEFINE_string(
  "host",
  "127.0.0.1",
  "Where to listen; elsewhere than on loopback with --key_file only.",
  flag_values=FLAGS,
)
_PORT = flags.DEFINE_integer(
  "port", 8000, "0 is any free one.", lower_bound=0, upper_bound=65535, flag_values=FLAGS
)
_KEY_FILE = flags.DEFINE_string(
  "key_file", None, "A file with the key that requests must have.", flag_values=FLAGS
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of parameters and computation.", flag_values=FLAGS
)
_MESH = flags.DEFINE_string(
  "mesh", None, "Split over the devices, such as fsdp=-1 or data=2,tensor=4.", flag_values=FLAGS
)
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens",
  1024,
  "The longest answer, whatever a request says.",
  lower_bound=1,
  flag_values=FLAGS,
)
_MAX_PROMPT_TOKENS = flags.DEFINE_integer(
  "max_prompt_tokens", 8192, "Image slots included.", lower_bound=1, flag_values=FLAGS
)
_MAX_IMAGES = flags.DEFINE_integer(
  "max_images", 8, "In one request.", lower_bound=0, flag_values=FLAGS
)
_MAX_BATCH = flags.DEFINE_integer(
  "max_batch", 64, "Requests in one call of the model.", lower_bound=1, flag_values=FLAGS
)
_MAX_QUEUE = flags.DEFINE_integer(
  "max_queue", 256, "Requests that may wait.", lower_bound=1, flag_values=FLAGS
)
_TIMEOUT_S = flags.DEFINE_float(
  "timeout_s",
  600.0,
  "What a request may take, waiting included.",
  lower_bound=0.001,
  flag_values=FLAGS,
)
_DRAIN_S = flags.DEFINE_integer(
  "drain_s",
  30,
  "Time to finish what is under way when asked to stop.",
  lower_bound=0,
  flag_values=FLAGS,
)
_CACHE_MB = flags.DEFINE_integer(
  "cache_mb", 512, "Of features of the last images.", lower_bound=0, flag_values=FLAGS
)


def main() -> int:
  """Serves what the flags name until it is told to stop."""
  logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
  key = _key(_KEY_FILE.value, _HOST.value)
  mesh = None if _MESH.value is None else mesh_lib.make_mesh(_mesh_shape(_MESH.value))
  with _bound(_HOST.value, _PORT.value) as listener:
    vlm = load_vlm(_MODEL.value, mesh=mesh, dtype=_DTYPE.value)
    name = _NAME.value or vlm.name
    intake = Intake(vlm, name=name, limits=_limits())
    engine = Engine(vlm, cache_bytes=_CACHE_MB.value << 20)
    _warm_up(vlm, intake.tokenizer)
    endpoint = ModelServer(
      name,
      key=key,
      intake=intake,
      run=engine.run,
      batching=_batching(),
      max_body=_limits().max_body,
    )
    config = uvicorn.Config(
      endpoint.app(),
      lifespan="on",
      ws="none",
      log_config=None,
      access_log=False,
      server_header=False,
      headers=[("server", "auditdm_jax")],
      timeout_keep_alive=75,  # Longer than clients keep a connection they do not use.
      timeout_graceful_shutdown=_DRAIN_S.value,
    )
    try:
      _Server(config, _base_url(listener), name).run(sockets=[listener])
    except KeyboardInterrupt:  # The signal, which uvicorn raises again when all is done.
      pass
  return 0


class _Server(uvicorn.Server):
  """Says where it listens once it does."""

  def __init__(self, config: uvicorn.Config, base_url: str, name: str):
    super().__init__(config)
    self._ready = {"base_url": base_url, "model": name}

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    await super().startup(sockets)
    print(json.dumps(self._ready), flush=True)


def _limits() -> RequestLimits:
  return RequestLimits(
    max_tokens=_MAX_TOKENS.value,
    max_prompt_tokens=_MAX_PROMPT_TOKENS.value,
    max_images=_MAX_IMAGES.value,
  )


def _batching() -> Sharing:
  return Sharing(max_batch=_MAX_BATCH.value, max_queue=_MAX_QUEUE.value, timeout_s=_TIMEOUT_S.value)


def _warm_up(vlm: Vlm, tokenizer: Tokenizer) -> None:
  """Asks once: a model that cannot answer is found out before clients wait for it."""
  vision, features, images = vlm.config.vision, None, ()
  if vision is not None and "{image}" in vlm.template:
    side = vision.image_size
    features, images = vlm.encode([np.zeros((side, side, 3), np.uint8)]), (0,)
  slots = vlm.config.num_image_tokens if images else 0
  ids = prompts.render(tokenizer, vlm.template, "?", slots, images=len(images))
  vlm.complete(features, [Prompt(tuple(ids), images, max_new_tokens=1)])


def _key(path: str | None, host: str) -> str | None:
  """Returns the key in a file.

  Raises:
    UserError: there is none in it, or none is asked for where others can reach the server.
  """
  if path is None:
    if not is_loopback(host):
      raise UserError(f"--host={host}: others can reach it, so it needs --key_file")
    return None
  key = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").strip()
  if not key or not key.isascii() or not key.isprintable():
    raise UserError(f"--key_file={path}: a key is one line of printable ASCII")
  return key


def _mesh_shape(text: str) -> dict[str, int]:
  """Reads axes and sizes, such as fsdp=-1."""
  shape = {}
  for item in text.split(","):
    name, _, size = item.partition("=")
    if not name or not size.removeprefix("-").isdecimal():
      raise UserError(f"--mesh={text}: written as axes and sizes, such as fsdp=-1")
    shape[name] = int(size)
  return shape


def _bound(host: str, port: int) -> socket.socket:
  """Returns a socket with that address, on which nothing listens yet.

  Raises:
    UserError: the address is not this machine's, or is taken.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
  except OSError as error:
    raise UserError(f"--host={host} --port={port}: {error.strerror or error}") from error
  return listener


def _base_url(listener: socket.socket) -> str:
  host, port = listener.getsockname()[:2]
  return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
