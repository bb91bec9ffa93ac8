# SPDX-License-Identifier: Apache-2.0
"""Which of several equal servers is asked: the one with the least to do among those that serve.

gRPC's own balancing is not used: pick_first sends everything to one server, round_robin as much to
a slow one as to a fast one. Without ejection a dead server, which fails fastest, would draw all
the tries, and one that hangs a share of them for ever. A server that has failed is asked one thing
at a time until it answers.
"""

from collections.abc import Sequence
import threading
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from auditdm_jax.images import security, stubs
from auditdm_jax.images.config import Security
from auditdm_jax.images.failures import RULES, NoImageReason

_EJECT_S, _MAX_EJECT_S = 0.5, 15.0
_REWATCH_S = 0.25
_ABSENT = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
_RAW_PIXELS = 128 * 128
_OPTIONS = (
  ("grpc.max_receive_message_length", -1),  # The server limits what it sends.
  ("grpc.max_send_message_length", -1),
  # Channel retries stop at 5 tries and skip requests above 256 KiB, in silence: ours do neither.
  ("grpc.enable_retries", 0),
  # A proxy of the environment would see the token, of a service on this machine too.
  ("grpc.enable_http_proxy", 0),
  # The default waits up to two minutes before it looks for a restarted server.
  ("grpc.initial_reconnect_backoff_ms", 100),
  ("grpc.min_reconnect_backoff_ms", 500),
  ("grpc.max_reconnect_backoff_ms", 1000),
  # A machine that is gone says nothing: without pings a call would wait for its deadline. What ends
  # the connection is the timeout of HTTP/2's pings, by default a minute, not keepalive_timeout_ms.
  ("grpc.keepalive_time_ms", 10_000),
  ("grpc.http2.ping_timeout_ms", 10_000),
  ("grpc.http2.max_pings_without_data", 0),
)


class Replica:
  """A channel of its own to one server, whose health is watched."""

  def __init__(self, address: str, credentials: Security):
    self.address = address
    self.channel = security.channel(address, credentials, _OPTIONS)
    self.stub = stubs.Stub(self.channel)
    self.health = health_pb2_grpc.HealthStub(self.channel)
    self._near = security.is_near(address)
    self.outstanding = 0  # pixels x steps
    self.serving: bool | None = None  # None = not known
    self._failures, self._ejected_until = 0, 0.0
    self._closed = threading.Event()
    self._watcher = threading.Thread(target=self._watch, name=f"health {address}", daemon=True)
    self._watcher.start()

  def close(self) -> None:
    self._closed.set()
    self.channel.close()

  def encoding(self, pixels: int) -> int:
    """Raw pixels where they cost nothing to send, else a lossless half."""
    return stubs.RAW_RGB8 if self._near or pixels <= _RAW_PIXELS else stubs.WEBP_LOSSLESS

  def rank(self, now: float) -> tuple:
    """Replicas of lower rank are asked first."""
    failing = self._ejected_until > now or (self._failures > 0 and self.outstanding > 0)
    return failing, self.serving is False, self.outstanding

  def report(self, reason: NoImageReason | None) -> None:
    """Ejects the replica for a while after no usable answer, longer each time."""
    now = time.monotonic()
    if reason is None:
      self._failures, self._ejected_until = 0, 0.0
    elif RULES[reason].code in _ABSENT and self._ejected_until <= now:  # All under way are one.
      seconds = min(_EJECT_S * 2 ** min(self._failures, 10), _MAX_EJECT_S)
      self._failures, self._ejected_until = self._failures + 1, now + seconds

  def _watch(self) -> None:
    request = health_pb2.HealthCheckRequest(service=stubs.SERVICE.full_name)
    while not self._closed.is_set():
      try:
        for update in self.health.Watch(request):
          self.serving = update.status == health_pb2.HealthCheckResponse.SERVING
          if self.serving:
            self._failures, self._ejected_until = 0, 0.0
      except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # A proxy without it: calls will tell.
          self.serving = None
          return
      except ValueError:  # The channel was closed between two watches.
        return
      self.serving = False
      self._closed.wait(_REWATCH_S)


class Replicas:
  """All servers of a client; thread-safe."""

  def __init__(self, addresses: Sequence[str], credentials: Security):
    self.all = [Replica(a, credentials) for a in addresses]
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.all)

  def acquire(self, cost: int) -> Replica:
    """Returns the replica to ask, whose outstanding work it adds to."""
    with self._lock:
      now = time.monotonic()
      replica = min(self.all, key=lambda r: r.rank(now))
      replica.outstanding += cost
    return replica

  def release(self, replica: Replica, cost: int, reason: NoImageReason | None) -> None:
    """Ends what `acquire` began, with why it failed, if it did."""
    with self._lock:
      replica.outstanding -= cost
      replica.report(reason)

  def close(self) -> None:
    for replica in self.all:
      replica.close()


def state_of(replica: Replica, timeout_s: float) -> str:
  """Returns the name of its health, or raises grpc.RpcError."""
  request: Any = health_pb2.HealthCheckRequest(service=stubs.SERVICE.full_name)
  status = replica.health.Check(request, timeout=timeout_s).status
  return health_pb2.HealthCheckResponse.ServingStatus.Name(status)
