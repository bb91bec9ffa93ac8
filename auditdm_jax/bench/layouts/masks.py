# SPDX-License-Identifier: Apache-2.0
"""Outlines of objects as COCO writes them.

[[x, y, x, y, …], …]              polygons, whose union counts
{"size": [H, W], "counts": […]}   run lengths, down the columns, the first of zeros
{"size": [H, W], "counts": "…"}   the same in LEB128 of 5 bits, the third run on as differences
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from auditdm_jax.bench.items import StoredPicture
from auditdm_jax.bench.scorers.masks import decode_polygons, decode_rle
from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.rows import BadRow

_FARTHEST = 1 << 20  # Pixels; the walk along an edge takes memory.


@dataclasses.dataclass(frozen=True, slots=True)
class CocoMask:
  """An outline of COCO's annotations.

  Attributes:
    segmentation: polygons or run lengths, see the file's docstring.
    height, width: of the picture.
    name: what errors call it.
  """

  segmentation: Any
  height: int
  width: int
  name: str

  def pixels(self) -> np.ndarray:
    """Returns bool[H,W].

    Raises:
      UserError: it is neither polygons nor run lengths of such a picture.
    """
    try:
      return decode(self.segmentation, self.height, self.width)
    except (BadRow, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
      raise UserError(f"{self.name}: no outline of COCO's ({e})") from e


@dataclasses.dataclass(frozen=True, slots=True)
class PictureMask:
  """A mask that is a picture: what is not black is the object."""

  picture: StoredPicture

  def pixels(self) -> np.ndarray:
    """Returns bool[H,W]."""
    stored = self.picture.stored()
    if isinstance(stored, np.ndarray):
      return stored[..., 0] > 0
    image = pictures.read(stored, name=self.picture.name)
    return image[..., 0] > 0


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedPicture:
  """The bytes of a picture's file, small enough to be kept."""

  data: bytes
  name: str

  def stored(self) -> bytes:
    return self.data


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
  """Returns bool[H,W] of polygons or run lengths.

  Raises:
    BadRow, UserError, LookupError, TypeError, ValueError: it is neither, or of another size.
  """
  if not 0 < height * width <= pictures.MAX_PIXELS:
    raise BadRow(f"{height}x{width} pixels")
  if isinstance(segmentation, Mapping):
    if list(segmentation["size"]) != [height, width]:
      raise BadRow(f"size {segmentation['size']} of a picture of {height}x{width}")
    return decode_rle(segmentation["counts"], height=height, width=width)
  if segmentation and isinstance(segmentation[0], int | float):
    segmentation = [segmentation]  # As lmms-eval's RefCOCO has a single polygon.
  corners = np.concatenate([np.asarray(x, np.float64) for x in segmentation])
  if not np.isfinite(corners).all() or np.abs(corners).max(initial=0) > _FARTHEST:
    raise BadRow("a corner that is far outside")
  return decode_polygons(segmentation, height=height, width=width)
