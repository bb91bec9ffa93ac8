# SPDX-License-Identifier: Apache-2.0
"""The endpoint over HTTP: routes, key, body limits, and errors in OpenAI's form.

  POST /v1/chat/completions    an answer, as one object or as a stream
  GET  /v1/models              the model; /v1/models/NAME too
  GET  /health                 200 while requests are answered, 503 otherwise; needs no key

An answer is streamed when it is known: whatever can fail has then failed with a status of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
import contextlib
import hmac
import time
from typing import Any, TypeVar
import uuid

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from auditdm_jax.images.worker import Threads
from auditdm_jax.serving import replies
from auditdm_jax.serving.batcher import Batcher, Run, Sharing
from auditdm_jax.serving.errors import ApiError
from auditdm_jax.serving.intake import Asked, Intake

T = TypeVar("T")

_FAILURES = ApiError, ClientDisconnect, HTTPException, Exception
_ROUTES = "POST /v1/chat/completions, GET /v1/models and GET /health"
_BODY_S = 60.0  # A client that sends more slowly is not waited for.
_HELD_BODIES = 8  # Bodies of the largest size that are held at a time, until they are read.
_INTAKE_THREADS = 2
_CLIENT_GONE = 499  # Nobody reads it; nginx's.


class ModelServer:
  """Serves one model.

  Args:
    name: what requests call the model.
    key: the key that requests must have; None = everyone may ask.
    intake: reads requests.
    run: answers a batch, on a thread of its own.
    batching: how requests share the model.
    max_body: most bytes of a request.
  """

  def __init__(
    self,
    name: str,
    *,
    key: str | None,
    intake: Intake,
    run: Run,
    batching: Sharing,
    max_body: int,
  ):
    self._name, self._key = name, None if key is None else f"Bearer {key}".encode()
    self._intake = intake
    self._batcher, self._timeout_s = Batcher(run, batching), batching.timeout_s
    self._max_body, self._held = max_body, 0
    self._created = int(time.time())
    self._threads = Threads("intake", _INTAKE_THREADS)

  def app(self) -> Starlette:
    """Returns the application."""
    return Starlette(
      routes=[
        Route("/v1/chat/completions", self._chat, methods=["POST"]),
        Route("/v1/models", self._models),
        Route("/v1/models/{name:path}", self._model),
        Route("/health", self._health),
      ],
      exception_handlers=dict.fromkeys(_FAILURES, _tell),
      lifespan=self._life,
    )

  @contextlib.asynccontextmanager
  async def _life(self, app: Starlette) -> AsyncIterator[None]:
    del app
    self._batcher.start()
    yield
    self._batcher.close()
    self._threads.close()

  async def _chat(self, request: Request) -> Response:
    self._check_key(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # For any other type a browser asks no leave: any page could send requests to this machine.
    if kind != "application/json":
      raise ApiError(415, f"content-type {kind[:50]!r}: should be application/json")
    self._batcher.check()
    body = await self._body(request)
    try:
      async with asyncio.timeout(self._timeout_s) as deadline:
        asked = await self._read(body, deadline)
        ask = asked.ask
        completion = await _unless_gone(request, self._batcher.submit(ask))
    except TimeoutError:
      raise ApiError(504, f"no answer within {self._timeout_s:g} s", code="timeout") from None
    if completion is None:
      return Response(status_code=_CLIENT_GONE)
    reply = replies.Response(
      f"chatcmpl-{uuid.uuid4().hex}",
      created=int(time.time()),
      model=self._name,
      prompt_tokens=len(ask.ids),
      said=replies.read(self._intake.tokenizer, completion, asked.stops),
      seed=ask.seed if ask.temperature else None,
    )
    if asked.stream:
      events = reply.to_events(usage=asked.includes_usage)
      return StreamingResponse(
        _each(events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
      )
    return JSONResponse(reply.to_json())

  async def _models(self, request: Request) -> Response:
    self._check_key(request)
    return JSONResponse({"object": "list", "data": [self._card()]})

  async def _model(self, request: Request) -> Response:
    self._check_key(request)
    if request.path_params["name"] != self._name:
      raise ApiError(404, f"this server has the model {self._name!r}", code="model_not_found")
    return JSONResponse(self._card())

  async def _health(self, request: Request) -> Response:
    del request
    batcher = self._batcher
    health = {
      "status": "ok" if batcher.is_alive else "failed",
      "model": self._name,
      "queued": batcher.queued,
      "running": batcher.running,
    }
    return JSONResponse(health, 200 if batcher.is_alive else 503)

  def _card(self) -> dict[str, Any]:
    return {
      "id": self._name,
      "object": "model",
      "created": self._created,
      "owned_by": "auditdm_jax",
    }

  def _check_key(self, request: Request) -> None:
    given = request.headers.get("authorization", "").encode()
    # In constant time: how long a comparison takes must not tell how much of it was right.
    if self._key is not None and not hmac.compare_digest(given, self._key):
      raise ApiError(
        401, "no key, or not the right one: Authorization: Bearer KEY", code="invalid_api_key"
      )

  async def _body(self, request: Request) -> bytearray:
    """Returns the body, which is counted as held until it is let go."""
    body = bytearray()
    try:
      await self._fill(body, request)
    except BaseException:
      self._let_go(body)
      raise
    return body

  def _let_go(self, body: bytearray) -> None:
    self._held -= len(body)
    body.clear()

  async def _read(self, body: bytearray, deadline: asyncio.Timeout) -> Asked:
    """Reads a request on a thread, which has the body until it is done, past the deadline too."""
    read = asyncio.ensure_future(self._threads.call(self._read_in_time, body, deadline))

    def done(_: asyncio.Future) -> None:
      self._let_go(body)
      if deadline.expired() and not read.cancelled():
        read.exception()  # Which nobody waits for; asyncio would log that.

    read.add_done_callback(done)
    return await asyncio.shield(read)

  def _read_in_time(self, body: bytearray, deadline: asyncio.Timeout) -> Asked:
    if deadline.expired():
      raise TimeoutError
    return self._intake.read(body)

  async def _fill(self, body: bytearray, request: Request) -> None:
    too_large = ApiError(413, f"a body of more than {self._max_body} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:18]) > self._max_body:
      raise too_large
    try:
      async with asyncio.timeout(_BODY_S):
        async for chunk in request.stream():
          body += chunk
          self._held += len(chunk)
          if len(body) > self._max_body:
            raise too_large
          if self._held > _HELD_BODIES * self._max_body:
            raise ApiError(429, "too many bytes are being read", code="queue_full", retry_s=1.0)
    except TimeoutError:
      raise ApiError(408, f"no whole body within {_BODY_S:g} s", code="timeout") from None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
  """Returns the result of `work`, which is given up when the client leaves; None then."""
  task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
  try:
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    return task.result() if task.done() else None
  finally:
    task.cancel()
    gone.cancel()


async def _gone(request: Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def _each(events: Iterable[str]) -> AsyncIterator[str]:
  for event in events:
    yield event


async def _tell(request: Request, error: Exception) -> Response:
  """Answers with a failure in the form of OpenAI's API."""
  del request
  if isinstance(error, ClientDisconnect):
    return Response(status_code=_CLIENT_GONE)
  if isinstance(error, HTTPException):
    error = ApiError(error.status_code, f"{error.detail}: this server has {_ROUTES}")
  if not isinstance(error, ApiError):  # A bug, of which the log has the traceback.
    error = ApiError(500, "the server failed on this request", code="internal_error")
  return JSONResponse(error.body, error.status, error.headers)
