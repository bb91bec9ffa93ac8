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


class NoImageReason(enum.Enum):
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
  RATE_LIMITED = "this client asks too often"
  # Found out by the client.
  UNAVAILABLE = "no connection, or it broke"
  TOO_LARGE = "a message above the size limit"
  PROTOCOL = "not an answer of this service"
  CLOSED = "the client was closed"


@dataclasses.dataclass(frozen=True)
class Handling:
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
  NoImageReason.INVALID_INSTRUCTION: Handling(_CODE.INVALID_ARGUMENT, "auditor"),
  NoImageReason.INVALID_PROMPT: Handling(_CODE.INVALID_ARGUMENT, "auditor"),
  NoImageReason.INVALID_REQUEST: Handling(_CODE.INVALID_ARGUMENT),
  NoImageReason.ID_REUSED: Handling(_CODE.ALREADY_EXISTS),
  NoImageReason.QUEUE_FULL: Handling(_CODE.RESOURCE_EXHAUSTED, max_tries=None),
  NoImageReason.RATE_LIMITED: Handling(_CODE.RESOURCE_EXHAUSTED, max_tries=None),
  NoImageReason.NOT_READY: Handling(_CODE.UNAVAILABLE, max_tries=None),
  NoImageReason.DRAINING: Handling(_CODE.UNAVAILABLE, max_tries=None),
  # Refused early by one replica, it may be in time on another; if it has passed, no time is left.
  NoImageReason.DEADLINE: Handling(_CODE.DEADLINE_EXCEEDED, max_tries=3),
  # Once more, for a passing fault; not for ever, because the row itself may be the poison.
  NoImageReason.INTERNAL: Handling(_CODE.INTERNAL, max_tries=2),
  NoImageReason.UNAUTHENTICATED: Handling(_CODE.UNAUTHENTICATED),
  NoImageReason.UNSUPPORTED: Handling(_CODE.FAILED_PRECONDITION),
  NoImageReason.UNKNOWN_ID: Handling(_CODE.NOT_FOUND),
  NoImageReason.UNAVAILABLE: Handling(_CODE.UNAVAILABLE, max_tries=None),
  NoImageReason.TOO_LARGE: Handling(_CODE.RESOURCE_EXHAUSTED),
  NoImageReason.PROTOCOL: Handling(_CODE.UNKNOWN, max_tries=2),
  NoImageReason.CLOSED: Handling(_CODE.CANCELLED),
}

# What a status means that carries no reason: it comes from gRPC itself or from a proxy.
_BARE = {
  _CODE.UNAVAILABLE: NoImageReason.UNAVAILABLE,
  # gRPC's core drops calls it has not accepted in time as CANCELLED.
  _CODE.CANCELLED: NoImageReason.UNAVAILABLE,
  _CODE.ABORTED: NoImageReason.UNAVAILABLE,
  _CODE.DEADLINE_EXCEEDED: NoImageReason.DEADLINE,
  # Without a reason it is no back-pressure but a message above the limit: retrying cannot help.
  _CODE.RESOURCE_EXHAUSTED: NoImageReason.TOO_LARGE,
}


@dataclasses.dataclass(frozen=True)
class NoImage:
  """Why a request has no image.

  Attributes:
    retry_s: when to ask again at the earliest, if the server knows.
  """

  reason: NoImageReason
  message: str
  retry_s: float = 0.0

  @property
  def fault(self) -> Fault:
    return RULES[self.reason].fault


class Refused(Exception):
  """A request the server does not carry out; of a long message, its beginning."""

  def __init__(self, reason: NoImageReason, message: str, *, retry_s: float = 0.0):
    message = message.encode(errors="replace")[:_MAX_MESSAGE].decode(errors="ignore")
    super().__init__(message)
    self.reason, self.message, self.retry_s = reason, message, retry_s

  @property
  def metadata(self) -> tuple[tuple[str, str], ...]:
    """Trailing metadata."""
    return (REASON_KEY, self.reason.name), (RETRY_KEY, str(round(1e3 * self.retry_s)))


def from_call(error: grpc.RpcError) -> NoImage:
  """Returns the failure that a broken call stands for: by its reason, else by its status."""
  trailer = dict(error.trailing_metadata() or ())
  name, wait = trailer.get(REASON_KEY), trailer.get(RETRY_KEY, "0")
  reason = (
    NoImageReason[name]
    if name in NoImageReason.__members__
    else _BARE.get(error.code(), NoImageReason.PROTOCOL)
  )
  retry_s = min(int(wait) / 1e3, _MAX_RETRY_S) if wait.isdecimal() else 0.0
  return NoImage(reason, error.details() or f"{error.code().name}: {reason.value}", retry_s)
