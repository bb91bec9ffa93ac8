# SPDX-License-Identifier: Apache-2.0
"""Pictures as data URLs, squeezed to the tower's square so that every server sees these pixels."""

import base64
from collections import OrderedDict
from collections.abc import Callable
import io
import threading

import numpy as np
from PIL import Image

from auditdm_jax.endpoints.config import PictureConfig

_FILTERS = {
  "nearest": Image.Resampling.NEAREST,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}


def data_url(image: np.ndarray, config: PictureConfig) -> str:
  """Returns u8[H,W,3] as a data URL.

  Raises:
    ValueError: it is no u8[H,W,3].
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise ValueError(f"a picture is u8[H,W,3], got {image.dtype}{list(image.shape)}")
  picture = Image.fromarray(np.ascontiguousarray(image))
  square = (config.size, config.size)
  if config.size and picture.size != square:
    picture = picture.resize(square, _FILTERS[config.resample])
  file = io.BytesIO()
  if config.format == "png":
    picture.save(file, "PNG", compress_level=1)
  else:
    picture.save(file, "JPEG", quality=95, subsampling=0)
  return f"data:image/{config.format};base64,{base64.b64encode(file.getvalue()).decode()}"


class Pictures:
  """The data URLs of the pictures in use: one picture often has many questions.

  It may be called from several threads; two that ask for one picture at the same time may both
  encode it.
  """

  def __init__(self, config: PictureConfig, *, max_chars: int = 64 << 20):
    self._config, self._max_chars = config, max_chars
    self._urls: OrderedDict[str, str] = OrderedDict()
    self._chars = 0
    self._lock = threading.Lock()

  def url(self, image_id: str, load: Callable[[], np.ndarray]) -> str:
    """Returns the data URL of a picture; loads and encodes it if it is not at hand."""
    with self._lock:
      if (url := self._urls.get(image_id)) is not None:
        self._urls.move_to_end(image_id)
        return url
    url = data_url(load(), self._config)
    with self._lock:
      if image_id not in self._urls:
        self._urls[image_id] = url
        self._chars += len(url)
      while self._chars > self._max_chars and len(self._urls) > 1:
        self._chars -= len(self._urls.popitem(last=False)[1])
    return url
