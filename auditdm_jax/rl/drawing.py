# SPDX-License-Identifier: Apache-2.0
"""Step 4 of a rollout: the image service makes the images that the auditor asked for.

What it fails to make is the fault of the auditor, who wrote nonsense, or of the service: then the
sample is invalid, and nobody's fault.

With several processes, all know all samples, and each asks its image service for its share of the
images. Which image came, or why none did, is gathered once per step.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import time
from typing import Any, Protocol

import numpy as np

from auditdm_jax.core import runtime
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.strategy import SERVED, Strategy


class ImageFailure(Protocol):
  """Why there is no image; `fault` is "auditor" or "service"."""

  reason: Any
  message: str
  fault: str


class ImageResult(Protocol):
  """What the image service made: an image or a failure, and how it was brought to a size."""

  image: np.ndarray | None
  failure: ImageFailure | None
  fit: str


class ImageClient(Protocol):
  """The asking side of the image service; futures never raise."""

  def generate(
    self, prompt: str, *, seed: int, width: int, height: int
  ) -> concurrent.futures.Future: ...
  def edit(
    self, image: np.ndarray, instruction: str, *, seed: int
  ) -> concurrent.futures.Future: ...


class Drawing:
  """Has images made."""

  def __init__(self, client: ImageClient, *, keep: Callable[[np.ndarray], str], deadline_s: float):
    """Takes the image service.

    Args:
      client: the image service.
      keep: stores a made image and returns its id.
      deadline_s: seconds from a request to its image; what takes longer is invalid.
    """
    self._client, self._keep, self._deadline_s = client, keep, deadline_s

  def request(
    self, trajectory: Trajectory, strategy: Strategy, source: np.ndarray
  ) -> concurrent.futures.Future:
    """Hands the text of the first turn to the service; it is asked for its source's size."""
    text, seed = trajectory.fields[SERVED[strategy.makes]], trajectory.image_seed
    if strategy.makes == "edit":
      return self._client.edit(source, text, seed=seed)
    height, width = source.shape[:2]
    return self._client.generate(text, seed=seed, width=width, height=height)

  def until(self) -> float:
    """Returns the time.monotonic() at which an image that is requested now is too late."""
    return time.monotonic() + self._deadline_s

  def received(
    self,
    trajectories: Sequence[Trajectory],
    places: Sequence[int],
    futures: Sequence[concurrent.futures.Future],
    *,
    until: float,
  ) -> list[Trajectory]:
    """Waits for the images.

    Args:
      trajectories: all samples.
      places: indices of those that wait for an image.
      futures: the requests of this process's share of them.
      until: when an image is too late.

    Returns:
      The samples with the ids of their images, or with the reason why there is none.
    """
    result = list(trajectories)
    came = [self._outcome(future, until) for future in futures]
    for process, own in enumerate(runtime.gather(came)):
      for i, outcome in zip(runtime.mine(places, process), own, strict=True):
        result[i] = dataclasses.replace(result[i], **outcome)
    return result

  def _outcome(self, future: concurrent.futures.Future, until: float) -> dict[str, str]:
    """Waits for an image and stores it; returns the fields of the sample that change."""
    try:
      result = future.result(timeout=max(until - time.monotonic(), 0.0))
    except concurrent.futures.TimeoutError:
      future.cancel()
      return {"invalid": f"DEADLINE: no image after {self._deadline_s:g} s"}
    if result.failure is None:
      return {"image_id": self._keep(result.image), "fit": result.fit}
    why = f"{result.failure.reason.name}: {result.failure.message}"
    return {"malformed" if result.failure.fault == "auditor" else "invalid": why}
