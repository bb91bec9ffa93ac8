# SPDX-License-Identifier: Apache-2.0
"""Images as messages: lossless, and hostile bytes are refused before they become pixels."""

from concurrent import futures
import io
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.images import codec, stubs
from auditdm_jax.images.failures import NoImageReason, Refused

LIMIT = 1 << 20


def _noise(height=20, width=30):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _file(image, kind, **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def bomb_png(width=20_000, height=20_000):
  """A valid PNG of a few hundred kilobytes that stands for 1.2 GB."""

  def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  rows = zlib.compressobj(9)
  line = b"\0" + bytes(3 * width)
  data = b"".join(rows.compress(line) for _ in range(height // 50)) + rows.flush()
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _refused(message):
  with pytest.raises(Refused) as error:
    codec.decode(message, max_pixels=LIMIT)
  assert error.value.reason is NoImageReason.INVALID_REQUEST
  return error.value.message


@pytest.mark.parametrize("encoding", list(codec.LOSSLESS))
def test_answers_are_lossless(encoding):
  # Also where WebP would like to change the colour of what it thinks nobody sees.
  for image in (_noise(), np.zeros((5, 7, 3), np.uint8), _noise(1, 1)):
    message = codec.encode(image, encoding)
    back = codec.decode(message, max_pixels=LIMIT)
    np.testing.assert_array_equal(back, image)
    assert not back.flags.writeable


def test_a_jpeg_is_read():
  smooth = np.full((16, 16, 3), 90, np.uint8)
  data = _file(smooth, "JPEG", quality=95)
  message = stubs.Image(encoding=stubs.JPEG, width=16, height=16, data=data)
  assert np.abs(codec.decode(message, max_pixels=LIMIT).astype(int) - smooth).max() <= 3


def test_a_bomb_is_refused_before_it_is_decoded():
  data = bomb_png()
  honest = stubs.Image(encoding=stubs.PNG, width=20_000, height=20_000, data=data)
  lying = stubs.Image(encoding=stubs.PNG, width=64, height=64, data=data)
  tracemalloc.start()
  start = time.thread_time()
  assert "pixels" in _refused(honest)
  assert "bomb" in _refused(lying).lower() or "declared" in _refused(lying)
  assert time.thread_time() - start < 2.0
  assert tracemalloc.get_traced_memory()[1] < 8 << 20
  tracemalloc.stop()


def test_a_file_of_another_size_than_declared_is_refused():
  message = stubs.Image(encoding=stubs.PNG, width=64, height=64, data=_file(_noise(), "PNG"))
  assert "30x20" in _refused(message)


@pytest.mark.parametrize(
  "name, message",
  [
    ("no encoding", stubs.Image(width=2, height=2, data=bytes(12))),
    ("an unknown encoding", stubs.Image(encoding=77, width=2, height=2, data=bytes(12))),
    ("too few bytes", stubs.Image(encoding=stubs.RAW_RGB8, width=2, height=2, data=b"x")),
    ("no pixels", stubs.Image(encoding=stubs.RAW_RGB8)),
    ("huge and empty", stubs.Image(encoding=stubs.RAW_RGB8, width=2**31, height=2**31)),
    ("no PNG", stubs.Image(encoding=stubs.PNG, width=2, height=2, data=b"GIF89a")),
  ],
)
def test_malformed_bytes_are_refused(name, message):
  assert _refused(message), name


def test_another_format_than_declared_is_refused():
  data = _file(_noise(), "BMP")
  assert _refused(stubs.Image(encoding=stubs.PNG, width=30, height=20, data=data))


@pytest.mark.parametrize("cut", [10, 40, 200, -30])
def test_a_torn_file_is_refused(cut):
  data = _file(_noise(), "PNG")[:cut]
  assert _refused(stubs.Image(encoding=stubs.PNG, width=30, height=20, data=data))


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
  """One megabyte could take minutes: each scan is a pass over all pixels."""
  data = _file(np.zeros((512, 512), np.uint8), "JPEG", progressive=True)
  scan = b"\xff\xda"
  last, end = data.rfind(scan), len(data) - 2
  bomb = data[:end] + data[last:end] * (101 - data.count(scan)) + data[end:]
  few, many = (
    stubs.Image(encoding=stubs.JPEG, width=512, height=512, data=d) for d in (data, bomb)
  )
  assert codec.decode(few, max_pixels=LIMIT).shape == (512, 512, 3)
  assert "scans" in _refused(many)


def test_random_bytes_in_a_file_never_raise_anything_else():
  good = bytearray(_file(_noise(), "PNG"))
  rng = np.random.default_rng(1)
  for _ in range(200):
    data = bytearray(good)
    for place in rng.integers(0, len(data), 4):
      data[place] = rng.integers(256)
    message = stubs.Image(encoding=stubs.PNG, width=30, height=20, data=bytes(data))
    try:
      assert codec.decode(message, max_pixels=LIMIT).shape == (20, 30, 3)
    except Refused:
      pass


def test_animations_and_transparency_are_refused():
  frames = [Image.fromarray(_noise()), Image.fromarray(_noise()[::-1].copy())]
  file = io.BytesIO()
  frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
  message = stubs.Image(encoding=stubs.PNG, width=30, height=20, data=file.getvalue())
  assert "frames" in _refused(message)
  rgba = np.zeros((20, 30, 4), np.uint8)
  message = stubs.Image(encoding=stubs.PNG, width=30, height=20, data=_file(rgba, "PNG"))
  assert "RGBA" in _refused(message)
  palette = Image.fromarray(_noise()).convert("P")
  file = io.BytesIO()
  palette.save(file, "PNG", transparency=bytes(256))
  message = stubs.Image(encoding=stubs.PNG, width=30, height=20, data=file.getvalue())
  assert "transparency" in _refused(message)


def test_decoding_leaves_the_warnings_of_the_process_alone():
  """What is set for one thread is set for all; exits out of order would leave it set for good."""
  message = codec.encode(_noise(256, 256), stubs.WEBP_LOSSLESS)
  changed = []

  def decode(_):
    codec.decode(message, max_pixels=LIMIT)
    changed.append(warnings.filters != before)

  before = list(warnings.filters)
  with warnings.catch_warnings(), futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(decode, range(200)))
    assert not any(changed) and warnings.filters == before
