# SPDX-License-Identifier: Apache-2.0
"""RefCOCO boxes: `<loc>` tokens, boxes written as numbers, IoU and accuracy.

PaliGemma writes a box as `<locY1><locX1><locY2><locX2>` with round(share * 1023), and a mask as 16
`<seg>` tokens behind it. Boxes here are (ymin, xmin, ymax, xmax) in shares of the image.
Source: big_vision, evaluators/proj/paligemma/transfers/segmentation.py.
"""

from collections.abc import Callable, Sequence
import re

import numpy as np

from auditdm_jax.bench.scorers.rows import Item, Metric, Region, Scored, Values, ratio, row_of
from auditdm_jax.core.config import UserError

Box = tuple[float, float, float, float]
BoxReader = Callable[[str, Region], "Box | None"]

BINS = 1024
N_SEG, N_CODES = 16, 128
THRESHOLDS = (0.5, 0.75)

_LOC4 = re.compile(r"\s*" + r"<loc(\d{4})>" * 4)
_REGION = re.compile(r"<loc(\d{4})>" * 4 + r"((?:<seg\d{3}>){16})")
_SEG = re.compile(r"<seg(\d{3})>")
_PLAIN = r"(-?\d+(?:\.\d+)?)"
_LMMS_BOX = re.compile(r"\[\s*" + r",\s*".join([_PLAIN] * 4) + r"\s*\]")
_ANY = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_VLMK_BOX = re.compile(r"\[\s*" + r"(?:\s*,\s*|\s+)".join([f"({_ANY})"] * 4) + r"\s*\]")


def to_loc(box: Sequence[float]) -> str:
  """Returns the four tokens of a box; shares outside [0, 1] are moved to its ends.

  Source: big_vision rounds half to even, as numpy does.
  """
  bins = np.round(np.clip(np.asarray(box, np.float64), 0, 1) * (BINS - 1)).astype(int)
  return "".join(f"<loc{i:04d}>" for i in bins)


def from_loc(text: str) -> Box | None:
  """Returns the box at the start of a text such as `<loc0010>… cat`, None if there is no box.

  Tokens above 1023 and boxes without a positive area are no boxes.
  """
  match = _LOC4.match(text)
  return _box_of_bins([int(x) for x in match.groups()]) if match else None


def from_loc_and_seg(text: str) -> tuple[Box, tuple[int, ...]] | None:
  """Returns the box and its 16 mask codes by big_vision's rule: 20 tokens at the very start."""
  match = _REGION.match(text)
  if match is None:
    return None
  box = _box_of_bins([int(x) for x in match.groups()[:4]])
  codes = tuple(int(x) for x in _SEG.findall(match[5]))
  return (box, codes) if box is not None and max(codes) < N_CODES else None


def _box_of_bins(bins: Sequence[int]) -> Box | None:
  y1, x1, y2, x2 = bins
  if max(bins) >= BINS or y2 <= y1 or x2 <= x1:
    return None
  top = BINS - 1
  return y1 / top, x1 / top, y2 / top, x2 / top


def iou(a: Box, b: Box) -> float:
  """Intersection over union; 0 for two boxes without an area."""
  both = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
  union = _area(a) + _area(b) - both
  return both / union if union > 0 else 0.0


def _area(box: Box) -> float:
  return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def read_loc(text: str, region: Region) -> Box | None:
  """Ours, for the outputs of "detect …": the first four `<loc>` tokens."""
  del region
  return from_loc(text)


def read_loc_and_seg(text: str, region: Region) -> Box | None:
  """big_vision's: a box without its mask is no box."""
  del region
  found = from_loc_and_seg(text)
  return found[0] if found else None


def read_brackets(text: str, region: Region) -> Box | None:
  """lmms-eval's: the first [x1, y1, x2, y2] with a digit before each period, as it is."""
  del region
  match = _LMMS_BOX.search(text)
  if match is None:
    return None
  x1, y1, x2, y2 = (float(x) for x in match.groups())
  return y1, x1, y2, x2


def read_any_numbers(text: str, region: Region) -> Box | None:
  """VLMEvalKit's: a bracketed box, else the first four numbers, in shares, 1/1000 or pixels.

  Source: VLMEvalKit, dataset/refcoco.py. Corners are clipped to the image and put in order.
  """
  match = _VLMK_BOX.search(text)
  numbers = match.groups() if match else re.findall(_ANY, text)[:4]
  if len(numbers) < 4:
    return None
  box, size = np.asarray(numbers, np.float64), np.asarray([region.width, region.height] * 2)
  largest = np.abs(box).max()
  if largest > 1.5:
    box = box / (1000 if largest <= 1000 else size)
  x1, y1, x2, y2 = (float(x) for x in np.clip(box, 0, 1))
  return min(y1, y2), min(x1, x2), max(y1, y2), max(x1, x2)


def lmms_iou(truth: Box, said: Box) -> float:
  """IoU as lmms-eval has it: areas keep their signs, so inverted corners take from the union."""
  both = _area(
    (max(truth[0], said[0]), max(truth[1], said[1]), min(truth[2], said[2]), min(truth[3], said[3]))
  )
  union = _signed_area(truth) + _signed_area(said) - both
  return both / union if union else 0.0


def _signed_area(box: Box) -> float:
  return (box[2] - box[0]) * (box[3] - box[1])


def _has_center(truth: Box, said: Box) -> bool:
  y, x = (said[0] + said[2]) / 2, (said[1] + said[3]) / 2
  return truth[0] <= y <= truth[2] and truth[1] <= x <= truth[3]


def region_of(item: Item) -> Region:
  if item.region is None:
    raise UserError(f"{item.key}: a referring expression needs its box; the item has no region")
  return item.region


def referring_boxes(
  reader: BoxReader,
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  overlap: Callable[[Box, Box], float] = iou,
) -> Metric:
  """Makes the box metric: the share of boxes with at least each IoU, the mean IoU, and "center".

  The last is the share of boxes whose centre lies in the true box, lmms-eval's Center_ACC.

  A prediction without a readable box has IoU 0 and is counted as invalid.

  Args:
    reader: (text, region) -> box, or None.
    thresholds: the first is the primary value, "acc@0.5".
    overlap: (truth, prediction) -> IoU.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    rows = []
    for item in items:
      region = region_of(item)
      box = reader(item.prediction, region)
      share = overlap(region.box, box) if box is not None else 0.0
      centered = float(box is not None and _has_center(region.box, box))
      hit = thresholds[0] <= share
      rows.append(row_of(item, hit, invalid=box is None, iou=share, centered=centered))
    return rows

  def reduction(rows: Sequence[Scored], weights: np.ndarray) -> Values:
    shares = np.asarray([row.parts["iou"] for row in rows])
    total = weights.sum(1)
    hits = {f"acc@{t:g}": ratio(weights @ (t <= shares), total) for t in thresholds}
    centered = np.asarray([row.parts["centered"] for row in rows])
    return hits | {
      "iou": ratio(weights @ shares, total),
      "center": ratio(weights @ centered, total),
    }

  return Metric(score=score, reduction=reduction)
