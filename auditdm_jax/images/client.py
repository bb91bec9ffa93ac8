# SPDX-License-Identifier: Apache-2.0
"""The asking side: futures that never raise, and retries that know why they are made.

  with ImageClient(address, deadline_s=60.0) as client:
    client.wait_ready(30.0)
    future = client.edit(image, "make the red circle blue", seed=7)
    result = future.result()  # an image, or a failure and whose fault it was

One thread carries one request from its first try to its end, so that at most `max_in_flight` are
under way. Each try goes to the replica with the least outstanding work.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import hashlib
import random
import threading
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
import numpy as np

from auditdm_jax.images import stubs, validate
from auditdm_jax.images.failures import RULES, Failure, Reason, Refused, from_call

_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 2.0
_EJECT_S = 1.0
_OPTIONS = (
  ("grpc.max_receive_message_length", -1),  # The server limits what it sends.
  ("grpc.max_send_message_length", -1),
  # Channel retries stop at 5 tries and skip requests above 256 KiB, in silence: ours do neither.
  ("grpc.enable_retries", 0),
  # The default waits up to two minutes before it looks for a restarted server.
  ("grpc.initial_reconnect_backoff_ms", 100),
  ("grpc.min_reconnect_backoff_ms", 500),
  ("grpc.max_reconnect_backoff_ms", 1000),
)


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
    timings: of an image.
  """

  image: np.ndarray | None
  failure: Failure | None
  request_id: str
  timings: Timings | None = None


class _Replica:
  """A channel of its own to one server."""

  def __init__(self, address: str):
    self.address = address
    self.channel = grpc.insecure_channel(address, options=_OPTIONS)
    self.stub = stubs.Stub(self.channel)
    self.health = health_pb2_grpc.HealthStub(self.channel)
    self.outstanding = 0
    self.ejected_until = 0.0


class ImageClient:
  """Asks one image service, or several equal ones.

  Close it, best by `with`: what is still under way then ends as Reason.CLOSED.
  """

  def __init__(
    self,
    address: str | Sequence[str],
    *,
    deadline_s: float = 60.0,
    max_in_flight: int = 32,
    retries: int = 12,
  ):
    addresses = [address] if isinstance(address, str) else list(address)
    if not addresses or not all(addresses):
      raise ValueError("an image client needs the address of a service, such as 127.0.0.1:8500")
    self._replicas = [_Replica(a) for a in addresses]
    self._deadline_s, self._retries = deadline_s, retries
    self._lock = threading.Lock()
    self._closed = threading.Event()
    self._threads = futures.ThreadPoolExecutor(max_in_flight, thread_name_prefix="images")

  def __enter__(self) -> "ImageClient":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends what is under way; may be called twice."""
    self._closed.set()
    for replica in self._replicas:
      replica.channel.close()
    self._threads.shutdown(wait=True)

  def generate(
    self, prompt: str, *, seed: int, width: int, height: int, request_id: str | None = None
  ) -> futures.Future[ImageResult]:
    """An image from a caption.

    Args:
      request_id: by default the hash of the request, so that equal requests share one image.

    Raises:
      ValueError: a seed that is not an unsigned 64-bit integer: the caller's bug, at once.
    """
    _check_seed(seed)
    request_id = request_id or _request_id("generate", prompt, seed, width, height)

    def make_request():
      return stubs.GenerateRequest(
        request_id=request_id, prompt=prompt, seed=seed, width=width, height=height
      )

    return self._submit(request_id, lambda replica: replica.stub.generate, make_request)

  def edit(
    self, image: np.ndarray, instruction: str, *, seed: int, request_id: str | None = None
  ) -> futures.Future[ImageResult]:
    """The image u8[H,W,3] changed by an instruction; otherwise as `generate`.

    Raises:
      ValueError: an image of another shape or dtype, or a bad seed.
    """
    _check_seed(seed)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(f"the source must be uint8[H,W,3], not {image.dtype}{list(image.shape)}")
    image = np.ascontiguousarray(image)
    request_id = request_id or _request_id("edit", instruction, seed, image.shape, image.tobytes())

    def make_request():
      return stubs.EditRequest(
        request_id=request_id, instruction=instruction, seed=seed, source=validate.encode(image)
      )

    return self._submit(request_id, lambda replica: replica.stub.edit, make_request)

  def info(self, *, timeout_s: float = 10.0) -> dict[str, str]:
    """What the first replica's backend says about itself; raises ConnectionError."""
    stub = self._replicas[0].stub
    try:
      info = stub.get_model_info(stubs.GetModelInfoRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
      raise ConnectionError(f"{self._replicas[0].address}: {from_call(error).message}") from None
    return dict(info.properties)

  def wait_ready(self, timeout_s: float) -> None:
    """Returns once every replica is SERVING; raises TimeoutError with the last state."""
    until = time.monotonic() + timeout_s
    request = health_pb2.HealthCheckRequest(service=stubs.SERVICE.full_name)
    for replica in self._replicas:
      state = "not asked"
      while state != "SERVING":
        if (left := until - time.monotonic()) <= 0:
          raise TimeoutError(
            f"no image service at {replica.address} after {timeout_s:.0f} s: {state}"
          )
        try:
          status = replica.health.Check(request, timeout=left).status
          state = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        except grpc.RpcError as error:
          state = from_call(error).message
        if state != "SERVING":
          time.sleep(min(0.05, max(left, 0.0)))

  def _submit(
    self, request_id: str, method: Callable, make_request: Callable[[], Any]
  ) -> futures.Future[ImageResult]:
    future: futures.Future[ImageResult] = futures.Future()

    def work():
      if not future.set_running_or_notify_cancel():
        return
      try:
        future.set_result(self._carry(request_id, method, make_request))
      except Exception as error:  # A bug here must not lose the rollout that waits for it.
        failure = Failure(Reason.PROTOCOL, f"{type(error).__name__}: {error}")
        future.set_result(ImageResult(None, failure, request_id))

    try:
      self._threads.submit(work)
    except RuntimeError:  # The pool is shut down.
      future.set_result(ImageResult(None, _closed_failure(), request_id))
    return future

  def _carry(
    self, request_id: str, method: Callable, make_request: Callable[[], Any]
  ) -> ImageResult:
    """One request to its end: tries, back-offs, deadline."""
    try:
      request = make_request()
    except UnicodeEncodeError:
      failure = Failure(Reason.INVALID_PROMPT, "the text is not valid Unicode")
      return ImageResult(None, failure, request_id)
    start = time.monotonic()
    until = start + self._deadline_s
    tries: dict[Reason, int] = {}
    for attempt in range(self._retries + 1):
      response, failure = self._try(method, request, until)
      if response is not None:
        timings = _timings(response.timings, time.monotonic() - start, attempt + 1)
        return ImageResult(validate.decode(response.image), None, request_id, timings)
      if self._closed.is_set():
        return ImageResult(None, _closed_failure(), request_id)
      tries[failure.reason] = tries.get(failure.reason, 0) + 1
      max_tries = RULES[failure.reason].max_tries
      # Full jitter: those that were refused together must not come back together.
      delay = random.uniform(0, min(_MAX_BACKOFF_S, _BACKOFF_S * 2**attempt))
      last = attempt == self._retries or time.monotonic() + delay > until
      if last or (max_tries is not None and tries[failure.reason] >= max_tries):
        break
      self._closed.wait(delay)
    failure = dataclasses.replace(failure, message=f"{failure.message} (try {attempt + 1})")
    return ImageResult(None, failure, request_id)

  def _try(
    self, method: Callable, request: Any, until: float
  ) -> tuple[Any, None] | tuple[None, Failure]:
    if self._closed.is_set():
      return None, _closed_failure()
    with self._lock:
      replica = self._pick()
      replica.outstanding += 1
    try:
      response = method(replica)(request, timeout=max(until - time.monotonic(), 0.0))
      return _verified(response, request.request_id), None
    except grpc.RpcError as error:
      failure = from_call(error)
    except Refused as refused:
      failure = Failure(refused.reason, refused.message)
    except ValueError as error:  # The channel was closed between two tries.
      failure = Failure(Reason.UNAVAILABLE, str(error))
    finally:
      with self._lock:
        replica.outstanding -= 1
    if RULES[failure.reason].code is grpc.StatusCode.UNAVAILABLE:
      # Else a dead replica, which answers fastest, would draw all the tries.
      replica.ejected_until = time.monotonic() + _EJECT_S
    return None, failure

  def _pick(self) -> _Replica:
    now = time.monotonic()
    return min(self._replicas, key=lambda r: (r.ejected_until > now, r.outstanding))


def _verified(response: Any, request_id: str) -> Any:
  """The response, if it answers this request and its pixels are what the server made."""
  if response.request_id != request_id:
    raise Refused(Reason.PROTOCOL, f"an answer to {response.request_id!r}")
  if hashlib.sha256(response.image.data).digest() != response.sha256:
    raise Refused(Reason.PROTOCOL, "the image is damaged")
  return response


def _timings(timings: Any, total_s: float, tries: int) -> Timings:
  return Timings(
    total_s=total_s,
    queue_s=timings.queue_ms / 1e3,
    compute_s=timings.compute_ms / 1e3,
    batch_size=timings.batch_size,
    cached=timings.cached,
    tries=tries,
  )


def _closed_failure() -> Failure:
  return Failure(Reason.CLOSED, Reason.CLOSED.value)


def _check_seed(seed: int) -> None:
  if not 0 <= seed < 2**64:
    raise ValueError(f"a seed is an unsigned 64-bit integer, not {seed}")


def _request_id(*parts: Any) -> str:
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
