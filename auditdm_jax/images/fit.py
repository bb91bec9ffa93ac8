# SPDX-License-Identifier: Apache-2.0
"""Images of any size for a service that takes some sizes, and its edits back on the source's grid.

  4032x3024 ─ scale ▶ 1173x880 ─ pad ▶ 1184x880 ─ service ▶ 1184x880 ─ crop, scale ▶ 4032x3024

A size that is taken is left alone, bit for bit. Any other keeps its aspect. It is scaled down only
above `max_pixels` or `max_side`, and up only below `min_side`. The rest is padded at the right and
at the bottom with the last column and row. Padding is better than its alternatives, on 36 crops of
three photographs with both sides off the grid of 16:

  resizing to the nearest multiples and back alters 0.19 % of the pixels by more than 24 levels
    before anything is drawn, and a local edit would take them for its own; padding alters none
  cropping leaves strips that no edit reaches: 3.3 % of 640x427, 500x375 and 333x500 on average
  padding with the last pixels disturbs an autoencoder least. In the last patch the error is
    9.2 levels rms (mirrored 10.0, black 11.1, resized 9.8) for principal components of patches,
    and 23.6 (mirrored 24.0, black 32.1, resized 26.9) for a small convolutional one.

What is scaled down has lost its detail: in 10 % of the pixels of a photograph at a scale of 0.29,
by more than 24 levels. What an edit has changed is therefore looked for on the service's grid.
"""

from collections.abc import Iterable
import dataclasses
import itertools
import math

import numpy as np
from PIL import Image

from auditdm_jax.core.config import UserError
from auditdm_jax.images.backend import MAX_PIXELS, MAX_SIDE, Info
from auditdm_jax.images.failures import NoImageReason, Refused

Size = tuple[int, int]  # (width, height)

_SOME = 256  # images of a pool that are looked at before all are taken to be too odd


@dataclasses.dataclass(frozen=True)
class Fit:
  """How an image of one size comes to a service and back.

  Attributes:
    source: (width, height) of the image.
    scaled: (width, height) of it before it is padded.
    size: (width, height) that the service sees.
  """

  source: Size
  scaled: Size
  size: Size

  @property
  def scales(self) -> bool:
    """Whether pixels are resampled; without it, there and back is the identity."""
    return self.scaled != self.source

  @property
  def text(self) -> str:
    """For a record, such as "640x427>640x432 pad"; "" = the image went as it is."""
    if self.size == self.source:
      return ""
    how = ["scale"] * self.scales + ["pad"] * (self.size != self.scaled)
    return f"{_said(self.source)}>{_said(self.size)} {'+'.join(how)}"

  @property
  def drawn(self) -> str:
    """As `text`, of an image that was not sent but asked for."""
    return f"{_said(self.source)}>{_said(self.size)} drawn" if self.size != self.source else ""

  def there(self, image: np.ndarray) -> np.ndarray:
    """Returns u8[H,W,3] of the source's size as the service takes it."""
    if self.size == self.source:
      return image
    right, below = self.size[0] - self.scaled[0], self.size[1] - self.scaled[1]
    scaled = _resized(image, self.scaled)
    return np.pad(scaled, ((0, below), (0, right), (0, 0)), mode="edge")

  def back(self, image: np.ndarray) -> np.ndarray:
    """Returns u8[H,W,3] of the service's size on the grid of the source."""
    if self.size == self.source:
      return image
    return _resized(np.ascontiguousarray(self._unpadded(image)), self.source)

  def mask_back(self, mask: np.ndarray) -> np.ndarray:
    """Returns bool[H,W] of the service's size on the grid of the source: pixels that it touches."""
    grey = np.ascontiguousarray(self._unpadded(mask)).astype(np.uint8) * 255
    picture = Image.fromarray(grey).resize(self.source, Image.Resampling.BILINEAR)
    return np.asarray(picture) > 0

  def _unpadded(self, pixels: np.ndarray) -> np.ndarray:
    return pixels[: self.scaled[1], : self.scaled[0]]


def fit(info: Info, source: Size) -> Fit:
  """Returns how images of this size come to a service.

  Args:
    info: what the service says it takes.
    source: (width, height), both at least 1.

  Raises:
    Refused: no request can have them: they may not be scaled, or the service takes no size at all.
  """
  if min(source) < 1:
    raise Refused(NoImageReason.INVALID_REQUEST, f"an image of {_said(source)} has no pixels")
  if _is_taken(info, source):
    return Fit(source, source, source)
  if info.exact:
    raise Refused(
      NoImageReason.INVALID_REQUEST,
      f"{_name(info)} takes images of {_sizes(info)} as they are, not {_said(source)}",
    )
  found = _among(info, source) if info.sizes else _near(info, source)
  if found is None:
    raise Refused(
      NoImageReason.INVALID_REQUEST,
      f"{_name(info)} takes no size at all: {_sizes(info)}, sides of {info.min_side} to"
      f" {info.max_side}, at most {info.max_pixels} pixels",
    )
  return found


def check(info: Info, sizes: Iterable[Size]) -> None:
  """Raises UserError if images of none of the sizes (of the first 256) can be asked.

  One that can is enough, and no further ones are looked at: a pool is read lazily.
  """
  why: list[str] = []
  for size in itertools.islice(sizes, _SOME):
    try:
      fit(info, size)
    except Refused as refused:
      why.append(refused.message)
    else:
      return
  if why:
    raise UserError(
      f"config.images: the service can be asked for none of {len(why)} images of the pool:"
      f" {why[0]}; name a service that takes such images, or leave the image strategies out of"
      " config.rollout.prompts"
    )


def _is_taken(info: Info, size: Size) -> bool:
  """Returns whether the service takes a size; sizes that no memory is lent to are not."""
  width, height = size
  multiple = max(info.multiple, 1)
  return (
    max(info.min_side, 1) <= min(size)
    and max(size) <= min(info.max_side or MAX_SIDE, MAX_SIDE)
    and width * height <= min(info.max_pixels or MAX_PIXELS, MAX_PIXELS)
    and not (width % multiple or height % multiple)
    and (not info.sizes or size in info.sizes)
  )


def _among(info: Info, source: Size) -> Fit | None:
  """Returns the fixed size that is filled best and, among equals, the least with all detail."""
  fits = []
  for size in info.sizes:
    if _is_taken(info, size):
      scale = min(size[0] / source[0], size[1] / source[1])
      width, height = (min(round(scale * s), t) for s, t in zip(source, size, strict=True))
      scaled = max(width, 1), max(height, 1)
      waste = 1 - math.prod(scaled) / math.prod(size)
      rank = round(waste, 2), scale < 1, abs(math.log(scale))
      fits.append((rank, Fit(source, scaled, size)))
  return min(fits, key=lambda ranked: ranked[0])[1] if fits else None


def _near(info: Info, source: Size) -> Fit | None:
  """The source at the largest scale that is taken, but not above what `min_side` asks for."""
  long, short = max(source), min(source)
  multiple = max(info.multiple, 1)
  least = max(info.min_side, 1)

  def at(length: int) -> Fit | None:
    """Returns the source with its longer side scaled to a length, if that is taken."""
    other = max(round(short * length / long), 1)
    scaled = (length, other) if source[0] == long else (other, length)
    width, height = (-(-max(side, least) // multiple) * multiple for side in scaled)
    size = width, height
    return Fit(source, scaled, size) if _is_taken(info, size) else None

  wanted = min(round(long * max(least / short, 1.0)), max(MAX_SIDE, long))
  if (whole := at(wanted)) is not None:
    return whole
  low, high = 0, wanted  # `at` fails from somewhere between on.
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if at(middle) else (low, middle)
  return at(low) if low else None


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
  """Returns u8[H,W,3] of another size; Lanczos's filter loses least, there and back."""
  if (image.shape[1], image.shape[0]) == size:
    return image
  return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _name(info: Info) -> str:
  """Returns what a service calls its model, for a message; it can say anything."""
  return repr(info.name[:100])


def _sizes(info: Info) -> str:
  """Returns what a service draws, for a message."""
  if not info.sizes:
    return f"multiples of {info.multiple}"
  more = ", …" if len(info.sizes) > 4 else ""
  return ", ".join(_said(size) for size in info.sizes[:4]) + more


def _said(size: Size) -> str:
  return f"{size[0]}x{size[1]}"
