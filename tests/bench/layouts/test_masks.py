# SPDX-License-Identifier: Apache-2.0
"""Outlines of COCO to masks, as pycocotools 2.0.11 makes them."""

import hashlib

import numpy as np
import pytest

from auditdm_jax.bench.layouts import masks
from auditdm_jax.core.config import UserError


def polygons(rng, height, width):
  """Corners to hundredths, some outside of the picture, some edges crossing."""
  count = int(rng.integers(1, 3))
  ends = [max(height, width) + 5] * count
  return [rng.uniform(-5, x, (int(rng.integers(3, 14)), 2)).round(2).ravel().tolist() for x in ends]


def drawn(seed, count):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    height, width = (int(x) for x in rng.integers(5, 200, 2))
    yield polygons(rng, height, width), height, width


def test_a_thousand_outlines_are_those_of_pycocotools():
  # The hash of the masks that pycocotools.mask.decode(merge(frPyObjects(...))) gave.
  seen = hashlib.sha256()
  for outline, height, width in drawn(0, 1000):
    seen.update(np.packbits(masks.decode(outline, height, width)).tobytes())
  assert seen.hexdigest() == GOLDEN


@pytest.mark.filterwarnings("ignore:__array__")
def test_against_pycocotools_where_it_is_installed():
  theirs = pytest.importorskip("pycocotools.mask")
  for outline, height, width in drawn(1, 200):
    rle = theirs.merge(theirs.frPyObjects(outline, height, width))
    want = theirs.decode(rle).astype(bool)
    np.testing.assert_array_equal(masks.decode(outline, height, width), want)
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    np.testing.assert_array_equal(masks.decode(text, height, width), want)


def test_a_compressed_text_is_its_run_lengths():
  # The text is pycocotools.mask.frPyObjects({"size": [40, 50], "counts": counts}, 40, 50)'s.
  counts = [3, 400, 5, 1, 70, 2, 1519]
  found = [masks.decode({"size": [40, 50], "counts": x}, 40, 50) for x in (counts, "3`<5aCQ21Y]1")]
  np.testing.assert_array_equal(*found)
  mask = found[0]
  assert mask.shape == (40, 50) and mask.sum() == 403
  assert mask[3, 0] and not mask[2, 0] and mask[:, 1:10].all()


@pytest.mark.parametrize(
  ("outline", "message"),
  [
    ({"size": [4, 5], "counts": [3, 4]}, "add up to 7 pixels"),
    ({"size": [5, 4], "counts": [20]}, r"size \[5, 4\] of a picture of 4x5"),
    ({"size": [4, 5], "counts": "é"}, "no outline"),
    ({"size": [4, 5], "counts": "P"}, "cut off"),
    ({"counts": [20]}, "size"),
    ([[1.0, 2.0, 3.0]], "reshape"),
    ([[1.0, 2.0, 1e30, 3.0, 4.0, 5.0]], "far outside"),
    ([[1.0, 2.0, float("nan"), 3.0, 4.0, 5.0]], "far outside"),
    ("polygon", "no outline"),
    (None, "no outline"),
  ],
)
def test_what_is_no_outline_is_named(outline, message):
  with pytest.raises(UserError, match=message) as error:
    masks.CocoMask(outline, 4, 5, "object 7").pixels()
  assert str(error.value).startswith("object 7: ")


GOLDEN = "fc2a5585c1a9079555e59a7bb3c92ca0667930a3200c3b87444ab82d98067ff6"
