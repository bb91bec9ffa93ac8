# SPDX-License-Identifier: Apache-2.0
"""Data URLs: the pixels are the model's own, and hostile ones end in a message."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.models import preprocess
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.serving.errors import ApiError
from auditdm_jax.serving.pictures import Squarer
from tests.serving import tiny

RNG = np.random.default_rng(1)
WAYS = [Pixels(), Pixels("hf", resample="bicubic"), Pixels("big_vision")]


def refused(url, *, max_pixels=1 << 20):
  with pytest.raises(ApiError) as error:
    Squarer(8, Pixels(), max_pixels).square(url, name="image 0")
  assert (error.value.status, error.value.param) == (400, "messages")
  return str(error.value)


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.origin)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "I;16", "CMYK"])
def test_pixels_are_those_of_the_picture(mode, how):
  grey = Image.fromarray(RNG.integers(0, 256, (20, 31), dtype=np.uint8))
  colours = Image.fromarray(RNG.integers(0, 256, (20, 31, 4), dtype=np.uint8))
  image = {
    "I;16": Image.fromarray(RNG.integers(0, 1 << 16, (20, 31), dtype=np.uint16)),
    "RGBA": colours,
    "L": grey,
    "1": grey.convert("1"),
  }.get(mode)
  image = image or colours.convert("RGB").convert(mode)
  kind = "jpeg" if mode == "CMYK" else "png"
  data = io.BytesIO()
  image.save(data, kind)
  url = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
  square = Squarer(8, how, 1 << 20).square(url, name="image 0")
  with Image.open(data) as opened:
    want = preprocess.preprocess([opened], size=8, how=how)
  np.testing.assert_array_equal(preprocess.preprocess([square.pixels], size=8, how=how), want)


def test_equal_pixels_have_one_digest():
  image = RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8)
  squarer = Squarer(8, Pixels(), 1 << 20)
  one, two, other = (
    squarer.square(url, name="x").digest
    for url in (tiny.url(image), tiny.url(image, "gif"), tiny.url(image[::-1]))
  )
  assert one == squarer.square(tiny.url(image), name="y").digest
  assert len({one, two, other}) >= 2 and one != other


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("https://example.com/a.png", "this server fetches nothing"),
    ("HTTP://127.0.0.1/a.png", "this server fetches nothing"),
    ("file:///etc/passwd", "is not a data URL"),
    ("/etc/passwd", "is not a data URL"),
    ("", "is not a data URL"),
    ("data:image/png,abc", "is not a data URL"),
    ("data:image/png;base64", "is not a data URL"),
    ("data:image/png;base64,", "no image"),
    ("data:image/png;base64,A", "not base64"),
    ("data:image/png;base64,é", "not base64"),
    ("data:image/png;base64,AAAA", "no image in one of the formats PNG, JPEG, WEBP, GIF"),
  ],
)
def test_what_is_no_image_in_a_data_url(url, message):
  assert message in refused(url)


def encoded(image, kind):
  data = io.BytesIO()
  image.save(data, kind)
  return data.getvalue()


def as_url(data):
  return "data:image/png;base64," + base64.b64encode(data).decode()


def test_other_formats_are_not_opened():
  image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
  for kind in ("tiff", "bmp", "ppm", "eps", "ico"):
    assert "no image in one of the formats" in refused(as_url(encoded(image, kind)))


def test_damaged_images():
  whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "png")
  for data in (whole[:200], whole[:-30], whole[:60] + b"\xff" * 40 + whole[100:]):
    message = refused(as_url(data))
    assert "0x" not in message and "image 0" in message


def test_a_jpeg_of_many_scans_is_refused():
  """Each scan is a pass over all pixels; encoders make about ten."""
  data = io.BytesIO()
  Image.new("L", (16, 16)).save(data, "jpeg", progressive=True)
  few, scan = data.getvalue(), b"\xff\xda"
  last, end = few.rfind(scan), len(few) - 2
  most, many = (few[:end] + few[last:end] * (n - few.count(scan)) + few[end:] for n in (100, 101))
  Squarer(8, Pixels(), 1 << 20).square(as_url(most), name="image 0")
  assert "image 0 is a JPEG of more than 100 scans" in refused(as_url(many))
  # In other formats the two bytes mean nothing.
  png = encoded(Image.new("L", (16, 16)), "png")
  Squarer(8, Pixels(), 1 << 20).square(as_url(png + scan * 101), name="image 0")


def test_a_bomb_is_seen_before_it_is_unpacked():
  """A PNG of a few bytes that says it is 60,000 by 60,000, and one just above the limit."""

  def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
  png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000)))
  assert "image 0" in refused(as_url(png + chunk(b"IEND", b"")))
  large = encoded(Image.new("RGB", (101, 100)), "png")
  assert "101x100 pixels, at most 10000" in refused(as_url(large), max_pixels=10_000)
