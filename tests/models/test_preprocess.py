# SPDX-License-Identifier: Apache-2.0
"""Images of every kind to pixels in [-1, 1]."""

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.models.preprocess import preprocess

RNG = np.random.default_rng(0)


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
  rgba = np.concatenate([rgb, np.full((8, 8, 1), 3, np.uint8)], axis=2)
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
  ],
)
def test_what_is_not_an_image_is_refused(image, message):
  with pytest.raises(ValueError, match=message):
    preprocess([np.zeros((8, 8, 3), np.uint8), image], size=8)


def test_no_images():
  assert preprocess([], size=8).shape == (0, 8, 8, 3)
