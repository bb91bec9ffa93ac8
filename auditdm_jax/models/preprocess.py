# SPDX-License-Identifier: Apache-2.0
"""Images to pixels: any picture to f32[size,size,3], as the weights' origin makes them.

Three origins squeeze an image to the model's square in three ways, and each model wants its own:

    native      Pillow, bilinear
    hf          Pillow, as the processor's config says
    big_vision  TensorFlow's bilinear in floats, truncated to uint8; alpha dropped, not on white

Files are decoded as those of a pool are, see `core.pictures`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any, Literal

import numpy as np
from PIL import Image

from auditdm_jax.core import jsonio, pictures
from auditdm_jax.core.config import UserError

Picture = np.ndarray | Image.Image | str | os.PathLike

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers.


# transformers' names, per wiring: of the processor and of its part for images.
_PROCESSORS = {
  "paligemma": ("PaliGemmaProcessor", "SiglipImageProcessor"),
  "gemma3": ("Gemma3Processor", "Gemma3ImageProcessor"),
}


@dataclasses.dataclass(frozen=True)
class Pixels:
  """How an origin makes pixels of an image.

  Attributes:
    origin: whose arithmetic.
    resample: filter of the resizing; big_vision has "bilinear" only.
    antialias: big_vision's `resize(antialias=…)`: its transfer configs differ in it. Pillow's
      filters always do.
    resize: whether images of other sizes are resized rather than refused.
    rescale: what u8 values are multiplied by; of "hf" only, as are the next two.
    mean: subtracted per channel, after that.
    std: divided by per channel, after that.
  """

  origin: Literal["native", "hf", "big_vision"] = "native"
  resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"
  antialias: bool = True
  resize: bool = True
  rescale: float = 1 / 255
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)

  def __post_init__(self):
    if self.origin == "big_vision" and self.resample != "bilinear":
      raise ValueError(f"resample {self.resample!r}: big_vision's is 'bilinear'")
    if self.origin != "big_vision" and not self.antialias:
      raise ValueError("antialias false: Pillow's filters, of all origins but big_vision, do")
    if not all(self.std):
      raise ValueError(f"std {self.std} has a zero")
    if not np.isfinite((self.rescale, *self.mean, *self.std)).all():
      raise ValueError(f"rescale {self.rescale}, mean {self.mean} or std {self.std} is not finite")


def preprocess(images: Sequence[Picture], *, size: int, how: Pixels | None = None) -> np.ndarray:
  """Returns f32[U,size,size,3], in [-1, 1] unless the processor's config says otherwise.

  Args:
    images: u8[H,W,3], u8[H,W] or u8[H,W,4] arrays, Pillow images, or paths of image files.
    size: side of the model's images, in pixels.
    how: the origin's way; None is the native one.

  Raises:
    UserError: an image is invalid, damaged, empty or too large; the error says which.
  """
  how = how or Pixels()
  out = np.zeros((len(images), size, size, 3), np.float32)
  for i, image in enumerate(images):
    name = f"image {i} ({image})" if isinstance(image, str | os.PathLike) else f"image {i}"
    out[i] = _scale(square(image, size=size, name=name, how=how), how)
  return out


def read_processor(
  folder: str | os.PathLike, *, size: int, resample: Literal["bilinear", "bicubic"]
) -> Pixels:
  """Reads how a Hugging Face folder makes pixels, from processor_config or preprocessor_config.

  Args:
    folder: the model's; with neither file the settings are transformers' defaults.
    size: side of the tower's images.
    resample: the default filter of the model's image processor.

  Raises:
    UserError: settings that do not fit the tower, or that are not supported.
  """
  path, settings = _read_settings(pathlib.Path(folder))
  for key in ("do_pan_and_scan", "do_center_crop", "do_pad"):
    if settings.get(key):
      raise UserError(f"{path}: {key} true is not supported: images are squeezed to the square")
  want = {"height": size, "width": size}
  if settings.get("size", want) not in (want, size):
    raise UserError(f"{path}: size {settings['size']}, but the tower's is {want}")
  code = settings.get("resample", _FILTERS.index(resample))
  if code not in range(len(_FILTERS)):
    raise UserError(f"{path}: resample {code!r} is not one of Pillow's 0 to {len(_FILTERS) - 1}")
  normalize = settings.get("do_normalize", True)
  try:
    return Pixels(
      origin="hf",
      resample=_FILTERS[code],
      resize=settings.get("do_resize", True),
      rescale=float(settings.get("rescale_factor", 1 / 255))
      if settings.get("do_rescale", True)
      else 1.0,
      mean=_channels(settings.get("image_mean", 0.5)) if normalize else (0.0, 0.0, 0.0),
      std=_channels(settings.get("image_std", 0.5)) if normalize else (1.0, 1.0, 1.0),
    )
  except (OverflowError, TypeError, ValueError) as e:
    raise UserError(f"{path}: {e}") from e


def write_processor(
  how: Pixels, *, kind: Literal["paligemma", "gemma3"], size: int, tokens: int
) -> dict[str, Any]:
  """Returns a preprocessor_config.json for transformers, of a model that did not come with one.

  Args:
    how: its pixels. Those of a native model and of big_vision's are scaled alike but for the last
      bit; Pillow's bilinear filter stands in for big_vision's resizing.
    kind: the wiring.
    size: side of the tower's images.
    tokens: image slots per image.
  """
  processor, images = _PROCESSORS[kind]
  return {
    "processor_class": processor,
    "image_processor_type": images,
    "image_seq_length": tokens,
    "do_resize": how.resize,
    "size": {"height": size, "width": size},
    "resample": _FILTERS.index(how.resample),
    "do_rescale": True,
    "rescale_factor": how.rescale,
    "do_normalize": True,
    "image_mean": list(how.mean),
    "image_std": list(how.std),
  }


def _read_settings(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the file that counts and its settings; null is as good as missing."""
  for name in ("processor_config.json", "preprocessor_config.json"):
    path = folder / name
    if not path.is_file():
      continue
    settings = jsonio.read_json(path)
    # transformers 5 nests them in the processor's own file, where older ones have none.
    if name == "processor_config.json" and isinstance(settings, dict):
      settings = settings.get("image_processor")
      if settings is None:
        continue
    if not isinstance(settings, dict):
      raise UserError(f"{path}: not a JSON object")
    return path, {k: v for k, v in settings.items() if v is not None}
  return folder / "preprocessor_config.json", {}


def _channels(value: float | Sequence[float]) -> tuple[float, float, float]:
  if isinstance(value, int | float):
    return (float(value),) * 3
  if not isinstance(value, list) or len(value) != 3:
    raise ValueError(f"{value} is not one number per channel")
  return (float(value[0]), float(value[1]), float(value[2]))


def _scale(u8: np.ndarray, how: Pixels) -> np.ndarray:
  """u8 to f32, in each origin's own order of operations: the results differ in the last bit."""
  if how.origin == "native":
    return u8.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)
  if how.origin == "big_vision":
    return u8.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
  scaled = (u8.astype(np.float64) * how.rescale).astype(np.float32)
  return (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)


def square(image: Picture, *, size: int, name: str, how: Pixels) -> np.ndarray:
  """Returns u8[size,size,3], whose `preprocess` is that of the image.

  Raises:
    UserError: as `preprocess`; `name` says which image it is.
  """
  if not isinstance(image, Image.Image | str | os.PathLike):
    with pictures.errors(name):  # A list of rows of different lengths, for instance.
      image = np.asarray(image)
    if image.dtype == np.uint8 and image.shape == (size, size, 3):
      return image
    image = _from_array(image, name)
  rgb = pictures.load(image, name=name, white=how.origin != "big_vision")
  if rgb.size == (size, size):
    return np.asarray(rgb)
  if not how.resize:
    raise UserError(f"{name} is {rgb.width}x{rgb.height}, and the processor does not resize")
  if how.origin == "big_vision":
    return _resize_in_floats(np.asarray(rgb), size, antialias=how.antialias)
  return np.asarray(rgb.resize((size, size), _FILTERS.index(how.resample)))


def _from_array(image: np.ndarray, name: str) -> Image.Image:
  if image.dtype != np.uint8:
    raise UserError(f"{name} is {image.dtype}: expected uint8 in 0..255 (pixels are scaled here)")
  channels = image.shape[2] if image.ndim == 3 else None
  if image.ndim not in (2, 3) or channels not in (None, 3, 4) or 0 in image.shape:
    raise UserError(f"{name} has shape {image.shape}: expected [H,W,3], [H,W,4] or [H,W]")
  return Image.fromarray(np.ascontiguousarray(image))


def _resize_in_floats(image: np.ndarray, size: int, *, antialias: bool) -> np.ndarray:
  """As `tf.image.resize(method="bilinear")` and a cast to uint8, bit for bit.

  Sums run tap by tap in fp32 because the cast truncates: a value of 6.9999995 becomes 6.
  """
  x = image.astype(np.float32)
  if antialias:
    x = _weigh(x, *_triangle(x.shape[0], size))
    x = _weigh(x.swapaxes(0, 1), *_triangle(x.shape[1], size)).swapaxes(0, 1)
  else:
    low, high, part = _neighbours(x.shape[1], size)
    x = x[:, low] + (x[:, high] - x[:, low]) * part[:, None]
    low, high, part = _neighbours(x.shape[0], size)
    x = x[low] + (x[high] - x[low]) * part[:, None, None]
  return np.clip(x, 0, 255).astype(np.uint8)


def _weigh(x: np.ndarray, source: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns f32[size,...]: sums over taps of weights[size,taps] * x[source[size,taps]]."""
  out = np.zeros((len(source), *x.shape[1:]), np.float32)
  for rows, w in zip(source.T, weights.T):
    out += w[:, None, None] * x[rows]
  return out


@functools.lru_cache(maxsize=64)
def _triangle(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the taps i[size,taps] and weights f32[size,taps] of a triangle, wide as a new pixel."""
  half, one = np.float32(0.5), np.float32(1)
  inverse = one / (np.float32(new) / np.float32(old))
  width = max(inverse, one)
  centre = (np.arange(new, dtype=np.float32) + half) * inverse
  first = np.clip(np.ceil(centre - width - half).astype(int), 0, old - 1)
  last = np.clip(np.floor(centre + width - half).astype(int), 0, old - 1)
  source = first[:, None] + np.arange(np.max(last - first) + 1)
  distance = np.abs((source.astype(np.float32) + half - centre[:, None]) * (one / width))
  weights = np.where(source <= last[:, None], np.maximum(one - distance, 0), 0).astype(np.float32)
  total = np.cumsum(weights, axis=1)[:, -1:]  # In order: numpy's sum would pair them.
  return np.minimum(source, old - 1), weights * (one / total)


@functools.lru_cache(maxsize=64)
def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the two neighbours of each output pixel, and how far it is from the first."""
  scale = np.float32(old) / np.float32(new)
  at = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
  low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
  return np.maximum(low, 0), np.minimum(high, old - 1), at - np.floor(at)
