# SPDX-License-Identifier: Apache-2.0
"""Picture files to upright RGB: the one decoding of pools and of models.

16 bits of grey     the high byte, as decoders to 8 bits keep it
transparency        white shows through, as transformers' processors have it
palette, CMYK, LA   RGB
EXIF orientation    turned, so that up is up
several frames      the first
"""

from collections.abc import Iterator
import contextlib
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, features

from auditdm_jax.core.config import UserError

# Changes whenever the same file may give other pixels: image ids are remembered under it.
DECODER = f"1 pillow {Image.__version__} libjpeg {features.version('jpg')}" + (
  f" turbo {features.version('libjpeg_turbo')}"
)
SUFFIXES = frozenset(
  ".png .apng .jpg .jpeg .jpe .jfif .gif .webp .bmp .dib .tif .tiff .avif .ppm .pgm .pbm .pnm"
  " .jp2 .j2k".split()
)
# Pictures too, but of kinds that are not read: they must not be left out in silence.
FOREIGN = frozenset(
  ".heic .heif .hif .svg .svgz .jxl .psd .psb .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .exr .hdr"
  " .dcm .nii .tga .ico .icns .pcx .dds .eps .ai .pdf .xcf .npy .avifs .jxr".split()
)
MAX_PIXELS = 1 << 27  # A file of a few kB can unpack to more than the memory holds.
# Each scan of a progressive JPEG is a pass over all of its pixels; encoders make about ten.
MAX_SCANS = 100
_JPEG, _START_OF_SCAN = b"\xff\xd8\xff", b"\xff\xda"
# Pillow would also run ghostscript on what is PostScript inside, whatever its name.
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "AVIF", "PPM", "JPEG2000")
# What Pillow raises for a file that is damaged or no image.
BROKEN = (
  *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error),
  Image.DecompressionBombError,
)
_REASON = 300  # Longest text of such an error that is shown.


def read(file: str | os.PathLike | bytes, *, name: str) -> np.ndarray:
  """Returns u8[H,W,3] of a picture, read-only; see `load`."""
  return np.asarray(load(file, name=name))


def size(file: str | os.PathLike | bytes | np.ndarray, *, name: str) -> tuple[int, int]:
  """Returns the width and height that a picture is stored with; only its head is read.

  Raises:
    UserError: it is damaged or no picture.
  """
  if isinstance(file, np.ndarray):
    return file.shape[1], file.shape[0]
  with errors(name):
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as f:
      return f.size


def load(
  file: str | os.PathLike | bytes | Image.Image, *, name: str, white: bool = True
) -> Image.Image:
  """Returns a picture upright, in RGB.

  Args:
    file: its path, its bytes, or a Pillow image.
    name: what an error calls it.
    white: whether white shows through transparent parts; otherwise they keep the colour that lies
      under them, as big_vision's decoder has it.

  Raises:
    UserError: it is damaged, too large, has 32 bits per channel, or is no picture.
  """
  with errors(name):
    if isinstance(file, Image.Image):
      return _rgb(file, name, white)
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as f:
      return _rgb(f, name, white)


def has_too_many_scans(file: bytes) -> bool:
  """Whether a file is a JPEG of more than MAX_SCANS scans: a small one can take minutes."""
  return file.startswith(_JPEG) and file.count(_START_OF_SCAN) > MAX_SCANS


@contextlib.contextmanager
def errors(name: str) -> Iterator[None]:
  """Turns what Pillow raises for a damaged file into a UserError of one line."""
  try:
    yield
  except UserError:
    raise
  except BROKEN as e:
    reason = " ".join(str(e).split()) or type(e).__name__
    raise UserError(f"{name} cannot be read: {reason[:_REASON]}") from e


def _rgb(image: Image.Image, name: str, white: bool) -> Image.Image:
  if image.width * image.height > MAX_PIXELS:
    raise UserError(f"{name} has {image.width}x{image.height} pixels: more than {MAX_PIXELS}")
  clear = image.info.get("transparency")
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I;16"):
    return _of_16_bits(np.asarray(image), clear if white else None)
  if image.mode in ("I", "F"):
    raise UserError(f"{name} has 32 bits per channel (mode {image.mode}): convert it to 8 first")
  if white and image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image if image.mode == "RGB" else image.convert("RGB")


def _of_16_bits(grey: np.ndarray, clear: int | bytes | tuple | None) -> Image.Image:
  """RGB of u16[H,W], which Pillow would clip at 255; the grey of value `clear` is white."""
  high = (grey >> 8).astype(np.uint8)
  if isinstance(clear, int):
    high = np.where(grey == clear, np.uint8(255), high)
  return Image.fromarray(high).convert("RGB")
