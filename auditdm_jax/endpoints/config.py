# SPDX-License-Identifier: Apache-2.0
"""What an endpoint is called, how it is asked, what it may cost, and where its key is."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any, Literal
import urllib.parse

from auditdm_jax.core.config import UserError, check
from auditdm_jax.core.jsonio import canonical_hash

# Keys of a request that are not for `extra`: they are set here, or must not be set at all.
_OWN = (
  "model",
  "messages",
  "max_tokens",
  "max_completion_tokens",
  "temperature",
  "seed",
  "n",
  "stream",
)


@dataclasses.dataclass(frozen=True)
class PictureConfig:
  """How a picture is sent.

  Attributes:
    size: side of the square that pictures are squeezed to, best the side of the model's tower:
      servers pad or crop what is not square, each in its own way. 0 = sent as they are.
    resample: Pillow's filter of the squeezing, as the checkpoint's own processor has it.
    format: "png" keeps every pixel; "jpeg" (quality 95, no chroma subsampling) is smaller.
  """

  size: int = 0
  resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
  format: Literal["png", "jpeg"] = "png"

  def __post_init__(self):
    check(vars(self), "endpoint.pictures", "size", least=0, most=8192)


@dataclasses.dataclass(frozen=True)
class AskConfig:
  """What goes into a request in addition to the picture and the question.

  Attributes:
    system: an instruction that goes with every question; "" = none.
    system_role: "system" sends it as a turn of its own, "user" before the question in one text, for
      templates without a system turn.
    temperature: always sent, since servers sample at different temperatures where it is absent.
      None leaves it out, for models that refuse it.
    seed: sent if it is set; servers may ignore it.
    tokens_field: what the endpoint calls the bound of an answer.
    extra: more keys of the request's body, such as {"chat_template_kwargs": {…}}. Some servers
      refuse keys they do not know.
  """

  system: str = ""
  system_role: Literal["system", "user"] = "system"
  temperature: float | None = 0.0
  seed: int | None = None
  tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.temperature is not None:
      check(vars(self), "endpoint.ask", "temperature", least=0, most=2)
    if own := [key for key in self.extra if key in _OWN]:
      raise UserError(f"endpoint.ask.extra.{own[0]}: not an extra key; it is set by other keys")


@dataclasses.dataclass(frozen=True)
class LimitConfig:
  """How long and how often an endpoint is asked.

  Attributes:
    concurrency: requests under way at the same time.
    timeout_s: seconds for one try.
    deadline_s: seconds for all tries of one question. Waits for a free slot, for Retry-After and
      for an endpoint that is down are not counted, here as in `timeout_s`.
    retries: further tries of a question after its first.
    outage_s: how long to wait for an endpoint that has stopped to answer.
    max_requests: requests that may be sent, further tries and those of earlier runs that are in
      the cache included; 0 = no bound. What is under way is finished.
    max_tokens: the same bound on tokens of prompts and answers. Where an answer comes without a
      count, the bytes of the prompt and the bound of the answer are counted.
  """

  concurrency: int = 8
  timeout_s: float = 60.0
  deadline_s: float = 180.0
  retries: int = 3
  outage_s: float = 600.0
  max_requests: int = 0
  max_tokens: int = 0

  def __post_init__(self):
    where = "endpoint.limits"
    check(vars(self), where, "concurrency", least=1, most=1024)
    check(vars(self), where, "timeout_s", "deadline_s", above=0)
    check(vars(self), where, "retries", "outage_s", "max_requests", "max_tokens", least=0)


@dataclasses.dataclass(frozen=True)
class Price:
  """What an endpoint charges for a million tokens, in any currency."""

  prompt: float
  completion: float

  def __post_init__(self):
    check(vars(self), "endpoint.price", least=0)


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """One model behind an OpenAI-compatible endpoint.

  Attributes:
    base_url: the address up to its version, such as http://127.0.0.1:8000/v1.
    model: the model's name there.
    revision: your label of its weights. Answers are kept per label: change it when the weights
      behind the name change.
    key_file: file with the key in one line; "" = none.
    key_env: environment variable with the key; "" = none.
    pictures: how pictures are sent.
    ask: how questions are put.
    limits: how long, how often and how much.
    price: per million tokens, if costs are to be shown.
  """

  base_url: str
  model: str
  revision: str = ""
  key_file: str = ""
  key_env: str = ""
  pictures: PictureConfig = PictureConfig()
  ask: AskConfig = AskConfig()
  limits: LimitConfig = LimitConfig()
  price: Price | None = None

  def __post_init__(self):
    try:
      parts = urllib.parse.urlsplit(self.base_url)
      sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
      sound, parts = False, urllib.parse.urlsplit("")
    if parts.username is not None or parts.query or parts.fragment:
      # Not quoted here: it may hold a key.
      raise UserError(
        "endpoint.base_url: has a user, a query or a fragment; a key goes into key_file or key_env"
      )
    if not sound or not (self.base_url.isascii() and self.base_url.isprintable()):
      raise UserError(
        f"endpoint.base_url: {self.base_url!r} is not an address such as http://127.0.0.1:8000/v1"
      )
    if not self.model:
      raise UserError("endpoint.model: empty; the endpoint's /models lists the names")
    if self.key_file and self.key_env:
      raise UserError("endpoint.key_file and endpoint.key_env are both set: one key, one place")

  @property
  def named(self) -> dict[str, str]:
    """What says which model it is: address, name and revision."""
    return {
      "base_url": self.base_url.rstrip("/"),
      "model": self.model,
      "revision": self.revision,
    }

  @property
  def identity(self) -> str:
    """Hash of `named`: two endpoints of one identity are one model."""
    return canonical_hash(self.named)


class Secret:
  """A key, which shows itself only to who asks by name."""

  def __init__(self, value: str):
    self._value = value

  def __repr__(self) -> str:
    return "Secret(…)" if self._value else "Secret()"

  def reveal(self) -> str:
    """Returns the key; "" if there is none."""
    return self._value

  def scrub(self, text: str) -> str:
    """Returns the text without the key: servers quote the requests they complain about."""
    return text.replace(self._value, "***") if self._value else text


def read_key(config: EndpointConfig) -> Secret:
  """Reads the key from its file or variable.

  Raises:
    UserError: it is not there, or is not one line of printable ASCII.
  """
  if config.key_file:
    where = f"endpoint.key_file: {config.key_file}"
    try:
      value = pathlib.Path(config.key_file).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
      raise UserError(f"{where} cannot be read: {type(e).__name__}") from e
  elif config.key_env:
    where, value = f"endpoint.key_env: {config.key_env}", os.environ.get(config.key_env, "").strip()
  else:
    return Secret("")
  if not value:
    raise UserError(f"{where} is empty or not set")
  if not (value.isascii() and value.isprintable() and " " not in value):
    raise UserError(f"{where} is not one word of printable ASCII")
  return Secret(value)
