# SPDX-License-Identifier: Apache-2.0
"""Pauses everything while nobody answers, so that an outage costs time and no question.

When a try fails and no other question has been answered since it began, or when it fails without a
word, either the question or the endpoint is at fault. A harmless question, the canary, decides it:

  canary answered at once   the endpoint is up: the try counts against the question
  not answered              nothing passes until it is; what failed meanwhile is tried anew, free

So one question with an error 500 costs its own tries and stops nobody, however few others there
are, and a server that is killed and comes back costs no question. A circuit breaker that counts
failures in a row does neither.
"""

import asyncio
from collections.abc import Awaitable, Callable
import logging

import numpy as np

from auditdm_jax.endpoints.failures import EndpointAbsent, EndpointDown, Fault

_FIRST_S, _MAX_S = 0.1, 5.0  # Between two canaries.
# For an endpoint that has never answered: it is more likely to be named wrongly than to be late.
_START_S = 30.0
_HERD_S = 0.2  # What has waited together starts spread over so many seconds.

Canary = Callable[[], Awaitable[Fault | None]]


class Throttle:
  """What all requests to one endpoint pass; belongs to one event loop.

  Attributes:
    pauses: how often everything was paused.
    paused_s: for how long in all.
  """

  def __init__(
    self,
    name: str,
    canary: Canary,
    *,
    outage_s: float,
    rng: np.random.Generator,
    known: bool = False,
  ):
    """Makes an open gate.

    Args:
      name: what the endpoint is called in messages.
      canary: asks a harmless question; returns None if it was answered.
      outage_s: how long to wait for an answer at most.
      rng: generator of the jitter.
      known: whether an earlier run was answered.
    """
    self._name, self._canary, self._outage_s, self._rng = name, canary, outage_s, rng
    self._known = known
    self._answered_at: float | None = None
    self._limited_since: float | None = None
    self._opens_at = 0.0
    self._check: asyncio.Task[bool] | None = None
    self.pauses, self.paused_s = 0, 0.0

  async def passable(self) -> None:
    """Returns when requests may be sent.

    Raises:
      EndpointDown, EndpointAbsent: that will not be soon.
    """
    while True:
      wait_s = self._opens_at - _now()
      if self._check is not None:
        await asyncio.shield(self._check)
      elif wait_s > 0:
        await asyncio.sleep(wait_s + self._rng.uniform(0, _HERD_S))
      else:
        return

  def answered(self) -> None:
    """Takes down that a question was answered just now."""
    self._answered_at = _now()
    self.admitted()

  def admitted(self) -> None:
    """Takes down that a request was taken, whatever came of it: it is not limited any more."""
    self._limited_since = None

  def answered_since(self, when: float) -> bool:
    """Returns whether any question was answered after a moment of the event loop's clock."""
    return self._answered_at is not None and self._answered_at >= when

  async def is_up(self) -> bool:
    """Returns whether the endpoint answers the canary at once; else waits until it does.

    Raises:
      EndpointDown, EndpointAbsent: it did not for too long.
    """
    if self._check is None:
      self._check = asyncio.create_task(self._wait_for_answer())
      self._check.add_done_callback(_note)
    return await asyncio.shield(self._check)

  async def limited(self, wait_s: float, *, began: float) -> None:
    """Waits as an answer 429 asks for: all wait, unless others were answered meanwhile.

    Args:
      wait_s: how long.
      began: when the try began that was told so.

    Raises:
      EndpointDown: nobody has been answered, or would be, for longer than an outage may last.
    """
    if self.answered_since(began):
      await asyncio.sleep(wait_s + self._rng.uniform(0, _HERD_S))
      return
    now = _now()
    self._limited_since = self._limited_since or now
    if now + wait_s - self._limited_since > self._outage_s:
      raise EndpointDown(
        f"{self._name} takes no requests (HTTP 429) and asks to come back in {wait_s:.0f} s; "
        f"endpoint.limits.outage_s is {self._outage_s:.0f}. The same command continues"
      )
    if now + wait_s > self._opens_at:
      self.paused_s += now + wait_s - max(now, self._opens_at)
      self.pauses += self._opens_at <= now
      self._opens_at = now + wait_s

  async def _wait_for_answer(self) -> bool:
    try:
      fault = await self._canary()
      if fault is not None:
        await self._outage(fault)
      self.answered()
      return fault is None
    finally:
      self._check = None

  async def _outage(self, fault: Fault | None) -> None:
    """Asks the canary until it is answered."""
    began, wait_s = _now(), _FIRST_S
    known = self._answered_at is not None
    limit_s = self._outage_s if known else min(self._outage_s, _START_S)
    logging.warning("%s: no answers (%s); all wait, up to %.0f s", self._name, fault, limit_s)
    self.pauses += 1
    while fault is not None:
      delay_s = max(wait_s * self._rng.uniform(0.5, 1.0), fault.wait_s or 0.0)
      if _now() + delay_s - began > limit_s:
        self.paused_s += _now() - began
        what = "has stopped to answer" if known else "does not answer"
        raise (EndpointDown if known or self._known else EndpointAbsent)(
          f"{self._name} {what} ({fault}), waited {_now() - began:.0f} s. Is it running, and is "
          "base_url right? The same command continues"
        )
      await asyncio.sleep(delay_s)
      wait_s = min(2 * wait_s, _MAX_S)
      fault = await self._canary()
    self.paused_s += _now() - began
    logging.info("%s: answers again after %.1f s", self._name, _now() - began)


def _note(check: asyncio.Task[bool]) -> None:
  """Takes note of how a check ended, should nobody be left who waits for it."""
  if not check.cancelled():
    check.exception()


def _now() -> float:
  return asyncio.get_running_loop().time()
