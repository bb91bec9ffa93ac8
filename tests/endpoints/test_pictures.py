# SPDX-License-Identifier: Apache-2.0
import base64
import io

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.endpoints.config import PictureConfig
from auditdm_jax.endpoints.pictures import Pictures, data_url
from auditdm_jax.models.preprocess import Pixels, preprocess


def picture(height: int = 30, width: int = 50) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def decoded(url: str) -> np.ndarray:
  head, _, data = url.partition(",")
  assert head in {"data:image/png;base64", "data:image/jpeg;base64"}
  with Image.open(io.BytesIO(base64.b64decode(data))) as image:
    assert image.format is not None and image.format.lower() in head
    return np.asarray(image.convert("RGB"))


def test_png_keeps_every_pixel():
  np.testing.assert_array_equal(decoded(data_url(picture(), PictureConfig())), picture())


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_server_sees_the_pixels_that_our_models_see(resample):
  sent = decoded(data_url(picture(), PictureConfig(size=16, resample=resample)))
  how = Pixels(origin="hf", resample=resample)
  ours = preprocess([picture()], size=16, how=how)
  np.testing.assert_array_equal(preprocess([sent], size=16, how=how), ours)


def test_jpeg_is_near_and_short():
  smooth = np.asarray(Image.fromarray(picture(4, 4)).resize((200, 200), Image.Resampling.BICUBIC))
  url = data_url(smooth, PictureConfig(format="jpeg"))
  assert np.abs(decoded(url).astype(int) - smooth).max() < 16
  assert len(url) < len(data_url(smooth, PictureConfig()))


def test_what_is_no_picture():
  for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))):
    with pytest.raises(ValueError, match="a picture is u8"):
      data_url(bad, PictureConfig())


def test_one_picture_is_encoded_once_and_memory_is_bounded():
  loads = []
  pictures = Pictures(PictureConfig(), max_chars=20_000)

  def url(i: int) -> str:
    return pictures.url(str(i), lambda: loads.append(i) or picture() + np.uint8(i))

  assert url(0) == url(0) and loads == [0]
  for i in range(1, 9):
    url(i)
  url(0)
  assert loads.count(0) == 2
  assert sum(map(len, pictures._urls.values())) <= 20_000
