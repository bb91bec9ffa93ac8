# SPDX-License-Identifier: Apache-2.0
"""From messages to jobs; everything that can be refused before the queue is refused here."""

import dataclasses
import math
from typing import Any
import unicodedata

from auditdm_jax.images import codec, stubs, worker
from auditdm_jax.images.backend import Info, Job
from auditdm_jax.images.config import Limits
from auditdm_jax.images.failures import NoImageReason, Refused

_MAX_ID_BYTES = 64
_DECODE_S = 0.5  # After that long there may be room among the sources to decode.


class Validator:
  """Makes jobs; sources are decoded in threads, and those that wait for one are bounded."""

  def __init__(self, limits: Limits):
    self._limits, self._threads = limits, worker.Threads("decoder", 2)
    self._waiting, self._bytes = 0, 0

  def close(self) -> None:
    self._threads.close()

  async def job(self, request: Any, info: Info) -> Job:
    """As `to_job`."""
    if request.DESCRIPTOR.name != "EditRequest" or request.source.encoding == stubs.RAW_RGB8:
      return to_job(request, self._limits, info)
    size = len(request.source.data)
    too_large = self._bytes + size > self._limits.max_queue_mb * 2**20
    if too_large or self._waiting >= self._limits.max_queue:
      raise Refused(
        NoImageReason.QUEUE_FULL, "too many sources wait to be decoded", retry_s=_DECODE_S
      )
    self._waiting, self._bytes = self._waiting + 1, self._bytes + size
    try:
      return await self._threads.call(to_job, request, self._limits, info)
    finally:
      self._waiting, self._bytes = self._waiting - 1, self._bytes - size


def to_job(request: Any, limits: Limits, info: Info) -> Job:
  """Returns a GenerateRequest or EditRequest as a job, its source decoded; raises Refused."""
  editing = request.DESCRIPTOR.name == "EditRequest"
  _check_identity(request)
  if request.options.encoding not in {0, *codec.LOSSLESS}:
    raise _invalid("answers are lossless: RAW_RGB8, PNG or WEBP_LOSSLESS")
  size = request.source if editing else request
  text = request.instruction if editing else request.prompt
  sham = editing and request.sham
  _check_mode("sham" if sham else "edit" if editing else "generate", info)
  if not sham:
    text = _checked_text(text, limits)
  elif text:
    raise _invalid("a sham has no instruction")
  steps, guidance, negative = _checked_options(request.options, limits, info)
  job = dict(steps=steps, guidance=guidance, negative=negative, sham=sham)
  # Where rows do not depend on their number every image is deterministic, and all share batches.
  deterministic = request.options.deterministic and bool(info.batch_sizes)
  _check_size(size.width, size.height, steps, limits, info)
  source = codec.decode(request.source, max_pixels=limits.max_pixels) if editing else None
  return Job(
    request.request_id,
    text,
    request.seed,
    size.width,
    size.height,
    source,
    deterministic=deterministic,
    **job,
  )


def _invalid(message: str) -> Refused:
  return Refused(NoImageReason.INVALID_REQUEST, message)


def checked_id(request: Any) -> str:
  """Returns the id of a request; raises Refused if there is none or it is too long to be one."""
  if not 0 < len(request.request_id.encode()) <= _MAX_ID_BYTES:
    raise _invalid(f"request_id must have 1 to {_MAX_ID_BYTES} bytes")
  return request.request_id


def _check_identity(request: Any) -> None:
  checked_id(request)
  if not request.HasField("seed"):
    raise _invalid("no seed: the same request must give the same image")


def _check_mode(mode: str, info: Info) -> None:
  if mode not in info.modes:
    raise Refused(NoImageReason.UNSUPPORTED, f"{info.name} does not {mode}")


def _check_size(width: int, height: int, steps: int, limits: Limits, info: Info) -> None:
  most = min(limits.max_pixels, info.max_pixels)
  if not 0 < width * height <= most:
    raise _invalid(f"{width}x{height} pixels are not between 1 and {most}")
  if width * height * max(steps, 1) > limits.max_cost:
    raise _invalid(f"{width}x{height} pixels x {steps} steps are more than {limits.max_cost}")
  taken = taken_sizes(info, limits)
  if min(width, height) < taken.min_side or max(width, height) > taken.max_side:
    bounds = f"{taken.min_side} to {taken.max_side}"
    raise _invalid(f"sides must have {bounds} pixels, not {width}x{height}")
  if info.sizes and (width, height) not in info.sizes:
    sizes = ", ".join(f"{w}x{h}" for w, h in info.sizes)
    raise _invalid(f"{info.name} draws {sizes}, not {width}x{height}")
  if width % info.multiple or height % info.multiple:
    # Pipelines round such sizes, in silence.
    raise _invalid(f"sides must be multiples of {info.multiple}, not {width}x{height}")


def _checked_options(options: Any, limits: Limits, info: Info) -> tuple[int, float | None, str]:
  if options.steps > limits.max_steps:
    raise _invalid(f"{options.steps} steps, at most {limits.max_steps}")
  if options.steps and not info.steps:
    raise Refused(NoImageReason.UNSUPPORTED, f"{info.name} has no steps to choose")
  guidance = options.guidance if options.HasField("guidance") else info.guidance
  if guidance is not None and info.guidance is None:
    raise Refused(NoImageReason.UNSUPPORTED, f"{info.name} has no guidance to choose")
  if guidance is not None and not (math.isfinite(guidance) and 0 <= guidance <= 100):
    raise _invalid(f"guidance {guidance} is not between 0 and 100")
  negative = options.negative_prompt
  if negative and not info.negative:
    raise Refused(NoImageReason.UNSUPPORTED, f"{info.name} takes no negative prompt")
  if negative:
    negative = _checked_text(negative, limits)
  return options.steps or info.steps, guidance, negative


def _checked_text(text: str, limits: Limits) -> str:
  """The text as it is: refused rather than cut or cleaned, so that it says what is drawn."""
  if not text.strip():
    raise Refused(NoImageReason.INVALID_PROMPT, "the text is empty")
  if len(text) > limits.max_prompt_chars:
    raise Refused(
      NoImageReason.INVALID_PROMPT, f"{len(text)} characters, at most {limits.max_prompt_chars}"
    )
  if any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text):
    raise Refused(NoImageReason.INVALID_PROMPT, "control characters")
  return text


def request_of(item: Any) -> Any:
  """Returns the GenerateRequest or EditRequest of an Item; raises Refused if it has neither."""
  kind = item.WhichOneof("request")
  if kind is None:
    raise _invalid("an item without a request")
  return item.generate if kind == "generate" else item.edit


def taken_sizes(info: Info, limits: Limits) -> Info:
  """What a backend takes within the limits of its server, of requests with the default steps."""
  return dataclasses.replace(
    info,
    min_side=max(info.min_side, limits.min_side),
    max_side=min(info.max_side, limits.max_side),
    max_pixels=min(info.max_pixels, limits.max_pixels, limits.max_cost // max(info.steps, 1)),
  )


def info_message(info: Info, limits: Limits, max_batch: int) -> Any:
  """Info as a ModelInfo message."""
  taken = taken_sizes(info, limits)
  message = stubs.ModelInfo(
    properties=dict(info.properties),
    max_prompt_chars=limits.max_prompt_chars,
    max_pixels=taken.max_pixels,
    min_side=taken.min_side,
    max_side=taken.max_side,
    max_batch=max_batch,
    name=info.name,
    revision=info.revision,
    identity=info.identity,
    modes=info.modes,
    steps=info.steps,
    sizes=[stubs.Size(width=w, height=h) for w, h in info.sizes],
    multiple=info.multiple,
    exact=info.exact,
  )
  if info.guidance is not None:
    message.guidance = info.guidance
  return message
