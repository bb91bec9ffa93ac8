# SPDX-License-Identifier: Apache-2.0
"""Finished requests, and the cache that answers them again."""

import collections
import dataclasses

import numpy as np

from auditdm_jax.images.backend import Job
from auditdm_jax.images.failures import NoImageReason, Refused


@dataclasses.dataclass(frozen=True, eq=False)
class Done:
  """A finished image.

  Attributes:
    image: u8[H,W,3].
    sha256: hash of its bytes.
    seed: seed of its request.
  """

  image: np.ndarray
  sha256: bytes
  seed: int
  queue_s: float
  compute_s: float
  batch_size: int
  truncated: bool = False
  cached: bool = False


Outcome = Done | Refused


class Cache:
  """The last outcomes by request id, bounded by bytes."""

  _OVERHEAD = 1024

  def __init__(self, max_bytes: float):
    self._max_bytes, self._bytes = max_bytes, 0
    self._items: collections.OrderedDict[str, tuple[bytes, Outcome, int]] = (
      collections.OrderedDict()
    )

  @property
  def nbytes(self) -> int:
    return self._bytes

  def get(self, job: Job) -> Outcome | None:
    """Returns the outcome of a job; raises Refused if its id belongs to another one."""
    if job.request_id not in self._items:
      return None
    check_same(job, self._items[job.request_id][0])
    return self.get_id(job.request_id)

  def get_id(self, request_id: str) -> Outcome | None:
    """Returns the outcome under an id."""
    if request_id not in self._items:
      return None
    self._items.move_to_end(request_id)
    return self._items[request_id][1]

  def put(self, job: Job, outcome: Outcome) -> None:
    """Keeps an outcome, in the place of older ones."""
    done = isinstance(outcome, Done)
    size = self._OVERHEAD + (outcome.image.nbytes if done else len(outcome.message.encode()))
    if job.request_id in self._items:
      self._bytes -= self._items.pop(job.request_id)[2]
    self._items[job.request_id] = (job.fingerprint, outcome, size)
    self._bytes += size
    while self._bytes > self._max_bytes:
      self._bytes -= self._items.popitem(last=False)[1][2]


def check_same(job: Job, fingerprint: bytes) -> None:
  """Raises Refused if the fingerprint is not the job's."""
  if job.fingerprint != fingerprint:
    raise Refused(NoImageReason.ID_REUSED, f"{job.request_id}: the same id with another body")


def unwrap(outcome: Outcome) -> Done:
  """Returns the image, or raises the refusal."""
  if isinstance(outcome, Refused):
    raise Refused(outcome.reason, outcome.message, retry_s=outcome.retry_s)
  return outcome
