# SPDX-License-Identifier: Apache-2.0
"""Every size comes to one that the server takes, keeps its aspect, and comes back."""

import dataclasses
import math

import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.images import fit as fit_lib
from auditdm_jax.images import validate
from auditdm_jax.images.backend import MAX_PIXELS, Info
from auditdm_jax.images.config import Limits
from auditdm_jax.images.failures import NoImageReason, Refused
from auditdm_jax.images.requests import Edit

FLUX = Info("flux", multiple=16, max_pixels=1 << 20)
SCENES = Info("scenes", sizes=((64, 64),), exact=True)
PHOTOS = ((64, 43), (50, 37), (640, 427), (640, 426), (500, 375), (333, 500), (612, 612))
OFF = (*PHOTOS, (1, 1), (1080, 1080), (1920, 1088), (4032, 3024), (3024, 4032), (9000, 20))


def _image(width, height, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _smooth(width, height):
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / 9 + k) + np.cos(y / (7 + k)) for k in range(3)]
  return (127 + 60 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8)


def _random_info(rng) -> tuple[Info, Limits]:
  """A backend and the limits of its server."""
  multiple = int(rng.choice([1, 2, 8, 16, 32]))
  sizes = tuple(
    (int(w) * multiple, int(h) * multiple) for w, h in rng.integers(1, 60, (rng.integers(0, 4), 2))
  )
  limits = Limits(
    max_pixels=int(rng.integers(1 << 16, 1 << 21)),
    min_side=int(rng.integers(1, 200)),
    max_side=int(rng.integers(400, 4000)),
    max_cost=int(rng.integers(1 << 20, 1 << 24)),
  )
  return Info("m", multiple=multiple, sizes=sizes, steps=int(rng.integers(0, 30))), limits


def test_the_server_takes_every_size_that_is_fitted():
  """Two parts that must agree, on random backends, limits and images."""
  rng, fitted = np.random.default_rng(0), 0
  for _ in range(400):
    info, limits = _random_info(rng)
    taken = validate.taken_sizes(info, limits)
    source = tuple(int(2**x) for x in rng.uniform(0, 12, 2))
    try:
      fit = fit_lib.fit(taken, source)
    except Refused as refused:
      assert "takes no size at all" in refused.message
      for size in info.sizes or ((16, 16),):
        with pytest.raises(Refused):
          validate._check_size(*size, info.steps, limits, info)
      continue
    fitted += 1
    validate._check_size(*fit.size, info.steps, limits, info)
    assert all(a <= b for a, b in zip(fit.scaled, fit.size))
    # The aspect is that of whole pixels that are nearest.
    scale = max(fit.scaled) / max(source)
    assert min(fit.scaled) == max(round(min(source) * scale), 1) or info.sizes
  assert fitted > 200


def test_what_is_taken_is_left_alone():
  for size in ((64, 64), (16, 16), (640, 480), (1024, 1024)):
    fit, image = fit_lib.fit(FLUX, size), _image(*size)
    assert fit.there(image) is image and fit.back(image) is image
    assert (fit.text, fit.drawn) == ("", "")


@pytest.mark.parametrize("size", PHOTOS)
def test_a_photograph_is_padded_with_its_last_pixels_and_cut_back(size):
  fit, image = fit_lib.fit(FLUX, size), _image(*size)
  there = fit.there(image)
  (width, height), (wide, high) = size, fit.size
  assert there.shape == (high, wide, 3) and (wide % 16, high % 16) == (0, 0)
  assert 0 <= wide - width < 16 and 0 <= high - height < 16
  np.testing.assert_array_equal(fit.back(there), image)
  assert (there[:, width:] == there[:, width - 1 : width]).all()
  assert (there[height:] == there[height - 1 : height]).all()


def test_a_record_says_what_was_done():
  said = {size: fit_lib.fit(FLUX, size).text for size in OFF}
  assert said[640, 427] == "640x427>640x432 pad"
  assert said[1, 1] == "1x1>16x16 pad"
  assert said[1080, 1080] == "1080x1080>1024x1024 scale"
  assert said[4032, 3024] == "4032x3024>1184x880 scale+pad"
  assert fit_lib.fit(FLUX, (640, 427)).drawn == "640x427>640x432 drawn"


def test_what_is_too_large_is_scaled_no_further_than_it_must_be():
  for size in ((1080, 1080), (1920, 1088), (4032, 3024), (12_000, 9_000)):
    fit = fit_lib.fit(FLUX, size)
    area = math.prod(fit.size)
    assert 0.95 * 2**20 < area <= 2**20
    long, short = max(fit.scaled), min(fit.scaled)
    assert abs(short - long * min(size) / max(size)) <= 0.5


def test_what_is_too_small_is_scaled_up_and_a_line_stays_a_line():
  info = dataclasses.replace(FLUX, min_side=256, max_side=2048)
  assert fit_lib.fit(info, (50, 37)).text == "50x37>352x256 scale+pad"
  assert fit_lib.fit(info, (1, 1)).text == "1x1>256x256 scale"
  assert fit_lib.fit(info, (640, 427)).text == "640x427>640x432 pad"
  line = fit_lib.fit(info, (9000, 20))  # No scale has both sides in bounds.
  assert (line.scaled, line.size) == ((2048, 5), (2048, 256))


@pytest.mark.parametrize("size", [(1080, 1080), (1333, 2000), (50, 37)])
def test_an_image_without_detail_survives_being_scaled(size):
  info = dataclasses.replace(FLUX, min_side=256)
  fit, image = fit_lib.fit(info, size), _smooth(*size)
  assert fit.scales
  worst = np.abs(fit.back(fit.there(image)).astype(int) - image).max()
  assert fit.back(fit.there(image)).shape == image.shape and worst <= 8


def test_of_fixed_sizes_the_one_that_is_filled_best():
  info = Info("gpt", sizes=((1024, 1024), (1536, 1024), (1024, 1536)))
  assert fit_lib.fit(info, (640, 427)).text == "640x427>1536x1024 scale+pad"
  assert fit_lib.fit(info, (333, 500)).size == (1024, 1536)
  assert fit_lib.fit(info, (612, 612)).text == "612x612>1024x1024 scale"
  two = Info("dall", sizes=((256, 256), (512, 512), (1024, 1024)))
  assert fit_lib.fit(two, (400, 400)).size == (512, 512)  # Detail before thrift.
  assert fit_lib.fit(two, (4000, 4000)).size == (1024, 1024)


@pytest.mark.parametrize("size", [(50, 37), (640, 427), (1920, 1088)])
def test_a_region_comes_back_where_it_is(size):
  fit = fit_lib.fit(dataclasses.replace(FLUX, min_side=64, max_pixels=1 << 17), size)
  (width, height), (wide, high) = size, fit.size
  mask = np.zeros((high, wide), bool)
  mask[high // 4 : high // 2, wide // 4 : wide // 2] = True
  back = fit.mask_back(mask)
  assert back.shape == (height, width)
  rows, columns = np.nonzero(back.any(1))[0], np.nonzero(back.any(0))[0]
  ratio = fit.source[0] / fit.scaled[0]
  for found, edge in (
    (rows[0], high // 4),
    (rows[-1] + 1, high // 2),
    (columns[0], wide // 4),
    (columns[-1] + 1, wide // 2),
  ):
    assert abs(found - edge * ratio) <= max(ratio, 1) + 1


def test_a_pool_that_can_never_be_asked_is_refused_in_one_line():
  with pytest.raises(UserError) as error:
    fit_lib.check(SCENES, iter([(60, 43), (640, 427)]))
  message = str(error.value)
  assert "none of 2 images" in message and "'scenes' takes images of 64x64 as they are" in message
  assert "60x43" in message and "\n" not in message
  fit_lib.check(SCENES, [(60, 43), (64, 64)])
  fit_lib.check(FLUX, OFF)
  fit_lib.check(SCENES, [])
  full = dataclasses.replace(FLUX, max_pixels=200)
  with pytest.raises(UserError, match="takes no size at all: multiples of 16"):
    fit_lib.check(full, [(64, 64)])


def test_a_pool_is_read_no_further_than_its_first_image_that_can_be_asked():
  seen = []
  fit_lib.check(FLUX, (seen.append(i) or (9, 9) for i in range(10**9)))
  assert seen == [0]
  endless = ((9, 9) for _ in iter(int, 1))
  with pytest.raises(UserError, match="none of 256 images"):
    fit_lib.check(SCENES, endless)


@pytest.mark.parametrize(
  "fields",
  [
    dict(multiple=0),
    dict(multiple=1 << 31),
    dict(min_side=1 << 31),
    dict(min_side=-1),
    dict(max_pixels=0, max_side=0),
    dict(sizes=((0, 0), (1 << 31, 1 << 31))),
    dict(max_pixels=1 << 60, max_side=1 << 60, multiple=1 << 14),
  ],
)
def test_whatever_a_service_says_no_memory_is_lent_to_it(fields):
  info = Info("m\n\x1b[31m" * 100, **fields)
  for size in ((1, 1), (640, 427), (1 << 20, 1 << 20)):
    try:
      fit = fit_lib.fit(info, size)
    except Refused as refused:
      assert refused.message.isprintable() and len(refused.message) < 600
    else:
      assert math.prod(fit.size) <= MAX_PIXELS


def test_an_image_without_pixels_is_refused():
  with pytest.raises(Refused, match="0x8 has no pixels") as error:
    fit_lib.fit(FLUX, (0, 8))
  assert error.value.reason is NoImageReason.INVALID_REQUEST


def test_requests_are_hashed_as_they_are_sent():
  """Two sources that the service sees alike share one image of it."""
  source = _image(640, 427)
  fit = fit_lib.fit(FLUX, (640, 427))
  request = Edit(source, "make it red", 3)
  padded = Edit(np.pad(source, ((0, 5), (0, 0), (0, 0)), mode="edge"), "make it red", 3)
  assert request.fitted(fit).request_id == padded.request_id != request.request_id
