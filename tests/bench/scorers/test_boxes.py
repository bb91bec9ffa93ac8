# SPDX-License-Identifier: Apache-2.0
"""Boxes as tokens and numbers; IoU against counted pixels."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from auditdm_jax.bench.scorers import boxes, table
from auditdm_jax.bench.scorers.rows import Item, Region, Variant
from auditdm_jax.core.config import UserError

BINS = st.lists(st.integers(0, 1023), min_size=2, max_size=2, unique=True).map(sorted)


@hypothesis.given(BINS, BINS)
def test_tokens_there_and_back(ys, xs):
  bins = (ys[0], xs[0], ys[1], xs[1])
  text = "".join(f"<loc{i:04d}>" for i in bins)
  assert boxes.from_loc(f" {text} a dog") == tuple(i / 1023 for i in bins)
  assert boxes.to_loc(boxes.from_loc(text)) == text


@hypothesis.given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_tokens_are_off_by_half_a_bin_at_most(box):
  bins = [int(x[:4]) for x in boxes.to_loc(box).split("<loc")[1:]]
  assert np.abs(np.asarray(bins) / 1023 - box).max() <= 0.5 / 1023 + 1e-12


@pytest.mark.parametrize(
  "text",
  [
    "",
    "dog",
    "a dog <loc0000><loc0000><loc0512><loc1023>",
    "<loc0000><loc0000><loc0512>",
    "<loc0000><loc0000><loc0512><loc1024>",
    "<loc0512><loc0000><loc0512><loc1023>",  # No height.
    "<loc0000><loc0512><loc0512><loc0511>",
    "<loc000><loc0000><loc0512><loc1023>",
  ],
)
def test_what_is_no_box(text):
  assert boxes.from_loc(text) is None


def test_values_out_of_the_image_go_to_its_ends():
  assert boxes.to_loc((-0.2, 0, 1.2, 1)) == "<loc0000><loc0000><loc1023><loc1023>"
  assert boxes.to_loc((0.5 / 1023, 1.5 / 1023, 1, 1))[:18] == "<loc0000><loc0002>"  # To even.


CORNER = st.integers(0, 12)
PIXELS = st.tuples(CORNER, CORNER, CORNER, CORNER)


@hypothesis.given(PIXELS, PIXELS)
def test_iou_counts_pixels(a, b):
  def draw(box):
    y1, x1, y2, x2 = box
    drawn = np.zeros((12, 12), bool)
    drawn[y1:y2, x1:x2] = True
    return drawn

  both, union = (draw(a) & draw(b)).sum(), (draw(a) | draw(b)).sum()
  expected = both / union if union else 0.0
  assert boxes.iou(a, b) == boxes.iou(b, a) == pytest.approx(expected)


TRUTH = Region(box=(0, 0, 0.5, 1), height=480, width=640)  # x1 y1 x2 y2: 0 0 1 .5


@pytest.mark.parametrize(
  ("prediction", "lmms", "vlmk"),
  [
    ("[0.0, 0.0, 1.0, 0.5]", 1, 1),
    ("[0, 0, 1000, 500]", 0, 1),  # Per mille.
    ("[0, 0, 1280, 480]", 0, 0.5),  # Pixels, clipped.
    ("[1.0, 0.5, 0, 0]", 0, 1),  # Corners in another order.
    ("(0, 0, 1, .5)", 0, 1),
    ("[0, 0, 1, .5]", 0, 1),
    ("0 0 1 0.5", 0, 1),
    ("[0, 0, 1]", 0, 0),
    ("a dog", 0, 0),
  ],
)
def test_boxes_as_numbers(prediction, lmms, vlmk):
  item = Item(key="a", prediction=prediction, region=TRUTH)
  for variant, expected in ((Variant.LMMS_EVAL, lmms), (Variant.VLMEVALKIT, vlmk)):
    metric = table.metric("box_accuracy", variant)
    assert metric.reduce(metric.score([item]))["iou"] == pytest.approx(expected, abs=1e-3)


def test_detections_need_no_mask_in_our_variant():
  text = boxes.to_loc(TRUTH.box) + " dog"
  items = [
    Item(key="hit", prediction=text, region=TRUTH),
    Item(key="miss", prediction=boxes.to_loc((0.5, 0, 1, 1)), region=TRUTH),
    Item(key="unread", prediction="no dog", region=TRUTH),
  ]
  ours, theirs = (table.metric("box_accuracy", x) for x in (Variant.OURS, Variant.BIG_VISION))
  values = ours.reduce(ours.score(items))
  assert values["acc@0.5"] == values["acc@0.75"] == pytest.approx(1 / 3)
  assert values["center"] == pytest.approx(1 / 3) and values["invalid"] == 1
  assert theirs.reduce(theirs.score(items))["acc@0.5"] == 0.0


def test_a_box_at_the_threshold_counts():
  half = boxes.referring_boxes(boxes.read_brackets)
  item = Item(key="a", prediction="[0, 0, 1, 0.25]", region=TRUTH)
  assert half.reduce(half.score([item]))["acc@0.5"] == 1.0


def test_shares_are_1023rds():
  truth = (0.0, 0.0, 341 / 1023, 1.0)
  assert boxes.iou(truth, boxes.from_loc(boxes.to_loc(truth))) == 1.0
  assert boxes.iou(truth, (0.0, 0.0, 341 / 1024, 1023 / 1024)) < 1.0


def test_an_item_needs_its_region():
  with pytest.raises(UserError, match="a referring expression needs its box"):
    table.metric("box_accuracy", Variant.OURS).score([Item(key="a", prediction="x")])
