# SPDX-License-Identifier: Apache-2.0
"""Images of every kind to pixels in [-1, 1]."""

import io
import json
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.models.preprocess import Pixels, preprocess, read_processor

RNG = np.random.default_rng(0)
HF, BIG_VISION = Pixels("hf"), Pixels("big_vision")
ORIGINS = pytest.mark.parametrize("how", [Pixels(), HF, BIG_VISION], ids=lambda p: p.origin)


def test_right_size_is_only_scaled():
  image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
  out = preprocess([image, image[::-1]], size=8)
  assert out.dtype == np.float32 and out.shape == (2, 8, 8, 3)
  np.testing.assert_allclose(out[0], image / 127.5 - 1, atol=1e-6)
  assert preprocess([np.full((8, 8, 3), 255, np.uint8)], size=8).max() == 1.0
  assert preprocess([np.zeros((8, 8, 3), np.uint8)], size=8).min() == -1.0


def test_other_sizes_are_squeezed_bilinearly():
  image = RNG.integers(0, 256, (5, 17, 3), dtype=np.uint8)
  want = Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(preprocess([image], size=8), preprocess([want], size=8))
  assert preprocess([np.full((1, 1, 3), 7, np.uint8)], size=8).std() < 1e-6


def test_grey_alpha_and_palette_become_rgb():
  grey = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
  rgb = np.repeat(grey[..., None], 3, axis=2)
  rgba = np.concatenate([rgb, np.full((8, 8, 1), 255, np.uint8)], axis=2)
  want = preprocess([rgb], size=8)
  for image in (grey, rgba, Image.fromarray(grey), Image.fromarray(grey).convert("P")):
    np.testing.assert_array_equal(preprocess([image], size=8), want)


@pytest.mark.parametrize(
  "image, message",
  [
    (np.zeros((8, 8, 3)), "image 1 is float64"),
    (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
    (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
    (np.zeros((8,), np.uint8), r"shape \(8,\)"),
    ([[1, 2], [3]], "image 1 cannot be read: .*inhomogeneous"),
  ],
)
def test_what_is_not_an_image_is_refused(image, message):
  with pytest.raises(ValueError, match=message):
    preprocess([np.zeros((8, 8, 3), np.uint8), image], size=8)


def test_no_images():
  assert preprocess([], size=8).shape == (0, 8, 8, 3)


def picture(mode="RGB", size=(23, 14)):
  """An image with structure: a resized one differs visibly between filters."""
  x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
  rgb = np.stack([x * 11 % 256, y * 17 % 256, (x * y) % 256], axis=2).astype(np.uint8)
  image = Image.fromarray(rgb)
  alpha = Image.fromarray((x * 255 // size[0]).astype(np.uint8))
  if mode in ("RGBA", "LA"):
    image = image.convert(mode[:-1])
    image.putalpha(alpha)
  return image.convert(mode)


@pytest.fixture(params=["gemma3", "siglip"])
def processor(request):
  """transformers' image processor: Pillow's, which is also its default without torchvision."""
  pytest.importorskip("transformers")
  if request.param == "gemma3":
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil, "bilinear"
  from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

  return SiglipImageProcessorPil, "bicubic"


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"resample": 1, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.125]},
    {"resample": 0, "do_normalize": False},
    {"do_rescale": False, "image_mean": 127.5, "image_std": 127.5},
    {"rescale_factor": 1 / 128},
  ],
  ids=str,
)
def test_pixels_are_those_of_transformers(processor, settings, tmp_path):
  cls, resample = processor
  reference = cls(size={"height": 16, "width": 16}, **settings)
  reference.save_pretrained(tmp_path)
  how = read_processor(tmp_path, size=16, resample=resample)
  assert (
    how.resample
    == ("nearest", "lanczos", "bilinear", "bicubic")[
      settings.get("resample", {"bilinear": 2, "bicubic": 3}[resample])
    ]
  )
  palette = picture().quantize(8)
  palette.info["transparency"] = 3
  modes = ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "YCbCr"]
  images = [picture(mode) for mode in modes] + [
    palette,
    picture(size=(16, 16)),
    picture(size=(1, 1)),
  ]
  want = reference(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(preprocess(images, size=16, how=how), want)
  nested = tmp_path / "nested"
  nested.mkdir()
  settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
  (nested / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
  assert read_processor(nested, size=16, resample="nearest") == how


def test_a_processor_that_does_something_else_is_refused(tmp_path):
  assert read_processor(tmp_path, size=8, resample="bicubic") == Pixels("hf", resample="bicubic")
  for settings, message in (
    ({"do_pan_and_scan": True}, "do_pan_and_scan true is not supported"),
    ({"size": {"height": 4, "width": 8}}, "size .*'height': 4.* but the tower's is"),
    ({"size": {"shortest_edge": 8}}, "shortest_edge"),
    ({"resample": 9}, "resample 9 is not one of"),
    ({"image_mean": [0.5]}, "one number per channel"),
    ({"image_std": [0, 1, 1]}, "has a zero"),
    ({"image_mean": {"r": 0.5, "g": 0.5, "b": 0.5}}, "one number per channel"),
    ({"image_std": [float("nan"), 1, 1]}, "is not finite"),
    ({"image_mean": float("inf")}, "is not finite"),
    ({"rescale_factor": float("inf")}, "is not finite"),
    ({"rescale_factor": 10**400}, "too large"),
    ([], "not a JSON object"),
  ):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"preprocessor_config.json: .*{message}"):
      read_processor(tmp_path, size=8, resample="bicubic")
  (tmp_path / "processor_config.json").write_text('{"image_processor": "x"}')
  with pytest.raises(UserError, match="/processor_config.json: not a JSON object"):
    read_processor(tmp_path, size=8, resample="bicubic")
  (tmp_path / "processor_config.json").write_text("{}")
  (tmp_path / "preprocessor_config.json").write_text(
    '{"do_pan_and_scan": null, "do_resize": false}'
  )
  how = read_processor(tmp_path, size=8, resample="bicubic")
  with pytest.raises(UserError, match="image 0 is 23x14, and the processor does not resize"):
    preprocess([picture()], size=8, how=how)
  assert preprocess([picture(size=(8, 8))], size=8, how=how).shape == (1, 8, 8, 3)


# tf.image.resize(…, method="bilinear") cast to uint8, first channel; TensorFlow 2.21.
TF_IMAGE = (np.arange(9 * 7 * 3) * 37 % 256).astype(np.uint8).reshape(9, 7, 3)
TF_SMALL = {
  True: [[65, 166, 135, 115], [80, 152, 153, 133], [92, 75, 174, 154], [110, 90, 143, 168]],
  False: [[47, 209, 179, 118], [67, 229, 200, 138], [87, 26, 220, 158], [108, 46, 156, 178]],
}
TF_LARGE_SUM = {True: 54154, False: 54163}


@pytest.mark.parametrize("antialias", [True, False])
def test_pixels_are_those_of_big_vision(antialias):
  def u8(size):
    pixels = preprocess([TF_IMAGE], size=size, how=Pixels("big_vision", antialias=antialias))[0]
    return np.round((pixels + 1) * 127.5).astype(int)

  assert u8(4)[..., 0].tolist() == TF_SMALL[antialias]
  assert u8(12).sum() == TF_LARGE_SUM[antialias] and u8(12)[5, 7].tolist() == [206, 103, 56]
  assert (u8(9).shape, u8(1).shape) == ((9, 9, 3), (1, 1, 3))


def test_big_vision_against_tensorflow():
  tf = pytest.importorskip("tensorflow")
  for h, w, size in ((5, 17, 8), (100, 37, 28), (224, 224, 448), (7, 7, 224), (1, 300, 16)):
    image = RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)
    for antialias in (True, False):
      want = tf.image.resize(image, (size, size), method="bilinear", antialias=antialias)
      want = tf.cast(tf.clip_by_value(want, 0, 255), tf.uint8).numpy()
      how = Pixels("big_vision", antialias=antialias)
      got = preprocess([image], size=size, how=how)[0]
      np.testing.assert_array_equal(np.round((got + 1) * 127.5), want)


@ORIGINS
def test_transparency_and_grey(how):
  image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
  want = np.array([10, 20, 30]) / 127.5 - 1 if how.origin == "big_vision" else 1.0
  for given in (image, np.asarray(image)):
    np.testing.assert_allclose(preprocess([given], size=8, how=how)[0, 0, 0], want, atol=1e-6)
  grey = preprocess([picture("L")], size=8, how=how)
  np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
  assert np.ptp(grey) > 0.5


@ORIGINS
def test_sixteen_bits_keep_the_high_byte(how, tmp_path):
  values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024 + 7
  path = tmp_path / "deep.png"
  Image.fromarray(values).save(path)
  want = preprocess([(values >> 8).astype(np.uint8)], size=8, how=how)
  np.testing.assert_array_equal(preprocess([path, Image.open(path)], size=8, how=how)[0], want[0])
  with pytest.raises(UserError, match="32 bits per channel"):
    preprocess([Image.fromarray(values.astype(np.float32))], size=8, how=how)


@ORIGINS
def test_images_are_seen_upright(how, tmp_path):
  upright = np.zeros((8, 8, 3), np.uint8)
  upright[:4] = 200  # A light half on top.
  sideways = Image.fromarray(np.rot90(upright))  # As a camera on its side stores it: tag 6.
  path = tmp_path / "sideways.png"
  exif = Image.Exif()
  exif[0x0112] = 6
  sideways.save(path, exif=exif)
  got = preprocess([str(path), Image.open(path), sideways], size=8, how=how)
  want = preprocess([upright, upright, np.asarray(sideways)], size=8, how=how)
  np.testing.assert_array_equal(got, want)


@ORIGINS
def test_one_pixel_and_needles(how):
  one = np.full((1, 1, 3), 77, np.uint8)
  np.testing.assert_allclose(preprocess([one], size=8, how=how), 77 / 127.5 - 1, atol=0.01)
  needle = np.full((1, 3000, 3), 200, np.uint8)
  np.testing.assert_allclose(preprocess([needle], size=8, how=how), 200 / 127.5 - 1, atol=0.01)


def bomb():
  """A PNG of a few bytes that says it has 60000x60000 pixels."""

  def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_damaged_files_are_named(tmp_path, monkeypatch):
  whole = io.BytesIO()
  picture(size=(64, 64)).save(whole, "jpeg")
  dds = io.BytesIO()
  picture(size=(64, 64)).save(dds, "dds")
  png = io.BytesIO()
  picture(size=(64, 64)).save(png, "png")
  files = {
    "torn.jpg": whole.getvalue()[:-400],
    "torn.png": png.getvalue()[:200],
    "flipped.png": png.getvalue()[:60] + b"\xff" * 8 + png.getvalue()[68:],
    # Of a pixel format with a name, which is none.
    "unknown.dds": dds.getvalue()[:80] + (4).to_bytes(4, "little") + dds.getvalue()[84:],
    "text.png": b"not an image",
    "empty.png": b"",
    "bomb.png": bomb(),
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"image 1 \(.*{name}\) cannot be read: "):
      preprocess([picture(), tmp_path / name], size=8)
  for missing in (tmp_path / "no.png", tmp_path, "https://example.com/x.png"):
    with pytest.raises(UserError, match="image 0 .* cannot be read"):
      preprocess([missing], size=8)
  torn = Image.open(io.BytesIO(files["torn.jpg"]))  # Found out only when its pixels are read.
  with pytest.raises(UserError, match="image 0 cannot be read: .*truncated"):
    preprocess([torn], size=8)
  monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
  with pytest.raises(UserError, match="image 0 has 64x64 pixels: more than 100"):
    preprocess([picture(size=(64, 64))], size=8)


def test_settings_that_no_origin_has():
  for settings in ({"origin": "big_vision", "resample": "bicubic"}, {"antialias": False}):
    with pytest.raises(ValueError, match="big_vision"):
      Pixels(**settings)
