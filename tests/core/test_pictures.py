# SPDX-License-Identifier: Apache-2.0
"""Picture files of every mode to RGB, and files that are none."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def ramp(mode: str) -> Image.Image:
  x, y = np.meshgrid(np.arange(16), np.arange(12))
  return Image.fromarray(np.stack([x * 16, y * 20, x + y], 2).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
  ("mode", "kind"),
  [
    *(("L", k) for k in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PPM")),
    *((m, "PNG") for m in ("1", "P", "RGB", "RGBA", "LA")),
    *(("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGB", "AVIF"), ("YCbCr", "JPEG")),
  ],
)
def test_every_mode_becomes_rgb(mode, kind, tmp_path):
  image = ramp(mode)
  want = np.asarray(image.convert("RGB"), int)
  path = tmp_path / "a.any"
  path.write_bytes(file_of(image, kind))
  for file in (path, path.read_bytes()):
    got = pictures.read(file, name="x")
    assert got.dtype == np.uint8 and got.shape == (12, 16, 3)
    assert np.abs(got - want).mean() < 10  # JPEG and AVIF are lossy.


def test_sixteen_bits_of_grey_keep_the_high_byte():
  grey = (np.arange(64, dtype=np.uint16) * 1024 + 7).reshape(8, 8)
  for kind in ("PNG", "TIFF"):
    got = pictures.read(file_of(Image.fromarray(grey), kind), name="x")
    np.testing.assert_array_equal(got, np.repeat((grey >> 8)[..., None], 3, 2))
  clear = file_of(Image.fromarray(grey), transparency=int(grey[0, 1]))
  assert pictures.read(clear, name="x")[0, :3, 0].tolist() == [0, 255, grey[0, 2] >> 8]
  with pytest.raises(UserError, match=r"x has 32 bits per channel \(mode F\): convert it"):
    pictures.read(file_of(Image.fromarray(grey.astype(np.float32)), "TIFF"), name="x")


def test_what_is_transparent_is_white():
  colour = (10, 20, 30)
  clear = Image.new("RGBA", (4, 4), (*colour, 0))
  palette = Image.new("P", (4, 4), 3)
  palette.putpalette([7] * 30)
  for image, options in (
    (clear, {}),
    (clear.convert("LA"), {}),
    (palette, {"transparency": 3}),
    (Image.new("RGB", (4, 4), colour), {"transparency": colour}),
    (Image.new("L", (4, 4), 9), {"transparency": 9}),
  ):
    assert (pictures.read(file_of(image, **options), name="x") == 255).all()
  half = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
  assert (pictures.read(file_of(half), name="x") == 204).all()
  hidden = pictures.load(file_of(clear), name="x", white=False)
  assert hidden.getpixel((0, 0)) == colour


@pytest.mark.parametrize(("tag", "turn"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_up_is_up(tag, turn):
  image = ramp("RGB")
  exif = Image.Exif()
  exif[0x0112] = tag
  got = pictures.read(file_of(image, exif=exif), name="x")
  np.testing.assert_array_equal(got, np.rot90(np.asarray(image), turn))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_tag_that_cannot_be_read_is_no_reason_to_refuse():
  image = ramp("RGB")
  torn = file_of(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
  np.testing.assert_array_equal(pictures.read(torn, name="x"), np.asarray(image))


def chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes) -> bytes:
  head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_what_cannot_be_read_is_one_line_with_its_name(monkeypatch):
  whole, jpeg = file_of(ramp("RGB")), file_of(ramp("RGB"), "JPEG")
  rows = zlib.compress(bytes(2501) * 20000, 9)
  length = whole.index(b"IDAT") - 4
  broken = {
    "bomb": png(20000, 20000, rows),
    "promise": png(60000, 60000, b""),
    "truncated": jpeg[:-40],
    "cut": whole[:60],
    "chunk length": whole[:length] + struct.pack(">I", 5) + whole[length + 4 :],
    "no data": png(8, 8, b""),
    "text": b"no picture",
    "empty": b"",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    # Pillow would start an interpreter for it.
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
  }
  for name, data in broken.items():
    with pytest.raises(UserError, match=f"^{name} (cannot be read|has)") as error:
      pictures.read(data, name=name)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400
  for missing in ("/nowhere/x.png", "https://example.com/x.png"):
    with pytest.raises(UserError, match="^x cannot be read: "):
      pictures.read(missing, name="x")
  monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
  with pytest.raises(UserError, match="x has 16x12 pixels: more than 100"):
    pictures.read(whole, name="x")
