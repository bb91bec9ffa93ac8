# SPDX-License-Identifier: Apache-2.0
"""From messages to jobs and back; everything that can be refused is refused here."""

from typing import Any
import unicodedata

import numpy as np

from auditdm_jax.images import stubs
from auditdm_jax.images.backend import Job
from auditdm_jax.images.config import Limits
from auditdm_jax.images.failures import Reason, Refused

_MAX_ID_BYTES = 64


def generate_job(request: Any, limits: Limits) -> Job:
  """A GenerateRequest as a job; raises Refused."""
  _check_identity(request)
  _check_size(request.width, request.height, limits)
  text = _checked_text(request.prompt, limits)
  return Job(request.request_id, text, request.seed, request.width, request.height)


def edit_job(request: Any, limits: Limits) -> Job:
  """An EditRequest as a job; raises Refused."""
  _check_identity(request)
  source = request.source
  if source.encoding != stubs.RAW_RGB8:
    raise Refused(Reason.INVALID_REQUEST, "the source must be ENCODING_RAW_RGB8")
  _check_size(source.width, source.height, limits)
  image = decode(source)
  text = _checked_text(request.instruction, limits)
  return Job(request.request_id, text, request.seed, source.width, source.height, image)


def encode(image: np.ndarray) -> Any:
  """u8[H,W,3] as an Image message."""
  height, width, _ = image.shape
  return stubs.Image(encoding=stubs.RAW_RGB8, width=width, height=height, data=image.tobytes())


def decode(image: Any) -> np.ndarray:
  """An Image message as a read-only u8[H,W,3]; raises Refused if sizes and bytes disagree."""
  if len(image.data) != image.height * image.width * 3:
    raise Refused(
      Reason.INVALID_REQUEST,
      f"{len(image.data)} bytes are not {image.width}x{image.height} pixels of RGB",
    )
  return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def _check_identity(request: Any) -> None:
  if not 0 < len(request.request_id.encode()) <= _MAX_ID_BYTES:
    raise Refused(Reason.INVALID_REQUEST, f"request_id must have 1 to {_MAX_ID_BYTES} bytes")
  if not request.HasField("seed"):
    raise Refused(Reason.INVALID_REQUEST, "no seed: the same request must give the same image")


def _check_size(width: int, height: int, limits: Limits) -> None:
  if not 0 < width * height <= limits.max_pixels:
    raise Refused(
      Reason.INVALID_REQUEST, f"{width}x{height} pixels are not between 1 and {limits.max_pixels}"
    )


def _checked_text(text: str, limits: Limits) -> str:
  """The text as it is: refused rather than cut or cleaned, so that it says what is drawn."""
  if not text.strip():
    raise Refused(Reason.INVALID_PROMPT, "the text is empty")
  if len(text) > limits.max_prompt_chars:
    raise Refused(
      Reason.INVALID_PROMPT, f"{len(text)} characters, at most {limits.max_prompt_chars}"
    )
  if any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text):
    raise Refused(Reason.INVALID_PROMPT, "control characters")
  return text
