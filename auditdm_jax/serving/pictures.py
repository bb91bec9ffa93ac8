# SPDX-License-Identifier: Apache-2.0
"""Data URLs to the square that the model's tower takes.

Nothing is fetched and no path is opened: what a client sends is the image itself. How many pixels a
file unpacks to, and in how many passes, is looked at before it is unpacked.
"""

import base64
import dataclasses
import hashlib
import io

import numpy as np
from PIL import Image

from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.models import preprocess
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.serving.errors import ApiError, invalid

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # OpenAI's; of several frames the first counts.


@dataclasses.dataclass(frozen=True, eq=False)
class Square:
  """An image as the tower takes it: u8[S,S,3], and the hash of that."""

  pixels: np.ndarray
  digest: bytes


@dataclasses.dataclass(frozen=True)
class Squarer:
  """Makes squares for one model.

  Attributes:
    size: side of the tower's images.
    how: the model's way with pixels.
    max_pixels: most pixels of the image that is sent.
  """

  size: int
  how: Pixels
  max_pixels: int

  def square(self, url: str, *, name: str) -> Square:
    """Returns the image in a data URL.

    Raises:
      ApiError: the image, which is called `name`, is invalid or too large.
    """
    data = _payload(url, name)
    if pictures.has_too_many_scans(data):
      raise _invalid(f"{name} is a JPEG of more than {pictures.MAX_SCANS} scans", "too_large")
    try:
      with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.width * image.height > self.max_pixels:
          size = f"{image.width}x{image.height}"
          raise _invalid(f"{name} has {size} pixels, at most {self.max_pixels} in all", "too_large")
        pixels = preprocess.square(image, size=self.size, name=name, how=self.how)
    except UserError as error:
      raise _invalid(str(error)) from None
    except pictures.BROKEN as error:
      what = str(error).partition(" <_io")[0]  # Without the address of the buffer.
      formats = ", ".join(_FORMATS)
      raise _invalid(f"{name} is no image in one of the formats {formats}: {what}") from None
    return Square(pixels, hashlib.sha256(pixels.tobytes()).digest())


def _payload(url: str, name: str) -> bytes:
  """Returns the bytes in a data URL."""
  scheme = url.partition(":")[0].lower()
  if scheme in ("http", "https"):
    raise _invalid(
      f"{name} is an address, and this server fetches nothing: send the image itself, as"
      " data:image/png;base64,…",
      "invalid_image_url",
    )
  head, comma, payload = url.partition(",")
  if scheme != "data" or not comma or not head.lower().endswith(";base64"):
    raise _invalid(
      f"{name}, {url[:20]!r}…, is not a data URL such as data:image/png;base64,…",
      "invalid_image_url",
    )
  try:
    return base64.b64decode(payload, validate=True)
  except ValueError as error:  # Characters beyond ASCII, or others that base64 does not have.
    raise _invalid(f"{name} is not base64: {error}", "invalid_image_url") from None


def _invalid(message: str, code: str = "invalid_image") -> ApiError:
  return invalid(message, param="messages", code=code)
