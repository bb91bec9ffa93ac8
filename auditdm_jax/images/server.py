# SPDX-License-Identifier: Apache-2.0
"""The server: an asyncio front over the batcher, grpc.health.v1, and a graceful end."""

import asyncio
from collections.abc import Callable
import ipaddress
import logging
import signal
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from auditdm_jax.images import stubs, validate
from auditdm_jax.images.backend import Backend, Job
from auditdm_jax.images.batcher import Batcher, Done
from auditdm_jax.images.config import ImagesConfig
from auditdm_jax.images.failures import REASON_KEY, RULES, Reason, Refused

_LOG = logging.getLogger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_HEADROOM = 1 << 16  # bytes of a message that are not pixels


class StartError(RuntimeError):
  """The service cannot start: the port is taken, or the warm-up image failed."""


class ImageServer:
  """One backend behind one port. The port opens at once; calls are refused until warmed up."""

  def __init__(self, config: ImagesConfig):
    self._config = config
    self._backend: Backend | None = None
    self._batcher: Batcher | None = None
    self._health = health.aio.HealthServicer()
    max_bytes = 3 * config.limits.max_pixels + 4 * config.limits.max_prompt_chars + _HEADROOM
    self._server = grpc.aio.server(
      options=[
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", max_bytes),
        # Above a few thousand waiting calls gRPC's core would say CANCELLED; the queue says why.
        ("grpc.server.max_pending_requests", 20_000),
        ("grpc.server.max_pending_requests_hard_limit", 20_000),
        # Else a second server on the port would start in silence and take half of the calls.
        ("grpc.so_reuseport", 0),
      ]
    )

  async def start(self) -> str:
    """Opens the port and returns the address; raises StartError if it is taken."""
    methods = {"Generate": self._generate, "Edit": self._edit, "GetModelInfo": self._info}
    self._server.add_generic_rpc_handlers((stubs.handlers(methods),))
    health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
    await self._set_health(_NOT_SERVING)
    host = self._config.host
    try:
      port = self._server.add_insecure_port(f"{host}:{self._config.port}")
    except RuntimeError as error:
      raise StartError(f"cannot listen on {host}:{self._config.port}: {error}") from None
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
      _LOG.warning("listening on %s without encryption: keep to a private network", host)
    await self._server.start()
    return f"{host}:{port}"

  async def warm_up(self, make_backend: Callable[[], Backend]) -> None:
    """Loads the backend and makes a first image, then reports SERVING."""
    self._backend = await asyncio.to_thread(make_backend)
    batcher = Batcher(self._backend, self._config.batching, self._config.limits)
    batcher.start()
    job = Job("warm-up", "warm-up", 0, self._config.width, self._config.height)
    try:
      await batcher.submit(job, timeout_s=float("inf"))
    except Refused as refused:
      # That the words mean nothing to the backend is fine: it has run.
      if refused.reason is not Reason.INVALID_INSTRUCTION:
        raise StartError(f"the warm-up image failed: {refused.message}") from None
    self._batcher = batcher
    await self._set_health(_SERVING)

  async def drain(self, grace_s: float) -> None:
    """Refuses new calls, finishes those under way within the grace, closes the port."""
    await self._set_health(_NOT_SERVING)
    if self._batcher is not None:
      await self._batcher.drain(grace_s)
    await self._server.stop(grace=1.0)

  async def _set_health(self, status: Any) -> None:
    await self._health.set("", status)
    await self._health.set(stubs.SERVICE.full_name, status)

  async def _generate(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
    return await self._answer(validate.generate_job, request, context)

  async def _edit(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
    return await self._answer(validate.edit_job, request, context)

  async def _answer(self, to_job: Callable, request: Any, context: grpc.aio.ServicerContext) -> Any:
    try:
      job = to_job(request, self._config.limits)
      done = await self._ready().submit(job, timeout_s=self._timeout(context))
    except Refused as refused:
      await _abort(context, refused)
    return _response(job, done)

  async def _info(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
    del request
    try:
      self._ready()
    except Refused as refused:
      await _abort(context, refused)
    limits = self._config.limits
    return stubs.ModelInfo(
      properties={k: str(v) for k, v in self._backend.info().items()},
      max_prompt_chars=limits.max_prompt_chars,
      max_pixels=limits.max_pixels,
      max_batch=self._config.batching.max_batch,
    )

  def _ready(self) -> Batcher:
    if self._batcher is None:
      raise Refused(Reason.NOT_READY, "the model is loading")
    return self._batcher

  def _timeout(self, context: grpc.aio.ServicerContext) -> float:
    remaining = context.time_remaining()
    cap = self._config.limits.max_deadline_s
    return cap if remaining is None else min(remaining, cap)


async def _abort(context: grpc.aio.ServicerContext, refused: Refused) -> None:
  metadata = ((REASON_KEY, refused.reason.name),)
  await context.abort(RULES[refused.reason].code, refused.message, metadata)


def _response(job: Job, done: Done) -> Any:
  return stubs.ImageResponse(
    request_id=job.request_id,
    image=validate.encode(done.image),
    sha256=done.sha256,
    seed=job.seed,
    timings=stubs.Timings(
      queue_ms=1e3 * done.queue_s,
      compute_ms=1e3 * done.compute_s,
      batch_size=done.batch_size,
      cached=done.cached,
    ),
  )


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
    StartError: the port is taken, or the warm-up image failed.
  """
  stopped = asyncio.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    asyncio.get_running_loop().add_signal_handler(number, stopped.set)
  server = ImageServer(config)
  address = await server.start()
  warm = asyncio.create_task(server.warm_up(make_backend))
  stop = asyncio.create_task(stopped.wait())
  await asyncio.wait({warm, stop}, return_when=asyncio.FIRST_COMPLETED)
  if warm.done():
    warm.result()
    announce(address)
  await stop
  _LOG.info("draining for at most %.0f s", config.drain_s)
  await server.drain(config.drain_s)
