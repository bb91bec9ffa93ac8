# SPDX-License-Identifier: Apache-2.0
"""The asking side: futures that never raise, and retries that know why they are made.

  with ImageClient(address, config=ClientConfig(deadline_s=60.0)) as client:
    client.wait_ready(30.0)
    future = client.edit(image, "make the red circle blue", seed=7)
    result = future.result()  # an image, or a failure and whose fault it was

One thread carries one request from its first try to its end, so that at most `max_in_flight` per
replica are under way. Each host of a run has a client of its own, for its own rollouts.

Once `wait_ready` has heard which sizes are taken, images may have any: a request is fitted before
it is hashed, so that its id and the caches are those of what the service sees, and an edit comes
back on the grid of its source (`fit.py`). A generated image keeps the size that it was drawn at:
no source's grid binds it, and to cut or to scale it would lose what the caption had asked for.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import hashlib
import itertools
import random
import threading
import time
from typing import Any

import grpc
import numpy as np

from auditdm_jax.images import codec, stubs
from auditdm_jax.images import fit as fit_lib
from auditdm_jax.images import security as security_lib
from auditdm_jax.images.answers import ImageResult, Timings, on_source
from auditdm_jax.images.backend import MAX_PIXELS, MAX_SIDE, Info
from auditdm_jax.images.config import ClientConfig
from auditdm_jax.images.disk_cache import DiskCache
from auditdm_jax.images.failures import RULES, NoImage, NoImageReason, Refused, from_call
from auditdm_jax.images.fit import Fit
from auditdm_jax.images.replicas import Replica, Replicas, state_of
from auditdm_jax.images.requests import Edit, Generate, Options, Request

_DEFAULTS = ClientConfig()
_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 2.0
_AT_ONCE = 4  # images fitted or brought back; one of 12 megapixels takes 200 MB meanwhile


class ImageClient:
  """Asks one image service, or several equal ones.

  Close it, best by `with`: what is still under way then ends as Reason.CLOSED.
  """

  def __init__(self, address: str | Sequence[str], *, config: ClientConfig = _DEFAULTS):
    parts = address.split(",") if isinstance(address, str) else address
    addresses = [part.strip() for part in parts] or [""]
    for each in addresses:
      security_lib.check_address(each)
    self._config = config
    self._metadata = security_lib.metadata(config.security)
    self._replicas = Replicas(addresses, config.security)
    self._options = Options(deterministic=config.deterministic)
    self._cache = DiskCache(config.cache) if config.cache else None
    self._model = ""
    self._info: Info | None = None
    self._closed = threading.Event()
    self._host = threading.Semaphore(_AT_ONCE)
    self.max_in_flight = config.max_in_flight * len(addresses)
    self._threads = futures.ThreadPoolExecutor(self.max_in_flight, thread_name_prefix="images")

  def __enter__(self) -> "ImageClient":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends what is under way; may be called twice."""
    self._closed.set()
    self._replicas.close()
    self._threads.shutdown(wait=True)

  def generate(
    self, prompt: str, *, seed: int, width: int, height: int, request_id: str = ""
  ) -> futures.Future[ImageResult]:
    """Returns an image from a caption, see `requests.Generate`."""
    return self.submit(Generate(prompt, seed, width, height, self._options, request_id))

  def edit(
    self, image: np.ndarray, instruction: str, *, seed: int, request_id: str = ""
  ) -> futures.Future[ImageResult]:
    """Returns the image changed by an instruction, see `requests.Edit`."""
    local = self._config.local_edits
    return self.submit(Edit(image, instruction, seed, self._options, request_id, local=local))

  def sham(self, image: np.ndarray, mask: np.ndarray, *, seed: int) -> futures.Future[ImageResult]:
    """Returns the control of a local edit: the masked part was only encoded and decoded.

    Args:
      image: u8[H,W,3], the source of the edit.
      mask: bool[H,W] of the edit.
    """
    request = Edit(image, "", seed, self._options, sham=True)
    return self.submit(request, mask=mask)

  def submit(
    self, request: Request, *, mask: np.ndarray | None = None
  ) -> futures.Future[ImageResult]:
    """Returns the future of any request; it is done sooner or later and never raises."""
    future: futures.Future[ImageResult] = futures.Future()

    def work():
      if not future.set_running_or_notify_cancel():
        return
      try:
        future.set_result(self._result(request, mask))
      except Exception as error:  # A bug here must not lose the rollout that waits for it.
        failure = NoImage(NoImageReason.PROTOCOL, f"{type(error).__name__}: {error}")
        future.set_result(ImageResult(None, failure, request.request_id))

    try:
      self._threads.submit(work)
    except RuntimeError:  # The pool is shut down.
      future.set_result(ImageResult(None, _closed_failure(), request.request_id))
    return future

  def map_unordered(
    self, requests: Iterable[Request], *, depth: int = 0
  ) -> Iterator[tuple[Request, ImageResult]]:
    """Pairs of request and result as they are done; `depth` (0 = all that fly) are taken ahead."""
    source = iter(requests)
    waiting: dict[futures.Future, Request] = {}
    while True:
      for request in itertools.islice(source, (depth or self.max_in_flight) - len(waiting)):
        waiting[self.submit(request)] = request
      if not waiting:
        return
      for future in futures.wait(waiting, return_when=futures.FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()

  def prefetch(
    self, requests: Iterable[Request], *, depth: int
  ) -> Iterator[tuple[Request, ImageResult]]:
    """Pairs in the order of the requests, `depth` of which are made while one is looked at."""
    source = iter(requests)
    ahead: collections.deque[tuple[Request, futures.Future]] = collections.deque()
    while True:
      for request in itertools.islice(source, depth + 1 - len(ahead)):
        ahead.append((request, self.submit(request)))
      if not ahead:
        return
      request, future = ahead.popleft()
      yield request, future.result()

  def info(self, *, timeout_s: float = 10.0) -> Info:
    """Returns what the first replica's model is; raises ConnectionError."""
    return self._info_of(self._replicas.all[0], timeout_s)

  def wait_ready(self, timeout_s: float) -> None:
    """Returns once every replica is SERVING.

    Raises:
      TimeoutError: one is not, with its last state.
      ConnectionError: the replicas serve different models, or refuse this client.
    """
    until = time.monotonic() + timeout_s
    for replica in self._replicas.all:
      state = "not asked"
      while state != "SERVING":
        if (left := until - time.monotonic()) <= 0:
          raise TimeoutError(
            f"no image service at {replica.address} after {timeout_s:g} s: {state}"
            " (or does one side use TLS and the other not?)"
          )
        try:
          state = state_of(replica, left)
        except grpc.RpcError as error:
          # The last look may have had no time left, which says nothing.
          if state == "not asked" or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            state = from_call(error).message
        if state != "SERVING":
          self._closed.wait(min(0.05, max(left, 0.0)))
    said = {r.address: self._info_of(r, 10.0) for r in self._replicas.all}
    models = {address: info.identity for address, info in said.items()}
    if len(set(models.values())) > 1:
      raise ConnectionError(f"the image services have different models or max_batch: {models}")
    first = said[self._replicas.all[0].address]
    if other := [address for address, info in said.items() if info != first]:
      raise ConnectionError(
        f"{other[0]} takes other sizes or options than {self._replicas.all[0].address}: give both"
        " the same config.images.limits and config.images.model"
      )
    self._info, self._model = first, first.identity

  def _info_of(self, replica: Replica, timeout_s: float) -> Info:
    """Returns what a replica says about its model."""
    try:
      said = replica.stub.get_model_info(
        stubs.GetModelInfoRequest(), timeout=timeout_s, metadata=self._metadata
      )
    except grpc.RpcError as error:
      raise ConnectionError(f"{replica.address}: {from_call(error).message}") from None
    return Info(
      said.name,
      said.revision,
      dict(said.properties),
      tuple(said.modes),
      said.steps,
      said.guidance if said.HasField("guidance") else None,
      sizes=tuple((s.width, s.height) for s in said.sizes),
      multiple=max(said.multiple, 1),
      min_side=max(said.min_side, 1),
      max_side=min(said.max_side or MAX_SIDE, MAX_SIDE),
      max_pixels=min(said.max_pixels or MAX_PIXELS, MAX_PIXELS),
      exact=said.exact,
    )

  def _result(self, request: Request, mask: np.ndarray | None) -> ImageResult:
    """Returns the request fitted to the service, carried to its end and brought back."""
    if self._info is None:
      fit = Fit(request.size, request.size, request.size)
    else:
      try:
        fit = fit_lib.fit(self._info, request.size)
      except Refused as refused:
        failure = NoImage(refused.reason, refused.message)
        return ImageResult(None, failure, request.request_id)
    if isinstance(request, Generate):
      return dataclasses.replace(self._carry(request.fitted(fit)), fit=fit.drawn)
    with self._host:
      asked = request.fitted(fit)
    result = self._carry(asked)
    with self._host:
      return on_source(request, result, sent=asked.image, fit=fit, mask=mask)

  def _carry(self, request: Request) -> ImageResult:
    """One request to its end: cache, tries, back-offs, deadline."""
    start = time.monotonic()
    until = start + self._config.deadline_s
    if (image := self._from_disk(request)) is not None:
      timings = Timings(time.monotonic() - start, 0.0, 0.0, 0, True, 0)
      return ImageResult(image, None, request.request_id, timings, self._model)
    # One of several replicas may hang: the first tries leave half of the time to ask another.
    limit = until if len(self._replicas) == 1 else start + self._config.deadline_s / 2
    tries: collections.Counter[NoImageReason] = collections.Counter()
    while True:
      attempt = tries.total()
      answer = self._try(request, limit)
      if not isinstance(answer, NoImage):
        return self._received(request, *answer, start, attempt + 1)
      if self._closed.is_set():
        return ImageResult(None, _closed_failure(), request.request_id)
      tries[answer.reason] += 1
      max_tries = RULES[answer.reason].max_tries
      # Full jitter: those that were refused together must not come back together.
      delay = random.uniform(0, min(_MAX_BACKOFF_S, _BACKOFF_S * 2 ** min(attempt, 10)))
      delay += answer.retry_s
      if answer.reason is NoImageReason.DEADLINE or time.monotonic() + delay > limit:
        limit = until
      last = attempt == self._config.retries or time.monotonic() + delay > until
      if last or (max_tries is not None and tries[answer.reason] >= max_tries):
        break
      self._closed.wait(delay)
    if answer.fault != "auditor":  # What is wrong with a text is recorded, and the same at any try.
      answer = dataclasses.replace(answer, message=f"{answer.message} (try {attempt + 1})")
    return ImageResult(None, answer, request.request_id)

  def _try(self, request: Request, until: float) -> tuple[Any, np.ndarray] | NoImage:
    """Returns the response and its pixels, or why there is none."""
    if self._closed.is_set():
      return _closed_failure()
    replica = self._replicas.acquire(request.cost)
    answer: tuple[Any, np.ndarray] | NoImage = NoImage(NoImageReason.PROTOCOL, "not asked")
    try:
      message = request.message(replica.encoding(request.pixels))
      method = replica.stub.generate if isinstance(request, Generate) else replica.stub.edit
      timeout_s = max(until - time.monotonic(), 0.0)
      try:
        response = method(message, timeout=timeout_s, metadata=self._metadata)
      except ValueError as error:  # The channel was closed between two tries.
        raise Refused(NoImageReason.UNAVAILABLE, str(error)) from None
      answer = _verified(response, request)
    except UnicodeEncodeError:
      answer = NoImage(NoImageReason.INVALID_PROMPT, "the text is not valid Unicode")
    except grpc.RpcError as error:
      answer = from_call(error)
    except Refused as refused:
      answer = NoImage(refused.reason, refused.message)
    finally:
      reason = answer.reason if isinstance(answer, NoImage) else None
      self._replicas.release(replica, request.cost, reason)
    return answer

  def _received(
    self, request: Request, response: Any, image: np.ndarray, start: float, tries: int
  ) -> ImageResult:
    if self._cache is not None:
      self._cache.put(response.model, request.digest, image)
      self._model = response.model
    timings = Timings(
      total_s=time.monotonic() - start,
      queue_s=response.timings.queue_ms / 1e3,
      compute_s=response.timings.compute_ms / 1e3,
      batch_size=response.timings.batch_size,
      cached=response.timings.cached,
      tries=tries,
    )
    return ImageResult(image, None, request.request_id, timings, response.model, response.truncated)

  def _from_disk(self, request: Request) -> np.ndarray | None:
    if self._cache is None or not self._model:
      return None
    return self._cache.get(self._model, request.digest, size=request.size)


def _verified(response: Any, request: Request) -> tuple[Any, np.ndarray]:
  """Returns the response, if it answers this request and its pixels are what the server made."""
  if response.request_id != request.request_id:
    raise Refused(NoImageReason.PROTOCOL, f"an answer to {response.request_id!r}")
  try:
    if (response.image.width, response.image.height) != request.size:
      width, height = request.size
      size = f"{response.image.width}x{response.image.height}"
      raise Refused(NoImageReason.PROTOCOL, f"an image of {size} for one of {width}x{height}")
    image = codec.decode(response.image, max_pixels=MAX_PIXELS)
  except Refused as refused:
    raise Refused(NoImageReason.PROTOCOL, refused.message) from None
  if hashlib.sha256(image.data).digest() != response.sha256:
    raise Refused(NoImageReason.PROTOCOL, "the image is damaged")
  return response, image


def _closed_failure() -> NoImage:
  return NoImage(NoImageReason.CLOSED, NoImageReason.CLOSED.value)
