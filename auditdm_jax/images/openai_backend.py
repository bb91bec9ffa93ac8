# SPDX-License-Identifier: Apache-2.0
"""A service that speaks OpenAI's images API as a backend: vLLM-Omni, SGLang, a hosted one.

  POST URL/images/generations   JSON: model, prompt, size, n, response_format, seed, …
  POST URL/images/edits         multipart: the same with the image as a PNG

The rows of a batch are asked for at the same time; batching is the endpoint's own affair. So is
what a seed means there: nothing here can promise that a request makes the same image twice, and a
repeated one is equal only where a cache of this service still has it.
"""

import base64
from collections.abc import Mapping, Sequence
import concurrent.futures
import http.client
import io
import json
import logging
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image

from auditdm_jax.images.backend import Info, Job, Made, Progress
from auditdm_jax.images.config import ModelConfig
from auditdm_jax.images.failures import NoImageReason, Refused

_LOG = logging.getLogger(__name__)
_MAX_ANSWER = 64 << 20  # bytes
_MAX_ERROR = 1 << 16
_FORMATS = ("PNG", "WEBP", "JPEG")
_MAX_RETRY_S = 60.0
_BUSY = {http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE}


class EndpointError(RuntimeError):
  """The endpoint failed or answered with something that is no image."""


class _Objection(ValueError):
  """The endpoint objects to the text, by its content policy."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *_: object) -> None:
    """None makes it an HTTPError."""


class OpenAIBackend:
  """Asks `config.images.model.url` (images.backend.Backend).

  Raises:
    ValueError: no model, an invalid address, or a key that is not in the environment.
  """

  def __init__(self, model: ModelConfig, *, max_batch: int):
    parts = urllib.parse.urlsplit(model.url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
      raise ValueError(
        f"config.images.model.url: {model.url!r} is not an address such as http://127.0.0.1:8000/v1"
      )
    if not (model.generate or model.edit):
      raise ValueError("config.images.model.generate and .edit are empty: name a model")
    self._model, self._url = model, model.url.rstrip("/")
    self._headers = _authorization(model.api_key_env)
    # Not to another host: the key would go with it.
    self._opener = urllib.request.build_opener(_NoRedirects)
    self._pool = concurrent.futures.ThreadPoolExecutor(max_batch, thread_name_prefix="endpoint")

  def info(self) -> Info:
    model = self._model
    names = {"generate": model.generate, "edit": model.edit}
    return Info(
      name=" + ".join(dict.fromkeys(filter(None, names.values()))),
      properties={"endpoint": self._url, "api": "openai"},
      modes=tuple(mode for mode, name in names.items() if name),
      steps=model.steps,
      guidance=model.guidance,
      negative=True,
      sizes=model.sizes,
      multiple=1 if model.sizes else model.multiple,
    )

  def run(self, jobs: Sequence[Job], progress: Progress) -> list[Made | Exception]:
    """Returns one row per job, each from a request of its own."""
    futures = [self._pool.submit(self._row, job) for job in jobs]
    try:
      for done, _ in enumerate(concurrent.futures.as_completed(futures), 1):
        progress(done, len(jobs))
    except BaseException:  # Nobody waits any more: what has not begun does not begin.
      for future in futures:
        future.cancel()
      raise
    return [future.result() for future in futures]

  def _row(self, job: Job) -> Made | Exception:
    try:
      return Made(_pixels(self._ask(job), job))
    except (EndpointError, Refused, _Objection) as error:
      return error
    except ValueError as error:  # Not the text's fault; its message may quote a header.
      return EndpointError(f"{self._url}: {type(error).__name__}")

  def _ask(self, job: Job) -> bytes:
    """Returns the encoded image."""
    fields = {
      "prompt": job.text,
      "size": f"{job.width}x{job.height}",
      "n": 1,
      "response_format": "b64_json",
      "seed": job.seed,
      "num_inference_steps": job.steps,
      "guidance_scale": job.guidance,
      **({"negative_prompt": job.negative} if job.negative else {}),
    }
    if job.source is None:
      body = json.dumps({"model": self._model.generate, **fields}).encode()
      return self._post("/images/generations", body, "application/json")
    body, kind = _multipart({"model": self._model.edit, **fields}, job.source)
    return self._post("/images/edits", body, kind)

  def _post(self, path: str, body: bytes, kind: str) -> bytes:
    request = urllib.request.Request(
      self._url + path, body, {"Content-Type": kind, **self._headers}, method="POST"
    )
    try:
      with self._opener.open(request, timeout=self._model.timeout_s) as answer:
        text = answer.read(_MAX_ANSWER + 1)
    except urllib.error.HTTPError as error:
      _LOG.warning("the endpoint answered HTTP %d", error.code)  # What it says may quote a prompt.
      with error:
        raise _refusal(error, error.read(_MAX_ERROR)) from None
    except (OSError, http.client.HTTPException) as error:
      raise EndpointError(f"{self._url}: {error}") from None
    if len(text) > _MAX_ANSWER:
      raise EndpointError(f"{self._url}: an answer of more than {_MAX_ANSWER} bytes")
    try:
      return base64.b64decode(json.loads(text)["data"][0]["b64_json"], validate=True)
    except (ValueError, KeyError, IndexError, TypeError) as error:
      raise EndpointError(f"{self._url}: the answer has no image: {error!r}") from None


def _authorization(variable: str) -> dict[str, str]:
  if not variable:
    return {}
  key = os.environ.get(variable, "").strip()  # A shell that reads a file may leave a newline.
  if not key:
    raise ValueError(f"config.images.model.api_key_env: {variable} is not set in the environment")
  if not (key.isascii() and key.isprintable()):
    raise ValueError(
      f"config.images.model.api_key_env: {variable} is not one line of printable ASCII"
    )
  return {"Authorization": f"Bearer {key}"}


def _refusal(answer: urllib.error.HTTPError, text: bytes) -> Exception:
  """Returns what an error of the endpoint means: it is busy, objects to the text, or has failed."""
  code = answer.code
  try:
    error = json.loads(text)["error"]
    name, message = error.get("code"), str(error.get("message"))[:500]
  except (ValueError, KeyError, TypeError, AttributeError):
    name, message = None, text[:200].decode(errors="replace")
  if code in _BUSY:
    wait = answer.headers.get("Retry-After", "")  # A date is left to the client's own back-off.
    retry_s = min(float(wait), _MAX_RETRY_S) if wait.isdecimal() else 0.0
    return Refused(NoImageReason.QUEUE_FULL, f"HTTP {code}: {message}", retry_s=retry_s)
  if code == http.HTTPStatus.BAD_REQUEST and name in {
    "content_policy_violation",
    "moderation_blocked",
  }:
    return _Objection(f"refused by the endpoint: {message}")
  return EndpointError(f"HTTP {code}: {message}")


def _multipart(fields: Mapping[str, object], image: np.ndarray) -> tuple[bytes, str]:
  """A form with an image, and its content type."""
  png = io.BytesIO()
  Image.fromarray(image).save(png, "PNG", compress_level=1)
  boundary = secrets.token_hex(16)
  parts = [
    f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for name, value in fields.items()
  ]
  head = 'Content-Disposition: form-data; name="image"; filename="image.png"'
  parts.append(f"--{boundary}\r\n{head}\r\nContent-Type: image/png\r\n\r\n".encode())
  parts.append(png.getvalue() + f"\r\n--{boundary}--\r\n".encode())
  return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def _pixels(data: bytes, job: Job) -> np.ndarray:
  """Returns the image, u8[H,W,3]; its size is looked at before it is decoded."""
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      if image.size != (job.width, job.height):
        width, height = image.size
        raise EndpointError(f"an image of {width}x{height} for {job.width}x{job.height}")
      return np.asarray(image.convert("RGB"))
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise EndpointError(f"the answer is no image: {error}") from None
