# SPDX-License-Identifier: Apache-2.0
"""The server: an asyncio front over the batcher, grpc.health.v1, and a graceful end."""

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
import itertools
import logging
import signal
import time
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import numpy as np

from auditdm_jax.images import (
  codec,
  fit,
  rates,
  scrape,
  security,
  stubs,
  telemetry,
  validate,
  worker,
)
from auditdm_jax.images.backend import Backend, Info, Job
from auditdm_jax.images.batcher import JobQueue, Queued, Step
from auditdm_jax.images.config import ImagesConfig, is_loopback
from auditdm_jax.images.failures import RULES, NoImageReason, Refused
from auditdm_jax.images.results import Done

_LOG = logging.getLogger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_HEADROOM = 1 << 16  # bytes of a message that are not pixels
_PING_MS = 5_000  # Clients ping to see that the machine is there; five minutes would cut them off.
_IDLE_MS, _AGE_MS = 600_000, 6 * 3_600_000
_SMALL = 1 << 16  # bytes of pixels that are not worth a thread


class StartError(RuntimeError):
  """The service cannot start: a port is taken, a file unreadable, or no first image was made."""


class ImageServer:
  """One backend behind one port. The port opens at once; calls are refused until warmed up."""

  def __init__(self, config: ImagesConfig):
    self._config, self.metrics = config, telemetry.Metrics()
    self._info: Info | None = None
    self._batcher = JobQueue(config.batching, config.limits, self.metrics)
    # Apart: sources that take long must not hold up answers.
    self._intake, self._encoders = validate.Validator(config.limits), worker.Threads("encoder", 2)
    self._rates = rates.Rates(config.limits.client_rate, config.limits.client_burst)
    self._calls, self._quiet = 0, asyncio.Event()  # Those that are not answered in full.
    self._quiet.set()
    self._draining = False
    self._health = health.aio.HealthServicer()
    self._http: scrape.MetricsServer | None = None
    try:
      self._credentials = security.server_credentials(config.security)
      checks = [security.TokenCheck(config.security)] if config.security.token else []
    except (OSError, ValueError) as error:  # The message of an OSError names the file.
      raise StartError(f"config.images.security: {error}") from None
    max_bytes = 3 * config.limits.max_pixels + 4 * config.limits.max_prompt_chars + _HEADROOM
    self._server = grpc.aio.server(
      interceptors=checks,
      options=[
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", max_bytes),
        # Above a few thousand waiting calls gRPC's core would say CANCELLED; the queue says why.
        ("grpc.server.max_pending_requests", 20_000),
        ("grpc.server.max_pending_requests_hard_limit", 20_000),
        # Else a second server on the port would start in silence and take half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
        # Connections that say nothing are closed, and each one in the end: clients connect anew.
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_connection_age_ms", _AGE_MS),
        ("grpc.max_connection_age_grace_ms", round(1e3 * config.limits.max_deadline_s)),
      ],
    )

  @property
  def broken(self) -> asyncio.Event:
    """Set if nothing can be answered any more."""
    return self._batcher.broken

  async def start(self) -> str:
    """Opens the ports and returns the address; raises StartError if one is taken."""
    # The brackets of an IPv6 address belong to an address with a port.
    bare = self._config.host.strip("[]")
    host = f"[{bare}]" if bare.count(":") > 1 else bare
    wanted, metrics_port = self._config.port, self._config.metrics_port
    metrics_host = self._config.metrics_host.strip("[]")
    methods = {
      "Generate": self._image,
      "Edit": self._image,
      "GenerateBatch": self._batch,
      "Watch": self._watch,
      "GetResult": self._result,
      "GetModelInfo": self._model_info,
    }
    self._server.add_generic_rpc_handlers((stubs.handlers(methods),))
    health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
    if self._config.reflection:
      _reflect(self._server)
    await self._set_health(_NOT_SERVING)
    try:
      port = (
        self._server.add_insecure_port(f"{host}:{wanted}")
        if self._credentials is None
        else self._server.add_secure_port(f"{host}:{wanted}", self._credentials)
      )
    except RuntimeError as error:
      raise StartError(f"cannot listen on {host}:{wanted}: {error}") from None
    try:
      if metrics_port:
        self._http = scrape.MetricsServer(metrics_host, metrics_port, self.metrics.registry)
    except OSError as error:
      message = f"cannot listen on {metrics_host}:{metrics_port} for metrics: {error}"
      raise StartError(message) from None
    if self._credentials is None and not is_loopback(host):
      _LOG.warning("listening on %s without encryption: keep to a private network", host)
    await self._server.start()
    return f"{host}:{port}"

  async def warm_up(self, make_backend: Callable[[], Backend]) -> None:
    """Loads the backend and makes a first image of each kind, then reports SERVING.

    Raises:
      StartError: the backend cannot be loaded, or cannot make an image.
    """
    try:
      info = await self._batcher.start(make_backend)
    except ValueError as error:  # What the config names is not there, or not of this kind.
      raise StartError(str(error)) from error
    except Exception as error:  # Libraries raise what they like about a model they cannot read.
      _LOG.error("the backend cannot be loaded", exc_info=error)
      raise StartError(f"the backend cannot be loaded: {type(error).__name__}: {error}") from error
    try:
      taken = validate.taken_sizes(info, self._config.limits)
      width, height = fit.fit(taken, (self._config.width, self._config.height)).size
    except Refused as refused:
      raise StartError(f"config.images.width, height: {refused.message}") from None
    grey = np.full((height, width, 3), 128, np.uint8)
    for mode in info.modes:
      job = Job(
        f"warm-up-{mode}",
        "" if mode == "sham" else "warm-up",
        0,
        width,
        height,
        None if mode == "generate" else grey,
        info.steps,
        info.guidance,
        # Bitwise the same means the largest batch: whether it fits must show now.
        deterministic=bool(info.batch_sizes),
        sham=mode == "sham",
      )
      try:
        await self._batcher.submit(job, timeout_s=float("inf"))
      except Refused as refused:
        # That the words mean nothing to the backend is fine: it has run.
        if refused.reason is not NoImageReason.INVALID_INSTRUCTION:
          raise StartError(f"the warm-up image failed: {refused.message}") from None
    self._info = info
    await self._set_health(_SERVING)

  async def drain(self, grace_s: float) -> None:
    """Refuses new calls, finishes those under way within the grace, closes the ports."""
    until = time.monotonic() + grace_s
    self._draining = True
    await self._set_health(_NOT_SERVING)
    await self._batcher.drain(grace_s)
    # What is finished has to be encoded and sent. Nor would the server's own grace do: streams
    # that watch the health would use it up.
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self._quiet.wait(), until - time.monotonic())
    await self._server.stop(grace=1.0)
    self._encoders.close()
    self._intake.close()
    if self._http is not None:
      await asyncio.to_thread(self._http.close)

  async def _set_health(self, status: Any) -> None:
    self.metrics.ready.set(status == _SERVING)
    await self._health.set("", status)
    await self._health.set(stubs.SERVICE.full_name, status)

  async def _image(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
    """Generate and Edit."""
    method = request.DESCRIPTOR.name.removesuffix("Request")
    async with self._answering(method, context, request):
      return await self._made(request, self._timeout(context))

  async def _batch(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
    """Every item ends in an image or an error of its own."""
    async with self._answering("GenerateBatch", context, images=len(request.items)):
      if len(request.items) > self._config.limits.max_queue:
        raise Refused(
          NoImageReason.INVALID_REQUEST,
          f"{len(request.items)} items, at most {self._config.limits.max_queue}",
        )
      self._ready()
      until = time.monotonic() + self._timeout(context)
      rest, under_way = iter(enumerate(request.items)), set()
      try:
        while True:
          # As many as keep the batches full: a stream that nobody reads holds no more answers.
          room = 2 * self._config.batching.max_batch - len(under_way)
          for index, item in itertools.islice(rest, room):
            under_way.add(asyncio.create_task(self._item(index, item, until)))
          if not under_way:
            return
          done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
          while done:
            yield done.pop().result()
      finally:
        for task in under_way:
          task.cancel()

  async def _item(self, index: int, item: Any, until: float) -> Any:
    message = stubs.BatchItem(index=index)
    try:
      request = validate.request_of(item)
      message.request_id = request.request_id
      message.response.CopyFrom(await self._made(request, until - time.monotonic()))
    except Refused as refused:
      self._count("GenerateBatch", refused)
      message.error.reason = stubs.REASON_NUMBERS[refused.reason.name]
      message.error.message = refused.message
    return message

  async def _watch(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
    async with self._answering("Watch", context):
      inner = validate.request_of(request)
      job = await self._intake.job(inner, self._ready())
      events = self._batcher.watch(job, timeout_s=self._timeout(context))
      async with contextlib.aclosing(events):
        async for event in events:
          yield await self._event(inner, event)

  async def _event(self, request: Any, event: Queued | Step | Done) -> Any:
    if isinstance(event, Queued):
      queued = stubs.Queued(position=event.position, eta_ms=1e3 * event.eta_s)
      return stubs.Event(queued=queued)
    if isinstance(event, Step):
      return stubs.Event(step=stubs.Step(done=event.done, of=event.of))
    response = await self._response(request.request_id, event, request.options.encoding)
    return stubs.Event(result=response)

  async def _result(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
    async with self._answering("GetResult", context, request):
      self._ready()
      request_id = validate.checked_id(request)
      done = await self._batcher.result(request_id, timeout_s=self._timeout(context))
      return await self._response(request_id, done, stubs.RAW_RGB8)

  async def _model_info(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
    del request
    async with self._answering("GetModelInfo", context):
      batching = self._config.batching
      return validate.info_message(self._ready(), self._config.limits, batching.max_batch)

  async def _made(self, request: Any, timeout_s: float) -> Any:
    """Returns the response to a GenerateRequest or EditRequest; raises Refused."""
    until = time.monotonic() + timeout_s
    job = await self._intake.job(request, self._ready())
    done = await self._batcher.submit(job, timeout_s=until - time.monotonic())
    return await self._response(job.request_id, done, request.options.encoding)

  async def _response(self, request_id: str, done: Done, encoding: int) -> Any:
    encoding = encoding or stubs.RAW_RGB8
    start = time.monotonic()
    if encoding == stubs.RAW_RGB8 or done.image.nbytes <= _SMALL:
      image = codec.encode(done.image, encoding)
    else:
      image = await self._encoders.call(codec.encode, done.image, encoding)
    name = codec.LOSSLESS[encoding]
    self.metrics.encode_seconds.labels(name).observe(time.monotonic() - start)
    self.metrics.bytes_out.inc(len(image.data))
    return stubs.ImageResponse(
      request_id=request_id,
      image=image,
      sha256=done.sha256,
      seed=done.seed,
      model=self._info.identity,
      truncated=done.truncated,
      timings=stubs.Timings(
        queue_ms=1e3 * done.queue_s,
        compute_ms=1e3 * done.compute_s,
        batch_size=done.batch_size,
        cached=done.cached,
      ),
    )

  @contextlib.asynccontextmanager
  async def _answering(
    self,
    method: str,
    context: grpc.aio.ServicerContext,
    request: Any = None,
    *,
    images: int = 1,
  ) -> AsyncIterator[None]:
    """Counts and logs a call, which asks for so many images; a refusal becomes its status."""
    start = time.monotonic()
    if not self._draining:  # Those that come later are not waited for.
      self._calls += 1
      self._quiet.clear()
      context.add_done_callback(self._answered)
    try:
      self._rates.take(security.client_of(context), images)
      yield
    except Refused as refused:
      self._count(method, refused)
      telemetry.log_call(_LOG, method, request, refused.reason.name, start)
      await context.abort(RULES[refused.reason].code, refused.message, refused.metadata)
    except asyncio.CancelledError:
      self.metrics.requests.labels(method, "CANCELLED", "").inc()
      raise
    self.metrics.requests.labels(method, "OK", "").inc()
    telemetry.log_call(_LOG, method, request, "", start)

  def _answered(self, *_: Any) -> None:
    self._calls -= 1
    if not self._calls:
      self._quiet.set()

  def _count(self, method: str, refused: Refused) -> None:
    code = RULES[refused.reason].code.name
    self.metrics.requests.labels(method, code, refused.reason.name).inc()

  def _ready(self) -> Info:
    if self._info is None:
      raise Refused(NoImageReason.NOT_READY, "the model is loading")
    return self._info

  def _timeout(self, context: grpc.aio.ServicerContext) -> float:
    remaining = context.time_remaining()
    cap = self._config.limits.max_deadline_s
    return cap if remaining is None else min(remaining, cap)


def _reflect(server: grpc.aio.Server) -> None:
  # Here and not above: an option for people at a shell needs no place in every environment.
  from grpc_reflection.v1alpha import reflection

  names = stubs.SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME
  reflection.enable_server_reflection(names, server, pool=stubs.POOL)


async def serve(
  config: ImagesConfig,
  make_backend: Callable[[], Backend],
  *,
  announce: Callable[[str], None],
) -> None:
  """Serves until SIGTERM or SIGINT, then drains.

  Args:
    config: the `images` section.
    make_backend: loads the model; called once the port is open.
    announce: called with the address when the service is SERVING.

  Raises:
    StartError: it cannot start, and why.
    RuntimeError: it had to stop by a bug of its own.
  """
  stopped = asyncio.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    asyncio.get_running_loop().add_signal_handler(number, stopped.set)
  server = ImageServer(config)
  try:
    address = await server.start()
    warm = asyncio.create_task(server.warm_up(make_backend))
    stop = asyncio.create_task(stopped.wait())
    broken = asyncio.create_task(server.broken.wait())
    await asyncio.wait({warm, stop}, return_when=asyncio.FIRST_COMPLETED)
    if warm.done():
      warm.result()
      announce(address)
    await asyncio.wait({stop, broken}, return_when=asyncio.FIRST_COMPLETED)
    _LOG.info("draining for at most %.0f s", config.drain_s)
  finally:  # Also if it could not start: gRPC complains at length of a server that was not stopped.
    await server.drain(config.drain_s)
  if broken.done():
    raise RuntimeError("the batcher ended; its error is in the log")
