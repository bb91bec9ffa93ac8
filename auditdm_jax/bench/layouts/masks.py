# SPDX-License-Identifier: Apache-2.0
"""Outlines of objects as COCO writes them, to masks, equal to pycocotools' to the pixel.

    [[x, y, x, y, …], …]              polygons, whose union counts
    {"size": [H, W], "counts": […]}   run lengths, down the columns, the first of zeros
    {"size": [H, W], "counts": "…"}   the same in LEB128 of 5 bits, the third run on as differences

Source: github.com/cocodataset/cocoapi, common/maskApi.c (rleFrPoly, rleFrString, rleDecode).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from auditdm_jax.bench.items import StoredPicture
from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.rows import BadRow

_SCALE = 5  # Polygons are drawn on a grid that is finer by this.
_MAX_PIXELS = pictures.MAX_PIXELS


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
    image = stored if isinstance(stored, np.ndarray) else None
    if image is None:
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
  """Returns bool[H,W] of polygons or run lengths."""
  if not 0 < height * width <= _MAX_PIXELS:
    raise BadRow(f"{height}x{width} pixels")
  if isinstance(segmentation, Mapping):
    if list(segmentation["size"]) != [height, width]:
      raise BadRow(f"size {segmentation['size']} of a picture of {height}x{width}")
    return from_counts(counts_of(segmentation["counts"]), height, width)
  if segmentation and isinstance(segmentation[0], int | float):
    segmentation = [segmentation]  # As lmms-eval's RefCOCO has a single polygon.
  mask = np.zeros((height, width), bool)
  for polygon in segmentation:
    mask |= from_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
  return mask


def counts_of(counts: str | bytes | Sequence[int]) -> list[int]:
  """Returns run lengths of their text; a list is returned as it is."""
  if not isinstance(counts, str | bytes):
    return [int(x) for x in counts]
  data = counts.encode("ascii") if isinstance(counts, str) else counts
  found: list[int] = []
  value, shift = 0, 0
  for byte in data:
    bits = byte - 48
    if not 0 <= bits < 64:
      raise BadRow(f"the byte {byte} in run lengths")
    value |= (bits & 0x1F) << shift
    shift += 5
    if bits & 0x20:
      continue
    if bits & 0x10:
      value -= 1 << shift
    found.append(value + found[-2] if len(found) > 2 else value)
    value, shift = 0, 0
  if shift:
    raise BadRow("run lengths that are cut short")
  return found


def from_counts(counts: Sequence[int], height: int, width: int) -> np.ndarray:
  """Returns bool[H,W] of run lengths."""
  if sum(counts) != height * width or min(counts) < 0:
    raise BadRow(f"run lengths of {sum(counts)} pixels, not {height * width}")
  values = np.arange(len(counts)) % 2 == 1
  return np.repeat(values, counts).reshape(width, height).T


def from_polygon(xy: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns bool[H,W] of a polygon f64[K,2] in pixels.

  Walks the edges on the finer grid, and notes in which row of each column the boundary is crossed.
  A pixel is inside after an odd number of crossings above it.
  """
  if not np.isfinite(xy).all() or np.abs(xy).max(initial=0) > 1 << 20:
    raise BadRow("a corner that is far outside")
  corners = np.trunc(_SCALE * xy + 0.5).astype(np.int64)
  u, v = _boundary(corners)
  turns = np.flatnonzero(u[1:] != u[:-1]) + 1
  left = np.minimum(u[turns], u[turns - 1])  # u falls: u[j]; it rises: u[j] - 1 = u[j - 1].
  x = (left + 0.5) / _SCALE - 0.5
  kept = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
  y = (np.minimum(v[turns], v[turns - 1]) + 0.5) / _SCALE - 0.5
  y = np.ceil(np.clip(y, 0, height))
  at = (x[kept] * height + y[kept]).astype(np.int64)
  crossings = np.bincount(at, minlength=height * width + 1)[: height * width]
  return (np.cumsum(crossings) % 2 == 1).reshape(width, height).T


def _boundary(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the points i64[M] and i64[M] of all edges, each walked from its lower coordinate."""
  us, vs = [], []
  for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    steep = dx < dy
    flip = y0 > y1 if steep else x0 > x1
    if flip:
      x0, y0, x1, y1 = x1, y1, x0, y0
    t = np.arange(max(dx, dy) + 1)
    t = t[::-1] if flip else t
    if steep:
      us.append(np.trunc(x0 + (x1 - x0) / dy * t + 0.5).astype(np.int64))
      vs.append(t + y0)
    else:
      slope = (y1 - y0) / dx if dx else 0.0
      us.append(t + x0)
      vs.append(np.trunc(y0 + slope * t + 0.5).astype(np.int64))
  return np.concatenate(us), np.concatenate(vs)
