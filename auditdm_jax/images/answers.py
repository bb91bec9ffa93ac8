# SPDX-License-Identifier: Apache-2.0
"""What becomes of a request: an image on the grid of its source, or a failure."""

import dataclasses

import numpy as np

from auditdm_jax.images import locality
from auditdm_jax.images.failures import NoImage
from auditdm_jax.images.fit import Fit
from auditdm_jax.images.requests import Edit


@dataclasses.dataclass(frozen=True)
class Timings:
  """Where the time of a request went, in seconds; compute is the whole batch's."""

  total_s: float
  queue_s: float
  compute_s: float
  batch_size: int
  cached: bool
  tries: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
  """An image or a failure, never both.

  Attributes:
    image: u8[H,W,3], read-only.
    request_id: the same id gives the same image again.
    timings: where the time went; only an image has them.
    model: Info.identity of what made it.
    truncated: the model saw only the beginning of the text.
    mask: bool[H,W] of a local edit: what was pasted into the source.
    fit: how the image was brought to a size that the service takes, such as "640x427>640x432 pad";
      "" = it went as it is.
  """

  image: np.ndarray | None
  failure: NoImage | None
  request_id: str
  timings: Timings | None = None
  model: str = ""
  truncated: bool = False
  mask: np.ndarray | None = None
  fit: str = ""


def on_source(
  request: Edit, result: ImageResult, *, sent: np.ndarray, fit: Fit, mask: np.ndarray | None
) -> ImageResult:
  """Returns the result of an edit on the source's grid.

  What lies outside of a mask, or of the changed region of a local edit, is as in the source.

  Args:
    request: what the caller wants.
    result: what came of it, an image of the service's size or a failure.
    sent: u8[H,W,3], the source as the service saw it.
    fit: how the source was brought to the service's size.
    mask: bool[H,W] of a sham, on the source's grid.
  """
  if result.image is None:
    return result
  image = fit.back(result.image)
  if mask is not None:
    image = locality.paste(request.image, image, mask)
  elif request.local:
    within = None
    if fit.scales:  # Which lost detail: what the edit changed shows before it is scaled back.
      within = fit.mask_back(locality.composite(sent, result.image)[1])
    image, mask = locality.composite(request.image, image, within=within)
  image.flags.writeable = False
  return dataclasses.replace(result, image=image, mask=mask, fit=fit.text)
