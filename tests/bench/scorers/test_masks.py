# SPDX-License-Identifier: Apache-2.0
"""Masks against pycocotools, and mean IoU against numbers that can be counted by hand."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from auditdm_jax.bench.scorers import boxes, masks
from auditdm_jax.bench.scorers.rows import Item, Region
from auditdm_jax.core.config import UserError

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@hypothesis.given(MASKS)
def test_run_lengths_there_and_back(mask):
  height, width = mask.shape
  runs = masks.encode_rle(mask)
  np.testing.assert_array_equal(masks.decode_rle(runs, height=height, width=width), mask)
  text = masks.compress(runs)
  assert masks.decompress(text) == masks.decompress(text.encode()) == runs
  np.testing.assert_array_equal(masks.decode_rle(text, height=height, width=width), mask)


@hypothesis.given(st.lists(st.integers(0, 10**7), min_size=1))
def test_compressed_numbers_there_and_back(runs):
  assert masks.decompress(masks.compress(runs)) == runs


@pytest.mark.parametrize(
  ("counts", "message"),
  [
    ([3, 2], "add up to 5 pixels; the image has 2 x 3"),
    ([8, -2], "add up to 6"),
    ([], "add up to 0"),
    ("é", "the byte"),
    ("P", "cut off"),
  ],
)
def test_damaged_masks(counts, message):
  with pytest.raises(UserError, match=message):
    masks.decode_rle(counts, height=2, width=3)


def objects(n, seed):
  """Yields (height, width, polygons, mask) of random objects, some out of the image."""
  rng = np.random.default_rng(seed)
  for _ in range(n):
    height, width = (int(x) for x in rng.integers(1, 90, 2))
    polygons = []
    for _ in range(rng.integers(1, 4)):
      corners = rng.uniform(-0.1, 1.1, (rng.integers(3, 9), 2)) * (width, height)
      if rng.random() < 0.3:
        corners = np.round(corners * rng.choice((1, 2))) / 2
      polygons.append(corners.ravel().tolist())
    yield height, width, polygons, rng.random((height, width)) < rng.random()


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_thousand_objects_as_pycocotools():
  coco = pytest.importorskip("pycocotools.mask")
  for height, width, polygons, mask in objects(1000, seed=0):
    # Compressed run lengths of a random mask, both ways.
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert masks.compress(masks.encode_rle(mask)) == theirs["counts"].decode()
    ours = masks.decode_rle(theirs["counts"], height=height, width=width)
    np.testing.assert_array_equal(ours, coco.decode(theirs).astype(bool))
    # Polygons, and their box.
    drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    ours = masks.decode_polygons(polygons, height=height, width=width)
    np.testing.assert_array_equal(ours, drawn)
    if ours.any():
      x, y, w, h = coco.toBbox(coco.encode(np.asfortranarray(ours.astype(np.uint8))))
      scaled = np.asarray(masks.box_of(ours)) * [height, width, height, width]
      np.testing.assert_allclose(scaled, [y, x, y + h, x + w], atol=1e-9)


def test_a_square_polygon():
  drawn = masks.decode_polygons([[1, 0, 3, 0, 3, 2, 1, 2]], height=3, width=4)
  np.testing.assert_array_equal(drawn, [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
  assert masks.box_of(drawn) == (0, 0.25, 2 / 3, 0.75)
  assert masks.box_of(np.zeros((3, 4), bool)) == (0, 0, 0, 0)


def full(codes):
  return np.ones((len(codes), 64, 64), np.float32)


def left_half(codes):
  out = np.full((len(codes), 64, 64), -1, np.float32)
  out[:, :, :32] = 1
  return out


SEGS = "<seg000>" * 16
HALF = boxes.to_loc((0, 0, 0.5, 1)) + SEGS


def item(prediction, *, height=100, width=100):
  mask = np.zeros((height, width), bool)
  mask[: height // 2] = True
  region = Region(box=(0, 0, 0.5, 1), height=height, width=width, mask=mask)
  return Item(key=prediction, prediction=prediction, region=region)


@pytest.mark.parametrize(
  ("prediction", "decoder", "miou", "hit", "invalid"),
  [
    (HALF, full, 1.0, 1.0, 0),
    (HALF + " dog", full, 1.0, 1.0, 0),
    (HALF, left_half, 0.5, 1.0, 0),
    (" " + HALF, full, 0.0, 0.0, 1),
    (HALF.removesuffix("<seg000>"), full, 0.0, 0.0, 1),
    (HALF.replace("<seg000>", "<seg128>", 1), full, 0.0, 0.0, 1),
    (boxes.to_loc((0, 0, 1, 1)) + SEGS, full, 0.5, 1.0, 0),
    (boxes.to_loc((0.5, 0, 1, 1)) + SEGS, full, 0.0, 0.0, 0),
    ("<loc0000><loc0000><loc0001><loc1023>" + SEGS, full, 0.0, 0.0, 1),  # No whole pixel.
    ("", full, 0.0, 0.0, 1),
  ],
)
def test_referring_masks(prediction, decoder, miou, hit, invalid):
  metric = masks.referring_masks(decoder)
  values = metric.reduce(metric.score([item(prediction)]))
  assert list(values) == ["miou", "boxacc/0.5", "boxacc/0.75", "invalid"]
  assert values["miou"] == pytest.approx(miou, abs=0.011)  # 512 / 1023 of 100 pixels.
  assert (values["boxacc/0.5"], values["invalid"]) == (hit, invalid)


def test_many_masks_keep_their_order():
  metric = masks.referring_masks(full)
  rows = metric.score([item(HALF), item(""), item(HALF, height=50)])
  assert [row.score for row in rows] == [1.0, 0.0, 1.0]


def test_masks_are_needed():
  region = Region(box=(0, 0, 1, 1))
  with pytest.raises(UserError, match="needs the masks"):
    masks.referring_masks(full).score([Item(key="a", prediction=HALF, region=region)])
