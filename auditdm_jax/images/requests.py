# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the service, and under which id."""

import dataclasses
import functools
import hashlib
import operator
from typing import Any

import numpy as np

from auditdm_jax.images import codec, stubs
from auditdm_jax.images.fit import Fit, Size


def _unsigned(name: str, value: Any, bits: int) -> int:
  """Returns any library's integer as Python's: equal requests have one digest."""
  number = int(operator.index(value))
  if not 0 <= number < 2**bits:
    raise ValueError(f"{name} is an unsigned {bits}-bit integer, not {number}")
  return number


def _set(frozen: Any, **fields: Any) -> None:
  for name, value in fields.items():
    object.__setattr__(frozen, name, value)


@dataclasses.dataclass(frozen=True)
class Options:
  """How an image is made.

  Attributes:
    steps: 0 = the model's default.
    guidance: None = the model's default.
    negative: what shall not be seen; "" = nothing is said.
    deterministic: bitwise the same image whatever shares its batch.

  Raises:
    ValueError: steps that no message can carry.
  """

  steps: int = 0
  guidance: float | None = None
  negative: str = ""
  deterministic: bool = False

  def __post_init__(self):
    guidance = None if self.guidance is None else float(self.guidance)
    _set(self, steps=_unsigned("steps", self.steps, 32), guidance=guidance)

  def message(self, encoding: int) -> Any:
    return stubs.Options(
      steps=self.steps,
      guidance=self.guidance,
      negative_prompt=self.negative,
      deterministic=self.deterministic,
      encoding=encoding,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Generate:
  """An image from a caption.

  Attributes:
    id: "" = the hash of the request, so that equal requests share one image.

  Raises:
    ValueError: a seed or size that no message can carry: the caller's bug, at once.
  """

  prompt: str
  seed: int
  width: int
  height: int
  options: Options = Options()
  id: str = ""

  def __post_init__(self):
    width, height = _unsigned("width", self.width, 32), _unsigned("height", self.height, 32)
    _set(self, seed=_unsigned("seed", self.seed, 64), width=width, height=height)

  @functools.cached_property
  def digest(self) -> str:
    return _digest("generate", self.prompt, self.seed, self.width, self.height, self.options)

  @property
  def request_id(self) -> str:
    return self.id or self.digest

  @property
  def size(self) -> Size:
    return self.width, self.height

  @property
  def pixels(self) -> int:
    return self.width * self.height

  @property
  def cost(self) -> int:
    return self.pixels * max(self.options.steps, 1)

  def fitted(self, fit: Fit) -> "Generate":
    """Returns the request as the service takes it: what is hashed, cached and sent."""
    return dataclasses.replace(self, width=fit.size[0], height=fit.size[1])

  def message(self, encoding: int) -> Any:
    """Returns a GenerateRequest; raises UnicodeEncodeError."""
    return stubs.GenerateRequest(
      request_id=self.request_id,
      prompt=self.prompt,
      seed=self.seed,
      width=self.width,
      height=self.height,
      options=self.options.message(encoding),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """An image u8[H,W,3] changed by an instruction; otherwise as `Generate`.

  Attributes:
    local: paste only the region that changed into the image, so that the rest is the same.
    sham: change nothing, only encode and decode, as a control; no instruction.

  Raises:
    ValueError: an image of another shape or dtype, or a bad seed.
  """

  image: np.ndarray
  instruction: str
  seed: int
  options: Options = Options()
  id: str = ""
  local: bool = False
  sham: bool = False

  def __post_init__(self):
    image = self.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(f"the source must be uint8[H,W,3], not {image.dtype}{list(image.shape)}")
    _set(self, seed=_unsigned("seed", self.seed, 64), image=np.ascontiguousarray(image))

  @functools.cached_property
  def digest(self) -> str:
    pixels = hashlib.sha256(self.image.data).hexdigest()
    return _digest(
      "sham" if self.sham else "edit",
      self.instruction,
      self.seed,
      self.image.shape,
      pixels,
      self.options,
    )

  @property
  def request_id(self) -> str:
    return self.id or self.digest

  @property
  def size(self) -> Size:
    return self.image.shape[1], self.image.shape[0]

  @property
  def pixels(self) -> int:
    return self.image.shape[0] * self.image.shape[1]

  @property
  def cost(self) -> int:
    return self.pixels * max(self.options.steps, 1)

  def fitted(self, fit: Fit) -> "Edit":
    """Returns the request as the service takes it: what is hashed, cached and sent."""
    return dataclasses.replace(self, image=fit.there(self.image))

  def message(self, encoding: int) -> Any:
    """Returns an EditRequest; raises UnicodeEncodeError."""
    return stubs.EditRequest(
      request_id=self.request_id,
      instruction=self.instruction,
      seed=self.seed,
      source=codec.encode(self.image, encoding),
      options=self.options.message(encoding),
      sham=self.sham,
    )


Request = Generate | Edit


def _digest(*parts: Any) -> str:
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
