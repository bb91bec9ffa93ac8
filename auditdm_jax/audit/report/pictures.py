# SPDX-License-Identifier: Apache-2.0
"""Copies the images of failure cards into the report and draws what an edit changed."""

import dataclasses
import hashlib
import os
import pathlib
import shutil

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
      Image.fromarray(array).save(self._root / path)
    self._seen[digest] = _picture(path, height, width)
    return dataclasses.replace(self._seen[digest], caption=caption)

  def store(self, path: pathlib.Path, *, caption: str) -> Picture:
    """Stores a PNG as it is, and returns how to show it.

    The file is shared with its origin where the file system can do that.
    """
    name = f"images/{hashlib.sha256(path.read_bytes()).hexdigest()[:20]}.png"
    if name not in self._seen:
      with Image.open(path) as image:
        self._seen[name] = _picture(name, image.height, image.width)
      _link(path, self._root / name)
    return dataclasses.replace(self._seen[name], caption=caption)

  def card(self, original: pathlib.Path | None, edited: pathlib.Path | None) -> list[Picture]:
    """The pictures of one card: original, and if there is one, edited and their difference."""
    if original is None:
      return [] if edited is None else [self.store(edited, caption="generated")]
    pictures = [self.store(original, caption="original")]
    if edited is None:
      return pictures
    pictures.append(self.store(edited, caption="asked about"))
    before, after = _read(original), _read(edited)
    if before.shape == after.shape:
      pictures.append(self.add(difference(before, after), caption="difference"))
    return pictures


def _picture(path: str, height: int, width: int) -> Picture:
  longest = max(height, width)
  scale = max(_SHOWN // longest, 1) if longest <= _SMALL else _SHOWN / longest
  return Picture(
    path=path,
    caption="",
    width=max(round(width * scale), 1),
    height=max(round(height * scale), 1),
    pixelated=longest <= _SMALL,
  )


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Makes a file appear at a second place."""
  try:
    os.link(source, target)
  except OSError:  # Another file system, or one without links.
    shutil.copyfile(source, target)


def _read(path: pathlib.Path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"))
