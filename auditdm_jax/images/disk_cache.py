# SPDX-License-Identifier: Apache-2.0
"""Images on disk by the content of their requests: a repeated epoch costs no GPU."""

import contextlib
import hashlib
import io
import logging
import os
import pathlib

import numpy as np
from PIL import Image, PngImagePlugin

from auditdm_jax.core import paths

_KEY = "sha256"
_LOG = logging.getLogger(__name__)


class DiskCache:
  """Lossless PNGs as <folder>/<model>/<first two>/<digest>.png; shared by any number of processes.

  The digest is of the whole request and the model's identity is in the path, so that a file is
  never out of date. Nothing is ever removed. A disk that fails costs time and no image.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder = pathlib.Path(folder)
    self._warned = False

  def get(self, model: str, digest: str, *, size: tuple[int, int]) -> np.ndarray | None:
    """Returns the image u8[H,W,3] of a (width, height), or None if it is not there.

    A damaged one, or one of another size, is removed; the size is looked at before pixels are made.
    """
    path = self._path(model, digest)
    try:
      with Image.open(path, formats=("PNG",)) as file:
        if file.size != size:
          raise ValueError(f"{file.size} instead of {size}")
        image, want = np.asarray(file.convert("RGB")), file.text[_KEY]
    except FileNotFoundError:
      return None
    except (OSError, KeyError, SyntaxError, ValueError, Image.DecompressionBombError):
      image, want = np.zeros(0, np.uint8), ""
    if hashlib.sha256(image.tobytes()).hexdigest() != want:
      with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
      return None
    image.flags.writeable = False
    return image

  def put(self, model: str, digest: str, image: np.ndarray) -> None:
    """Keeps an image, if the disk takes it; the first time it does not is said."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text(_KEY, hashlib.sha256(image.tobytes()).hexdigest())
    Image.fromarray(image).save(file, "PNG", pnginfo=info, compress_level=1)
    path = self._path(model, digest)
    try:
      # A file that a crash of the machine loses is made again.
      paths.write_bytes(path, file.getvalue(), durable=False)
    except OSError as error:
      if not self._warned:
        _LOG.warning("images are not kept in %s: %s", self._folder, error)
      self._warned = True

  def _path(self, model: str, digest: str) -> pathlib.Path:
    if not (model.isalnum() and digest.isalnum()):
      raise ValueError(f"not a name for a file: {model!r}, {digest!r}")
    return self._folder / model / digest[:2] / f"{digest}.png"
