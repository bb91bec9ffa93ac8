# SPDX-License-Identifier: Apache-2.0
"""Why there is no image, whose fault that is, and whether it pays to ask again.

The service's fault must never become reward 0: it would teach the auditor to avoid captions that
are slow. The auditor's fault must: a caption that cannot be drawn is a bad caption.
"""

import dataclasses
import enum
from typing import Literal

import grpc

Fault = Literal["auditor", "service"]
# Trailing metadata of a refused call: why, and after how many milliseconds to ask again.
REASON_KEY, RETRY_KEY = "auditdm-reason", "auditdm-retry-ms"


class Reason(enum.Enum):
  # Said by the server (images.proto).
  INVALID_INSTRUCTION = "cannot be carried out"
  INVALID_PROMPT = "empty, too long, or with control characters"
  INVALID_REQUEST = "no seed or id, a size out of range, or a malformed image"
  ID_REUSED = "the same request id with another body"
  QUEUE_FULL = "the queue is full"
  NOT_READY = "the model is loading"
  DRAINING = "the server is about to stop"
  DEADLINE = "not done in time"
  INTERNAL = "the backend failed"
  UNAUTHENTICATED = "a missing or wrong token"
  UNSUPPORTED = "not something this model does"
  UNKNOWN_ID = "no result under this id"
  # Found out by the client.
  UNAVAILABLE = "no connection, or it broke"
  TOO_LARGE = "a message above the size limit"
  PROTOCOL = "not an answer of this service"
  CLOSED = "the client was closed"


@dataclasses.dataclass(frozen=True)
class Rule:
  """What follows from a reason.

  Attributes:
    code: the gRPC status a server sends with it.
    fault: whose fault it is.
    max_tries: how often to ask in all; None = as long as retries and deadline allow.
  """

  code: grpc.StatusCode
  fault: Fault = "service"
  max_tries: int | None = 1


_MAX_RETRY_S = 10.0  # A server's hint is a hint.
# It travels in the trailing metadata, percent-encoded, where gRPC takes 8 kB; above that the reason
# would be lost with it.
_MAX_MESSAGE = 1000  # bytes of UTF-8
_CODE = grpc.StatusCode
RULES = {
  Reason.INVALID_INSTRUCTION: Rule(_CODE.INVALID_ARGUMENT, "auditor"),
  Reason.INVALID_PROMPT: Rule(_CODE.INVALID_ARGUMENT, "auditor"),
  Reason.INVALID_REQUEST: Rule(_CODE.INVALID_ARGUMENT),
  Reason.ID_REUSED: Rule(_CODE.ALREADY_EXISTS),
  Reason.QUEUE_FULL: Rule(_CODE.RESOURCE_EXHAUSTED, max_tries=None),
  Reason.NOT_READY: Rule(_CODE.UNAVAILABLE, max_tries=None),
  Reason.DRAINING: Rule(_CODE.UNAVAILABLE, max_tries=None),
  # Refused early by one replica, it may be in time on another; if it has passed, no time is left.
  Reason.DEADLINE: Rule(_CODE.DEADLINE_EXCEEDED, max_tries=3),
  # Once more, for a passing fault; not for ever, because the row itself may be the poison.
  Reason.INTERNAL: Rule(_CODE.INTERNAL, max_tries=2),
  Reason.UNAUTHENTICATED: Rule(_CODE.UNAUTHENTICATED),
  Reason.UNSUPPORTED: Rule(_CODE.FAILED_PRECONDITION),
  Reason.UNKNOWN_ID: Rule(_CODE.NOT_FOUND),
  Reason.UNAVAILABLE: Rule(_CODE.UNAVAILABLE, max_tries=None),
  Reason.TOO_LARGE: Rule(_CODE.RESOURCE_EXHAUSTED),
  Reason.PROTOCOL: Rule(_CODE.UNKNOWN, max_tries=2),
  Reason.CLOSED: Rule(_CODE.CANCELLED),
}

# What a status means that carries no reason: it comes from gRPC itself or from a proxy.
_BARE = {
  _CODE.UNAVAILABLE: Reason.UNAVAILABLE,
  # gRPC's core drops calls it has not accepted in time as CANCELLED.
  _CODE.CANCELLED: Reason.UNAVAILABLE,
  _CODE.ABORTED: Reason.UNAVAILABLE,
  _CODE.DEADLINE_EXCEEDED: Reason.DEADLINE,
  # Without a reason it is no back-pressure but a message above the limit: retrying cannot help.
  _CODE.RESOURCE_EXHAUSTED: Reason.TOO_LARGE,
}


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a request has no image.

  Attributes:
    retry_s: when to ask again at the earliest, if the server knows.
  """

  reason: Reason
  message: str
  retry_s: float = 0.0

  @property
  def fault(self) -> Fault:
    return RULES[self.reason].fault


class Refused(Exception):
  """A request the server does not carry out; of a long message, its beginning."""

  def __init__(self, reason: Reason, message: str, *, retry_s: float = 0.0):
    message = message.encode(errors="replace")[:_MAX_MESSAGE].decode(errors="ignore")
    super().__init__(message)
    self.reason, self.message, self.retry_s = reason, message, retry_s

  @property
  def metadata(self) -> tuple[tuple[str, str], ...]:
    """Trailing metadata."""
    return (REASON_KEY, self.reason.name), (RETRY_KEY, str(round(1e3 * self.retry_s)))


def from_call(error: grpc.RpcError) -> Failure:
  """Returns the failure that a broken call stands for: by its reason, else by its status."""
  trailer = dict(error.trailing_metadata() or ())
  name, wait = trailer.get(REASON_KEY), trailer.get(RETRY_KEY, "0")
  reason = Reason[name] if name in Reason.__members__ else _BARE.get(error.code(), Reason.PROTOCOL)
  retry_s = min(int(wait) / 1e3, _MAX_RETRY_S) if wait.isdecimal() else 0.0
  return Failure(reason, error.details() or f"{error.code().name}: {reason.value}", retry_s)
