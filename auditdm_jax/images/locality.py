# SPDX-License-Identifier: Apache-2.0
"""Edits that change nothing elsewhere, by construction, and the control for the pasting itself.

Whole-frame editors re-render every pixel. Of such an edit only the region that changed is pasted
into the source; the sham pastes the same region of the source merely encoded and decoded, so that
an answer that flips on the sham as well owes nothing to the edit.
"""

import numpy as np
from scipy import ndimage


def composite(
  source: np.ndarray,
  edited: np.ndarray,
  *,
  within: np.ndarray | None = None,
  threshold: int = 24,
  grow: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """I' = M·edited + (1 − M)·source, M = where the edit changed the source.

  Args:
    source: u8[H,W,3].
    edited: u8[H,W,3] on the same grid.
    within: bool[H,W], where M is looked for; None = everywhere. Of an image that was scaled for
      its editor it is what changed there: elsewhere only scaling did.
    threshold: grey levels, largest channel difference that still counts as unchanged.
    grow: pixels by which the mask is widened, once specks of a pixel are gone; 0 = the mask as it
      is. None = one for 256 of the shorter side: in a drawing of 64 a stroke is no wider than a
      speck.

  Returns:
    (u8[H,W,3], bool[H,W]).
  """
  if source.shape != edited.shape:
    raise ValueError(f"edit changed the grid: {source.shape} became {edited.shape}")
  if within is not None:
    edited = paste(source, edited, within)
  # In 8 bits: of 12 megapixels, wider numbers would take 300 MB.
  delta = np.maximum(source, edited) - np.minimum(source, edited)
  mask = delta.max(axis=-1) > threshold
  if grow is None:
    grow = round(min(mask.shape) / 256)
  if grow:
    mask = ndimage.binary_opening(mask, iterations=1)
    mask = ndimage.binary_dilation(mask, iterations=grow + 1)
  return paste(source, edited, mask), mask


def paste(source: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns u8[H,W,3]: `other` where bool[H,W] says so, the source elsewhere."""
  return np.where(mask[..., None], other, source)
