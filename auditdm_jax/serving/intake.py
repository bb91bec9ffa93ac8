# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a request to what the model takes; what can be refused is refused here."""

import dataclasses
import secrets

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.serving import schema
from auditdm_jax.serving.chat import Prompter
from auditdm_jax.serving.engine import Ask
from auditdm_jax.serving.errors import ApiError, invalid
from auditdm_jax.serving.pictures import Squarer
from auditdm_jax.serving.schema import ChatRequest, TextPart
from auditdm_jax.vlm import Vlm

_CHARS_PER_TOKEN = 64  # Of text that is longer not every token can be a long one.


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """What one request may ask for.

  Attributes:
    max_tokens: the longest answer. A request for more, or for no number, gets so many.
    max_prompt_tokens: longest prompt, image slots included.
    max_images: most images in one request.
    max_pixels: most pixels of one image as it is sent.
    max_body: most bytes of a request.
  """

  max_tokens: int = 1024
  max_prompt_tokens: int = 8192
  max_images: int = 8
  max_pixels: int = 1 << 25
  max_body: int = 32 << 20


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request as it waits for its answer, without the text and the files that it came as.

  Attributes:
    ask: what the model is asked.
    stops: what ends the answer besides the model's own terminators.
    stream: whether the answer is to be a stream.
    includes_usage: whether a stream ends with what it took.
  """

  ask: Ask
  stops: tuple[str, ...]
  stream: bool
  includes_usage: bool


class Intake:
  """Reads requests for one model; safe for several threads.

  Args:
    vlm: the model.
    name: what requests call it.
    limits: what one request may ask for.

  Attributes:
    tokenizer: the model's.

  Raises:
    UserError: the model has no tokenizer.
  """

  def __init__(self, vlm: Vlm, *, name: str, limits: RequestLimits):
    if vlm.tokenizer is None:
      raise UserError(f"model {vlm.name!r} has no tokenizer: it cannot be asked in words")
    self.tokenizer = vlm.tokenizer
    self._name, self._limits, self._config = name, limits, vlm.config
    vision = vlm.config.vision
    slots = vlm.config.num_image_tokens if vision else None
    self._prompter = Prompter(vlm.tokenizer, vlm.template, slots)
    self._squarer = Squarer(vision.image_size, vlm.pixels, limits.max_pixels) if vision else None

  def read(self, body: bytes | bytearray) -> Asked:
    """Returns what is needed of a request to answer it.

    Raises:
      ApiError: it cannot be answered.
    """
    request = schema.parse(body)
    if request.model != self._name:
      hint = did_you_mean(request.model, [self._name])
      raise ApiError(
        404,
        f"no model {request.model[:100]!r}{hint}: this server has {self._name!r}",
        param="model",
        code="model_not_found",
      )
    self._check_chars(request)
    try:
      prompt = self._prompter.render(request.messages)
    except UserError as error:
      raise invalid(str(error), param="messages") from None
    self._check_ids(prompt.ids)
    if len(prompt.images) > self._limits.max_images:
      raise invalid(
        f"{len(prompt.images)} images, at most {self._limits.max_images}", param="messages"
      )
    squarer = self._squarer
    squares = (
      ()
      if squarer is None
      else tuple(squarer.square(url, name=f"image {i}") for i, url in enumerate(prompt.images))
    )
    temperature = request.temperature or 0.0
    seed = secrets.randbits(31) if request.seed is None else request.seed
    longest = min(request.longest or self._limits.max_tokens, self._limits.max_tokens)
    ask = Ask(prompt.ids, squares, longest, temperature, seed)
    return Asked(ask, request.stops, bool(request.stream), request.includes_usage)

  def _check_chars(self, request: ChatRequest) -> None:
    texts = [p.text for m in request.messages for p in m.parts if isinstance(p, TextPart)]
    if sum(map(len, texts)) > _CHARS_PER_TOKEN * self._limits.max_prompt_tokens:
      raise self._too_long(f"{sum(map(len, texts))} characters")

  def _check_ids(self, ids: tuple[int, ...]) -> None:
    if len(ids) > self._limits.max_prompt_tokens:
      raise self._too_long(f"{len(ids)} tokens")
    rows = self._config.text.vocab_size
    unknown = [i for i in ids if i >= rows and i != self._config.image_token_id]
    if unknown:  # A tokenizer with more tokens than the model.
      raise invalid(f"the model has no token {unknown[0]}, which is in the prompt")

  def _too_long(self, length: str) -> ApiError:
    return invalid(
      f"a prompt of {length}: this server takes {self._limits.max_prompt_tokens} tokens, image"
      " slots included",
      param="messages",
      code="context_length_exceeded",
    )
