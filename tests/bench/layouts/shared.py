# SPDX-License-Identifier: Apache-2.0
"""What all layouts of a benchmark are made of, and what must come out of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.bench.layouts import fakes

# The picture's values; the last two questions are about one picture.
VALUES, IMAGES = (40, 80, 80), (42, 73, 73)
TEN = [["net"] * 9 + ["a net"], ["2"] * 10, ["no"] * 5 + ["yes"] * 5]
ASKED = ('What is it, "this"?', "How many\nsheep\tare there?", "Is 3.5 > 2?")

Expected = Sequence[Mapping[str, Any]]


OPTIONS = ("a", "the 2nd", "None")


BOX = (0.25, 0.125, 0.75, 0.625)  # ymin, xmin, ymax, xmax.


SENTENCES = ("left dog", "the white one", "dog on the left")


CAPTIONS = [("A dog.", "One dog runs."), ("Two sheep.",), ("No.", "Nothing\nhere.")]


def want_of(ids: Sequence[Any], **columns: Sequence[Any]) -> list[dict[str, Any]]:
  columns.setdefault("values", [[v] for v in VALUES[: len(ids)]])
  rows = zip(*columns.values(), strict=True)
  return [
    {"item_id": str(i), **dict(zip(columns, row, strict=True))}
    for i, row in zip(ids, rows, strict=True)
  ]


def outline() -> np.ndarray:
  mask = np.zeros((fakes.HEIGHT, fakes.WIDTH), bool)
  mask[0:3, 2:6] = True
  return mask


def grounded(ids: Sequence[Any]) -> Expected:
  return want_of(
    ids,
    question=SENTENCES,
    references=[()] * 3,
    image_key=list(map(str, IMAGES)),
    box=[BOX] * 3,
    mask=[outline()] * 3,
  )


def chosen(ids: Sequence[Any], **more: Sequence[Any]) -> Expected:
  said = [(x,) for x in OPTIONS]
  return want_of(
    ids, question=ASKED, options=[OPTIONS] * 3, answer=range(3), references=said, **more
  )
