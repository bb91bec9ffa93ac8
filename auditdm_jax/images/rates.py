# SPDX-License-Identifier: Apache-2.0
"""How often one client may ask: for each a bucket of tokens, which fills up at a steady rate.

One that asks too much is told when to come again, and the others do not wait for it. The queue is
bounded too (`limits.max_queue`), but it is filled by whoever comes first.
"""

import collections
from collections.abc import Callable
import time

from auditdm_jax.images.failures import NoImageReason, Refused

_MAX_CLIENTS = 4096  # Of more, those that have asked nothing for longest are forgotten.


class Rates:
  """The buckets of all clients of a server."""

  def __init__(self, per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic):
    """Takes the rule.

    Args:
      per_s: requests of one client a second in the long run; 0 = any number.
      burst: how many it may send at once.
      clock: tells seconds.
    """
    self._per_s, self._burst, self._clock = per_s, burst, clock
    # By client its tokens, and when they were counted.
    self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

  def take(self, client: str, requests: int = 1) -> None:
    """Counts requests of a client.

    More at once than a burst are taken if its bucket is full, and paid back by waiting.

    Raises:
      Refused: it has asked too much, with the time after which there is room.
    """
    if not self._per_s:
      return
    now, full = self._clock(), float(self._burst)
    left, since = self._buckets.pop(client, (full, now))
    left = min(left + (now - since) * self._per_s, full)
    need = min(requests, self._burst)
    is_enough = left >= need
    self._buckets[client] = (left - requests if is_enough else left, now)
    if len(self._buckets) > _MAX_CLIENTS:
      self._buckets.popitem(last=False)
    if not is_enough:
      wait = max((need - left) / self._per_s, 0.001)  # The hint counts in milliseconds.
      raise Refused(
        NoImageReason.RATE_LIMITED,
        f"this client asks for more than {self._per_s:g} images a second"
        f" (images.limits.client_rate); there is room in {wait:.2f} s",
        retry_s=wait,
      )
