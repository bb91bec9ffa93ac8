# SPDX-License-Identifier: Apache-2.0
"""What a request may say: the part of OpenAI's chat completions that this server can do.

A setting that would change the answer and is not supported is refused rather than ignored, unless
it is given the value that changes nothing. Settings that are about accounts are ignored.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from auditdm_jax.core.config import did_you_mean
from auditdm_jax.serving.errors import ApiError, invalid

# The values of unsupported settings that change nothing; null and leaving it out are others.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "n": (1,),
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "repetition_penalty": (1,),
  "logit_bias": ({},),
  "logprobs": (False,),
  "top_logprobs": (0,),
  "response_format": ({"type": "text"},),
  "modalities": (["text"],),
  "tools": ([],),
  "tool_choice": ("none", "auto"),
  "functions": ([],),
  "function_call": ("none", "auto"),
}
_MAX_STOPS = 4  # OpenAI's.
_MAX_STOP_CHARS = 256
_MAX_MESSAGES = 256
_MAX_PARTS = 256


class _Strict(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Strict):
  type: Literal["text"]
  text: str


class ImageUrl(_Strict):
  url: str
  detail: str | None = None


class ImagePart(_Strict):
  type: Literal["image_url"]
  image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
# By the kind of the value, so that an error is about the kind that was meant.
_ONE, _MANY = "a string", "a list"
_Kind = Discriminator(lambda value: _ONE if isinstance(value, str) else _MANY)
Content = Annotated[
  Annotated[str, Tag(_ONE)] | Annotated[list[Part], Tag(_MANY), Field(max_length=_MAX_PARTS)],
  _Kind,
]
Stop = Annotated[
  Annotated[str, Tag(_ONE)] | Annotated[list[str], Tag(_MANY), Field(max_length=_MAX_STOPS)], _Kind
]


class Message(_Strict):
  """One turn; what else a client repeats of an earlier answer is ignored."""

  role: Literal["system", "developer", "user", "assistant"]
  content: Content

  @property
  def parts(self) -> list[TextPart | ImagePart]:
    """Its content; a string is one part."""
    if isinstance(self.content, str):
      return [TextPart(type="text", text=self.content)]
    return self.content


class StreamOptions(_Strict):
  include_usage: bool | None = None
  include_obfuscation: bool | None = None


class ChatRequest(_Strict):
  """The body of POST /v1/chat/completions."""

  model_config = pydantic.ConfigDict(extra="forbid")

  model: str
  messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
  temperature: float | None = Field(None, ge=0, le=2)
  top_p: float | None = Field(None, gt=0, le=1)
  seed: int | None = Field(None, ge=-(1 << 31), lt=1 << 31)
  stop: Stop | None = None
  max_tokens: int | None = Field(None, ge=1)
  max_completion_tokens: int | None = Field(None, ge=1)
  stream: bool | None = None
  stream_options: StreamOptions | None = None

  n: Any = None
  frequency_penalty: Any = None
  presence_penalty: Any = None
  repetition_penalty: Any = None
  logit_bias: Any = None
  logprobs: Any = None
  top_logprobs: Any = None
  response_format: Any = None
  modalities: Any = None
  tools: Any = None
  tool_choice: Any = None
  functions: Any = None
  function_call: Any = None

  metadata: Any = None
  parallel_tool_calls: Any = None
  prompt_cache_key: Any = None
  prompt_cache_retention: Any = None
  safety_identifier: Any = None
  service_tier: Any = None
  store: Any = None
  user: Any = None

  @pydantic.field_validator(*_NEUTRAL)
  @classmethod
  def _check_neutral(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
    neutral = _NEUTRAL[str(info.field_name)]
    if value is not None and value not in neutral:
      raise ValueError(f"this server only takes {' or '.join(map(repr, neutral))}")
    return value

  @pydantic.field_validator("stop")
  @classmethod
  def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
    stops = [value] if isinstance(value, str) else value or []
    if not all(0 < len(stop) <= _MAX_STOP_CHARS for stop in stops):
      raise ValueError(f"strings of 1 to {_MAX_STOP_CHARS} characters are expected")
    return value

  @pydantic.model_validator(mode="after")
  def _check_together(self) -> "ChatRequest":
    # A greedy answer is the same whatever the rest of the distribution.
    if self.temperature and self.top_p not in (None, 1):
      raise ValueError(f"top_p {self.top_p}: this server samples from the whole distribution")
    return self

  @property
  def stops(self) -> tuple[str, ...]:
    """What ends the answer besides the model's own terminators."""
    return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

  @property
  def longest(self) -> int | None:
    """Tokens that are asked for; the newer name goes before the older one."""
    return self.max_completion_tokens or self.max_tokens

  @property
  def includes_usage(self) -> bool:
    """Whether a stream ends with what it took."""
    return bool(self.stream_options and self.stream_options.include_usage)


def parse(body: bytes | bytearray) -> ChatRequest:
  """Reads a request.

  Raises:
    ApiError: it is not JSON, or says something that this server cannot do.
  """
  try:
    return ChatRequest.model_validate_json(body)
  except pydantic.ValidationError as error:
    raise _explained(error) from None


def _explained(error: pydantic.ValidationError) -> ApiError:
  # The deepest of several errors is about the kind of value that was meant.
  found = error.errors(include_url=False, include_context=False, include_input=False)
  worst = max(found, key=lambda e: len(e["loc"]))
  said = worst["msg"].removeprefix("Value error, ")
  if worst["type"] == "json_invalid":
    return invalid(f"the body is not JSON: {said}")
  param = _param(worst["loc"])
  if worst["type"] == "extra_forbidden":
    hint = did_you_mean(str(param), ChatRequest.model_fields)
    return invalid(f"unknown parameter {param!r}{hint}", param=param, code="unknown_parameter")
  code = "unsupported_value" if param in _NEUTRAL else "invalid_value"
  return invalid(f"{param}: {said}" if param else said, param=param, code=code)


def _param(place: tuple[int | str, ...]) -> str | None:
  """Returns the path of a value in the request, without pydantic's names of the alternatives."""
  names = [str(x) for x in place if x not in (_ONE, _MANY)]
  if names[:1] == ["messages"] and len(names) > 4:
    del names[4]  # The type of the part.
  return ".".join(names)[:100] or None
