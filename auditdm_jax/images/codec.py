# SPDX-License-Identifier: Apache-2.0
"""Images as messages. What comes in is untrusted: sizes are checked before pixels are made.

Raw pixels cost least on one machine; lossless WebP is half the bytes over a network. Answers are
lossless always, because artefacts of a codec would be a confounder of the audit.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from auditdm_jax.core import pictures
from auditdm_jax.images import stubs
from auditdm_jax.images.failures import NoImageReason, Refused

_FORMATS = {stubs.PNG: "PNG", stubs.WEBP_LOSSLESS: "WEBP", stubs.JPEG: "JPEG"}
LOSSLESS = {stubs.RAW_RGB8: "raw", stubs.PNG: "png", stubs.WEBP_LOSSLESS: "webp"}


def encode(image: np.ndarray, encoding: int = stubs.RAW_RGB8) -> Any:
  """Returns u8[H,W,3] as an Image message."""
  height, width, _ = image.shape
  if encoding == stubs.RAW_RGB8:
    data = image.tobytes()
  else:
    file = io.BytesIO()
    # The least effort: half the bytes for a hundredth of the time of the best.
    options = {"compress_level": 1} if encoding == stubs.PNG else {"method": 0, "quality": 0}
    if encoding == stubs.WEBP_LOSSLESS:
      options |= {"lossless": True, "exact": True}
    Image.fromarray(image).save(file, _FORMATS[encoding], **options)
    data = file.getvalue()
  return stubs.Image(encoding=encoding, width=width, height=height, data=data)


def decode(image: Any, *, max_pixels: int) -> np.ndarray:
  """Returns an Image message as a read-only u8[H,W,3].

  Raises:
    Refused: not what it says it is, or larger than max_pixels, which is found out before decoding.
  """
  if not 0 < image.width * image.height <= max_pixels:
    raise _refused(f"{image.width}x{image.height} pixels are not between 1 and {max_pixels}")
  if image.encoding == stubs.RAW_RGB8:
    return _raw(image)
  if image.encoding not in _FORMATS:
    raise _refused("an image needs an encoding: RAW_RGB8, PNG, WEBP_LOSSLESS or JPEG")
  if pictures.has_too_many_scans(image.data):
    raise _refused(f"the file has more than {pictures.MAX_SCANS} scans")
  try:
    # Opening reads the header; pixels are made by `convert`. Pillow warns of a bomb or raises; the
    # declared size, checked above, decides. (Warnings as errors would be so in every thread.)
    with Image.open(io.BytesIO(image.data), formats=(_FORMATS[image.encoding],)) as file:
      if file.size != (image.width, image.height):
        raise _refused(f"the file is {file.size[0]}x{file.size[1]}, not as declared")
      if vars(file).get("n_frames", 1) != 1:
        raise _refused("the file has several frames")
      if file.mode not in ("RGB", "L", "P"):
        raise _refused(f"the file is {file.mode}, not RGB")
      if "transparency" in file.info:
        raise _refused("the file has transparency")
      pixels = np.asarray(file.convert("RGB"))
  except Refused:
    raise
  except Exception as error:  # Pillow's decoders raise whatever they stumble over.
    raise _refused(f"not a readable image: {type(error).__name__}: {error}") from None
  pixels.flags.writeable = False
  return pixels


def _raw(image: Any) -> np.ndarray:
  if len(image.data) != image.height * image.width * 3:
    raise _refused(f"{len(image.data)} bytes are not {image.width}x{image.height} pixels of RGB")
  return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def _refused(message: str) -> Refused:
  return Refused(NoImageReason.INVALID_REQUEST, message)
