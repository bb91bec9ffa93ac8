# SPDX-License-Identifier: Apache-2.0
"""Copies the images of failure cards into the report and draws what an edit changed."""

import dataclasses
import hashlib
import pathlib

import numpy as np
from PIL import Image

_SMALL = 160  # Images up to this side are shown enlarged with their pixels visible.
_SHOWN = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """An image of the report: path relative to the report's folder, and the size it is shown at."""

  path: str
  caption: str
  width: int
  height: int
  pixelated: bool


def difference(original: np.ndarray, edited: np.ndarray) -> np.ndarray:
  """Returns u8[H,W,3]: the edited image in faint grey, changed pixels in their strength of orange.

  Args:
    original: u8[H,W,3].
    edited: u8[H,W,3] of the same shape.
  """
  delta = np.abs(original.astype(np.int16) - edited.astype(np.int16)).max(-1, keepdims=True)
  strength = np.clip(delta / 96.0, 0.0, 1.0)
  grey = 40 + 0.25 * edited.mean(-1, keepdims=True)
  return (grey * (1 - strength) + np.array([255, 140, 0]) * strength).astype(np.uint8)


class Album:
  """Writes each distinct image once, named by its content."""

  def __init__(self, root: pathlib.Path):
    self._root = root
    (root / "images").mkdir(parents=True, exist_ok=True)
    self._seen: dict[str, Picture] = {}

  def add(self, array: np.ndarray, *, caption: str) -> Picture:
    """Stores u8[H,W,3] as PNG and returns how to show it."""
    height, width = array.shape[:2]
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:20]
    path = f"images/{digest}.png"
    if digest not in self._seen:
      Image.fromarray(array).save(self._root / path, optimize=True)
    longest = max(height, width)
    scale = max(_SHOWN // longest, 1) if longest <= _SMALL else _SHOWN / longest
    picture = Picture(
      path=path,
      caption=caption,
      width=round(width * scale),
      height=round(height * scale),
      pixelated=longest <= _SMALL,
    )
    self._seen[digest] = picture
    return picture

  def card(self, original: pathlib.Path | None, edited: pathlib.Path | None) -> list[Picture]:
    """The pictures of one card: original, and if there is one, edited and their difference."""
    if original is None:
      return [] if edited is None else [self.add(_read(edited), caption="generated")]
    before = _read(original)
    pictures = [self.add(before, caption="original")]
    if edited is None:
      return pictures
    after = _read(edited)
    pictures.append(self.add(after, caption="asked about"))
    if before.shape == after.shape:
      pictures.append(self.add(difference(before, after), caption="difference"))
    return pictures


def _read(path: pathlib.Path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"))
