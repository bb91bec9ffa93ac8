# SPDX-License-Identifier: Apache-2.0
"""One request with the openai client: its answer bounded, its errors named, the key kept out.

The client's own retries are off. They are decided by status alone, and a Retry-After of up to two
minutes would be waited for inside the call, outside its timeout.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
import logging
from typing import Any

import httpx2
import openai
from openai.types.chat import (
  ChatCompletionContentPartParam,
  ChatCompletionMessageParam,
  ChatCompletionUserMessageParam,
)

from auditdm_jax.endpoints import replies
from auditdm_jax.endpoints.config import EndpointConfig, Secret, read_key
from auditdm_jax.endpoints.failures import (
  Denied,
  Fault,
  Reason,
  from_status,
  one_line,
  retry_after,
)

_MAX_ANSWER = 4 << 20  # bytes
_CONNECT_S = 10.0
# Below the 5 s of uvicorn: a connection that the server is closing must not be used once more.
_KEEP_S = 3.0


class Wire:
  """A client of one endpoint; its methods belong to one event loop.

  Attributes:
    server: the Server header of the last answer.
  """

  def __init__(self, config: EndpointConfig):
    """Reads the key; connects to nothing.

    Raises:
      UserError: the key cannot be read.
    """
    # It reports every request at INFO.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    self._config = config
    self._key = read_key(config)
    self.server = ""
    timeout_s = config.limits.timeout_s
    self._client = openai.AsyncOpenAI(
      # Never the key of the environment's OPENAI_API_KEY, which is for another server.
      api_key=self._key.reveal() or "none",
      base_url=config.base_url,
      max_retries=0,
      http_client=openai.DefaultAsyncHttpxClient(
        timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        # A redirected POST becomes a GET, and the key would go along.
        follow_redirects=False,
        limits=httpx2.Limits(
          max_connections=config.limits.concurrency + 8, keepalive_expiry=_KEEP_S
        ),
        event_hooks={"response": [_bound]},
      ),
      default_headers={"Accept-Encoding": "identity"},
    )

  @property
  def key(self) -> Secret:
    """The key, to scrub texts with."""
    return self._key

  async def close(self) -> None:
    """Closes all connections."""
    await self._client.close()

  async def chat(self, prompt: str, picture: str, *, max_tokens: int) -> replies.Reply:
    """Asks once.

    Args:
      prompt: the question.
      picture: a data URL; "" = no picture.
      max_tokens: bound of the answer.

    Raises:
      Fault: no answer came of it.
      Denied: no question will have an answer.
    """
    ask = self._config.ask
    bound = {ask.tokens_field: max_tokens}
    try:
      answer = await self._client.chat.completions.with_raw_response.create(
        model=self._config.model,
        messages=self._messages(prompt, picture),
        temperature=openai.omit if ask.temperature is None else ask.temperature,
        seed=openai.omit if ask.seed is None else ask.seed,
        extra_body={**bound, **ask.extra},
      )
    except openai.APIError as error:
      raise self._meaning(error) from None
    return replies.read(self._object(answer.http_response))

  async def get(self, path: str) -> Mapping[str, Any]:
    """Returns the JSON object at a path below base_url, or at a whole address.

    Raises:
      Fault: there is none.
      Denied: it is not for this key, or not there.
    """
    try:
      return self._object(await self._client.get(path, cast_to=httpx2.Response))
    except openai.APIError as error:
      raise self._meaning(error) from None

  def _messages(self, prompt: str, picture: str) -> Sequence[ChatCompletionMessageParam]:
    """Returns one text part per message: templates trim the parts and join them without a blank."""
    ask = self._config.ask
    if ask.system and ask.system_role == "user":
      prompt = f"{ask.system}\n\n{prompt}"
    # What JSON allows and UTF-8 does not would fail in the client.
    prompt = prompt.encode("utf-8", "replace").decode()
    user: ChatCompletionUserMessageParam = {"role": "user", "content": prompt}
    if picture:
      parts: list[ChatCompletionContentPartParam] = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": prompt},
      ]
      user = {"role": "user", "content": parts}
    if ask.system and ask.system_role == "system":
      return [{"role": "system", "content": ask.system}, user]
    return [user]

  def _object(self, response: httpx2.Response) -> Mapping[str, Any]:
    """Returns the body's JSON object, without the key should the server have quoted it."""
    self.server = self._clean(response.headers.get("server", ""))
    try:
      found = replies.decode(response.content)
    except (Fault, Denied) as error:
      raise self._cleaned(error) from None
    try:
      return _scrubbed(found, self._key)
    except RecursionError:
      raise Fault(Reason.NOT_JSON, "nested too deeply") from None

  def _meaning(self, error: openai.APIError) -> Fault | Denied:
    if isinstance(error, openai.APIStatusError):
      headers = error.response.headers
      said = error.body.get("message") if isinstance(error.body, dict) else error.body
      if error.status_code < 400:
        said = f"redirects to {headers.get('location')}; give that as base_url"
      return from_status(
        error.status_code,
        self._clean(str(said or "")),
        code=error.code or "",
        wait_s=retry_after(headers),
      )
    if isinstance(error, openai.APITimeoutError):
      return Fault(Reason.TIMEOUT)
    cause = error.__cause__
    if isinstance(cause, _TooLarge):
      return Fault(Reason.TOO_LARGE, str(cause))
    return Fault(Reason.CONNECTION, self._clean(f"{type(cause).__name__}: {cause}"))

  def _cleaned(self, error: Fault | Denied) -> Fault | Denied:
    error.detail = self._clean(error.detail)
    return error

  def _clean(self, text: str) -> str:
    return one_line(self._key.scrub(text))


class _TooLarge(httpx2.ReadError):
  """More bytes than an answer can have; the client passes it on as a connection that broke."""


class _Bounded(httpx2.AsyncByteStream):
  """A body that ends with an error when it has become too long."""

  def __init__(self, stream: httpx2.AsyncByteStream):
    self._stream = stream

  async def __aiter__(self) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in self._stream:
      size += len(chunk)
      if size > _MAX_ANSWER:
        raise _TooLarge(f"more than {_MAX_ANSWER} bytes")
      yield chunk

  async def aclose(self) -> None:
    await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
  """Bounds a body before it is read."""
  if response.headers.get("content-encoding", "identity") != "identity":
    # Not asked for, and a few kB can unpack to more than the memory holds.
    raise _TooLarge("a compressed answer")
  assert isinstance(response.stream, httpx2.AsyncByteStream)
  response.stream = _Bounded(response.stream)


def _scrubbed(value: Any, key: Secret) -> Any:
  """Returns JSON with the key taken out of every string."""
  if not key.reveal():
    return value
  if isinstance(value, str):
    return key.scrub(value)
  if isinstance(value, list):
    return [_scrubbed(v, key) for v in value]
  if isinstance(value, dict):
    return {key.scrub(k): _scrubbed(v, key) for k, v in value.items()}
  return value
