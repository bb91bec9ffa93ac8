# SPDX-License-Identifier: Apache-2.0
"""How fast a fine-tuning is: tokens per second, the share of its time that it waits for input, MFU.

Steps run while the host goes on, so the host never starts more than one ahead of the devices. It
waits for input if the devices are idle when a batch arrives. The time is then counted from when it
asked for the batch, which is more than the devices were idle: the share is an upper bound.
"""

from collections.abc import Iterator
import time
from typing import Any

import jax

from auditdm_jax.core import machine
from auditdm_jax.models import flops, multimodal
from auditdm_jax.rectify.stream import Fed


class StepMeter:
  """Counts from one `rates` to the next."""

  def __init__(self, config: multimodal.VlmConfig, *, tower_passes: int, devices: int):
    """Takes the model and its work.

    Args:
      config: the model.
      tower_passes: of an image through the tower in a step: 0 of features, 1 of a frozen tower, 3
        of one that trains.
      devices: that share the step.
    """
    self._config, self._tower_passes = config, tower_passes
    peak = machine.peak_flops()
    self._peak = peak and peak * devices
    self._running: jax.Array | None = None  # The latest step, and the one before.
    self._before: jax.Array | None = None
    self._since: float | None = None
    self._seconds = self._waited = self._flops = self._tokens = 0.0

  def take(self, feed: Iterator[Fed]) -> Fed:
    """Returns the next batch, once the devices have at most one step to do."""
    asked = time.perf_counter()
    batch = next(feed)
    running: Any = self._running  # The stubs of jax have no `is_ready`.
    if running is None or running.is_ready():
      self._waited += time.perf_counter() - asked
    jax.block_until_ready(self._before)
    return batch

  def ran(self, result: jax.Array, fed: Fed) -> None:
    """Counts a step that was started; `result` is ready when it is done."""
    is_first = self._running is None
    self._before, self._running = self._running, result
    if is_first:  # It was compiled.
      self.pause()
      self.rates()
      return
    rows, config = len(fed.batch.tokens), self._config
    self._tokens += rows * fed.tokens
    work = flops.decoder(
      config.text, tokens=fed.tokens, context=fed.tokens, predictions=fed.targets
    )
    self._flops += rows * (3 * work + self._tower_passes * flops.tower(config.tower))

  def go_on(self) -> None:
    """Starts the clock, if it stands."""
    if self._since is None:
      self._since = time.perf_counter()

  def pause(self) -> None:
    """Stops the clock when all steps are done, for what is no step."""
    jax.block_until_ready(self._running)
    if self._since is not None:
      self._seconds += time.perf_counter() - self._since
      self._since = None

  def rates(self) -> dict[str, float]:
    """Returns what was counted, by name of the metric, and counts anew. The clock stands."""
    seconds = max(self._seconds, 1e-9)
    found = {
      "machine/waiting": self._waited / seconds,
      "machine/tokens_per_s": self._tokens / seconds,
    }
    if self._peak:
      found["machine/mfu"] = self._flops / seconds / self._peak
    self._seconds = self._waited = self._flops = self._tokens = 0.0
    return found
