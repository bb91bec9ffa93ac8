# SPDX-License-Identifier: Apache-2.0
"""Images to pixels: u8[H,W,3] of any size to f32[S,S,3] in [-1, 1]."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def preprocess(images: Sequence[np.ndarray | Image.Image], *, size: int) -> np.ndarray:
  """Returns f32[N,size,size,3] in [-1, 1].

  An image of another size is squeezed to the square, bilinearly, as big_vision and transformers
  do; grey becomes RGB, and alpha is dropped.

  Args:
    images: u8[H,W,3], u8[H,W] or u8[H,W,4] arrays, or PIL images.
    size: side of the model's images, in pixels.

  Raises:
    ValueError: an image of another dtype or shape, or an empty one.
  """
  if not len(images):
    return np.zeros((0, size, size, 3), np.float32)
  u8 = np.stack([_square(image, size, index) for index, image in enumerate(images)])
  return u8.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)


def _square(image: np.ndarray | Image.Image, size: int, index: int) -> np.ndarray:
  if isinstance(image, Image.Image):
    pil = image
  else:
    image = np.asarray(image)
    if image.dtype == np.uint8 and image.shape == (size, size, 3):
      return image
    pil = _to_pil(image, index)
  if pil.mode != "RGB":
    pil = pil.convert("RGB")
  if pil.size != (size, size):
    pil = pil.resize((size, size), Image.Resampling.BILINEAR)
  return np.asarray(pil)


def _to_pil(image: np.ndarray, index: int) -> Image.Image:
  if image.dtype != np.uint8:
    raise ValueError(
      f"image {index} is {image.dtype}: expected uint8 in 0..255 (pixels are scaled here)"
    )
  channels = image.shape[2] if image.ndim == 3 else None
  if image.ndim not in (2, 3) or channels not in (None, 3, 4) or 0 in image.shape:
    raise ValueError(f"image {index} has shape {image.shape}: expected [H,W,3], [H,W,4] or [H,W]")
  return Image.fromarray(np.ascontiguousarray(image))
