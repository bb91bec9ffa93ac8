# SPDX-License-Identifier: Apache-2.0
"""Images on disk, named by their content."""

import hashlib
import io
import os
import pathlib
import re

import numpy as np
from PIL import Image

from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError

_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_END = b"\0\0\0\0IEND\xaeB`\x82"  # The last chunk of a PNG.


class Images:
  """Lossless images `<dir>/<image_id>.png`; the id is the sha256 of the shape and the RGB bytes.

  With `fan_out` they are in 256 folders, `<dir>/<first two digits>/<image_id>.png`: a folder of a
  hundred thousand files is slow on many file systems. Images that lie in `<dir>` are found there.
  """

  def __init__(self, dir: str | os.PathLike, *, fan_out: bool = False):
    """Opens the folder, which is made if it is not there."""
    self.dir = paths.as_path(dir)
    self.dir.mkdir(parents=True, exist_ok=True)
    self._fan_out = fan_out
    self._is_flat = not fan_out or any(True for _ in self.dir.glob("*.png"))

  @staticmethod
  def id_of(image: np.ndarray) -> str:
    """Returns the id of u8[H,W,3] without storing it."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise ValueError(f"an image is u8[H,W,3], got {image.dtype}{list(image.shape)}")
    digest = hashlib.sha256(np.asarray(image.shape, "<u4").tobytes())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()

  def put(self, image: np.ndarray) -> str:
    """Stores u8[H,W,3] if it is not there yet; returns its id.

    Not fsynced, which would cost more than making the image: the name is the hash of the content,
    so damage by a crash of the machine is seen when it is read. A file that is empty or cut, as
    after such a crash, is written anew.
    """
    image_id = self.id_of(image)
    path = self.path(image_id)
    if not self._is_whole(path):
      png = io.BytesIO()
      Image.fromarray(np.ascontiguousarray(image)).save(png, "PNG", compress_level=1)
      paths.write_bytes(path, png.getvalue(), durable=False)
    return image_id

  def _is_whole(self, path: pathlib.Path) -> bool:
    if paths.is_remote(self.dir):  # An object store has whole files only.
      return path.exists()
    try:
      with path.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        return file.read() == _END
    except OSError:  # There is none, or it is shorter.
      return False

  def get(self, image_id: str) -> np.ndarray:
    """Returns u8[H,W,3].

    Raises:
      KeyError: there is no such image.
      UserError: the file is damaged.
    """
    path = self.path(image_id)
    try:
      with path.open("rb") as file, Image.open(file) as f:
        image = np.asarray(f.convert("RGB"))
    except FileNotFoundError:
      raise KeyError(f"no image {image_id} in {self.dir}") from None
    except (OSError, SyntaxError, ValueError) as e:
      raise UserError(f"{path}: damaged ({e}); remove it") from e
    if self.id_of(image) != image_id:
      raise UserError(f"{path}: damaged, its content is not what its name says; remove it")
    return image

  def path(self, image_id: str) -> pathlib.Path:
    """Returns where the image is or would be."""
    if not _IMAGE_ID.fullmatch(image_id):
      raise ValueError(f"not an image id: {image_id!r}")
    flat = self.dir / f"{image_id}.png"
    if not self._fan_out or self._is_flat and flat.exists():
      return flat
    return self.dir / image_id[:2] / flat.name

  def __contains__(self, image_id: str) -> bool:
    return self.path(image_id).exists()
