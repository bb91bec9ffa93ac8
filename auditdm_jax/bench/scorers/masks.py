# SPDX-License-Identifier: Apache-2.0
"""Masks: COCO's run-length encoding and polygons, and the mean IoU of RefCOCO segmentations.

Run lengths alternate between 0 and 1, begin with 0, and go down the columns. The compressed string
holds 5 bits per character, offset by 48, lowest first; bit 6 says that more follow, and from the
fourth length on a difference to the length two before is stored.
Source: cocodataset/cocoapi, common/maskApi.c.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from auditdm_jax.bench.scorers import boxes
from auditdm_jax.bench.scorers.rows import Item, Metric, Region, Scored, Values, ratio, row_of
from auditdm_jax.core.config import UserError

MaskDecoder = Callable[[np.ndarray], np.ndarray]

_GRID = 5  # Steps per pixel.
_OFFSET, _MORE, _SIGN, _BITS = 48, 0x20, 0x10, 0x1F


def decode_rle(counts: str | bytes | Sequence[int], *, height: int, width: int) -> np.ndarray:
  """Returns bool[height, width] of run lengths or of their compressed string.

  Raises:
    UserError: the lengths do not fill the image.
  """
  runs = decompress(counts) if isinstance(counts, str | bytes) else [int(x) for x in counts]
  if min(runs, default=0) < 0 or sum(runs) != height * width:
    raise UserError(
      f"a mask's run lengths add up to {sum(runs)} pixels; the image has {height} x {width}"
    )
  values = np.arange(len(runs)) % 2 == 1
  return np.repeat(values, runs).reshape(width, height).T


def encode_rle(mask: np.ndarray) -> list[int]:
  """Returns the run lengths of bool[H, W]."""
  flat = np.asarray(mask, bool).T.ravel()
  edges = np.flatnonzero(np.diff(flat)) + 1
  runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist() if flat.size else []
  return [0, *runs] if flat.size and flat[0] else runs


def decompress(text: str | bytes) -> list[int]:
  """Run lengths of a compressed string.

  Raises:
    UserError: the string is cut off or has a character that the format does not.
  """
  data = text.encode("utf-8") if isinstance(text, str) else text
  runs: list[int] = []
  value = shift = 0
  for byte in data:
    chunk = byte - _OFFSET
    if not 0 <= chunk < 64 or shift > 60:
      raise UserError(f"a mask's compressed run lengths have the byte {byte}, which COCO never has")
    value |= (chunk & _BITS) << shift
    shift += 5
    if not chunk & _MORE:
      if chunk & _SIGN:
        value -= 1 << shift
      runs.append(value + runs[-2] if len(runs) > 2 else value)
      value = shift = 0
  if shift:
    raise UserError("a mask's compressed run lengths are cut off")
  return runs


def compress(runs: Sequence[int]) -> str:
  """The compressed string of run lengths."""
  out = []
  for i, run in enumerate(runs):
    value = run - runs[i - 2] if i > 2 else run
    more = True
    while more:
      chunk, value = value & _BITS, value >> 5
      more = value != (-1 if chunk & _SIGN else 0)
      out.append(chr(chunk + (_MORE if more else 0) + _OFFSET))
  return "".join(out)


def decode_polygons(polygons: Sequence[Sequence[float]], *, height: int, width: int) -> np.ndarray:
  """Returns bool[height, width], the union of polygons x0, y0, x1, y1, … in pixels.

  As in COCO, each boundary is walked on a grid of 1/5 pixel. The inside begins or ends where the
  boundary crosses the middle of a column, so a pixel below an odd number of crossings is inside.
  """
  inside = np.zeros(height * width, bool)
  for polygon in polygons:
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    places = _crossings(points, height=height, width=width)
    count = np.bincount(places, minlength=height * width + 1)[: height * width]
    inside |= np.cumsum(count) % 2 == 1
  return inside.reshape(width, height).T


def _crossings(points: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """i64[C], places in column-major order at which the boundary f64[P, 2] toggles the inside."""
  corners = np.trunc(_GRID * points + 0.5).astype(np.int64)
  walk = np.concatenate([_walk(a, b) for a, b in zip(corners, np.roll(corners, -1, axis=0))])
  (x0, y0), (x1, y1) = walk[:-1].T, walk[1:].T
  column = (np.where(x1 < x0, x1, x1 - 1) + 0.5) / _GRID - 0.5
  row = np.ceil(np.clip((np.minimum(y0, y1) + 0.5) / _GRID - 0.5, 0, height))
  hits = (x0 != x1) & (np.floor(column) == column) & (0 <= column) & (column <= width - 1)
  return (column[hits] * height + row[hits]).astype(np.int64)


def _walk(start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """i64[S, 2], the grid points from start to end, one per step of the longer side.

  A line is always rounded from its lower end, so that both directions meet the same points.
  """
  longer = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
  backwards = start[longer] > end[longer]
  low, high = (end, start) if backwards else (start, end)
  steps = np.arange(high[longer] - low[longer] + 1)
  slope = (high[1 - longer] - low[1 - longer]) / max(steps[-1], 1)
  points = np.empty((len(steps), 2), np.int64)
  points[:, longer] = low[longer] + steps
  points[:, 1 - longer] = np.trunc(low[1 - longer] + slope * steps + 0.5)
  return points[::-1] if backwards else points


def box_of(mask: np.ndarray) -> boxes.Box:
  """The smallest box around bool[H, W], in shares; zeros for an empty mask."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    return 0.0, 0.0, 0.0, 0.0
  height, width = mask.shape
  return (
    rows[0] / height,
    columns[0] / width,
    (rows[-1] + 1) / height,
    (columns[-1] + 1) / width,
  )


def referring_masks(
  decoder: MaskDecoder, *, thresholds: Sequence[float] = boxes.THRESHOLDS
) -> Metric:
  """Makes big_vision's RefCOCO metric: mean IoU of masks in the image's resolution.

  An output that is not 4 `<loc>` and 16 `<seg>` tokens has IoU 0 for the mask and the box, and so
  has the mask of a box that vanishes in whole pixels; both count as invalid. Values are "miou",
  "boxacc/0.5", "boxacc/0.75".

  Args:
    decoder: i32[B, 16] codes -> f32[B, 64, 64] in [-1, 1]; see `seg_vae.load`.
    thresholds: IoU of boxes that count.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    found = [boxes.from_loc_and_seg(item.prediction) for item in items]
    codes = np.asarray([x[1] if x else (0,) * boxes.N_SEG for x in found], np.int32)
    small = decoder(codes.reshape(-1, boxes.N_SEG)) if any(found) else np.zeros((len(items), 1, 1))
    return [
      _row(item, parsed[0] if parsed else None, mask)
      for item, parsed, mask in zip(items, found, small)
    ]

  def reduction(rows: Sequence[Scored], weights: np.ndarray) -> Values:
    total = weights.sum(1)
    shares = np.asarray([row.parts["box_iou"] for row in rows])
    values = {"miou": ratio(weights @ np.asarray([row.score for row in rows]), total)}
    hits = {f"boxacc/{t:g}": ratio(weights @ (t <= shares), total) for t in thresholds}
    return values | hits

  return Metric(score=score, reduction=reduction)


def _row(item: Item, box: boxes.Box | None, small: np.ndarray) -> Scored:
  region = boxes.region_of(item)
  share = None if box is None else mask_iou(region, box, small)
  box_iou = 0.0 if box is None else boxes.iou(region.box, box)
  return row_of(item, share or 0.0, invalid=share is None, box_iou=box_iou)


def mask_iou(region: Region, box: boxes.Box, small: np.ndarray) -> float | None:
  """IoU of the region's mask and of f32[64, 64] pasted into a box; None if the box vanishes."""
  truth = region.mask
  if truth is None:
    raise UserError("mean IoU needs the masks of the objects; score boxes without them")
  height, width = truth.shape
  y1, x1, y2, x2 = (int(x * side) for x, side in zip(box, (height, width, height, width)))
  if y2 <= y1 or x2 <= x1:
    return None
  pasted = Image.fromarray(np.asarray(small, np.float32))
  said = np.asarray(pasted.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)) > 0
  both = int((truth[y1:y2, x1:x2] & said).sum())
  union = int(truth.sum()) + int(said.sum()) - both
  return both / union if union else 0.0
