# SPDX-License-Identifier: Apache-2.0
"""From the JSON of a chat completion to a Reply, whatever a server puts into it."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any, Literal

from auditdm_jax.endpoints.failures import Denied, Fault, Reason, from_status, one_line

Finish = Literal["stop", "length", "refusal", "filter", "other", "failed"]

# "eos" is what some backends call a stop; without a reason the answer counts as whole.
_FINISH: dict[str | None, Finish] = {
  "stop": "stop",
  "eos": "stop",
  None: "stop",
  "length": "length",
  "content_filter": "filter",
}
_MAX_TEXT = 1 << 16  # characters
_MAX_LOGPROB = 1e6  # Of a token that cannot be, some servers say -9999.


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
  """Tokens of one answer; None is unknown, and so is the 0 that proxies fill in."""

  prompt: int | None = None
  completion: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
  """What came of one question: a text or a reason, never both and never neither.

  Attributes:
    text: the answer as it was said; None is "no answer".
    finish: how it ended. "length" was cut; "refusal" and "filter" have no text, nor has "failed".
    failure: why there is no answer.
    usage: its tokens.
    detail: what was said in place of an answer, one line; for people, never to be compared.
    origin: the model and build that the endpoint says has answered.
    logprob: log-probability of the text; None unless `ask.extra` asks for it by `logprobs`.
  """

  text: str | None
  finish: Finish
  failure: Reason | None = None
  usage: Usage = Usage()
  detail: str = ""
  origin: str = ""
  logprob: float | None = None


def no_answer(fault: Fault) -> Reply:
  """Returns the reply of a question that is given up."""
  filtered = fault.reason in (Reason.FILTERED, Reason.FORBIDDEN)
  finish = "filter" if filtered else "failed"
  return Reply(None, finish, fault.reason, detail=fault.detail)


def decode(body: bytes) -> dict[str, Any]:
  """Returns the JSON object of a body with status 200.

  Raises:
    Fault: it is something else: HTML, half an object, a stream of events, nothing.
    Denied: it is an error object that means a wrong key or name.
  """
  try:
    found = json.loads(body)
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    begins = one_line(body[:200].decode("utf-8", "replace"), 60)
    raise Fault(Reason.NOT_JSON, f"begins with {begins!r}" if body else "an empty body")
  error = found.get("error")
  if error and not found.get("choices"):
    raise _error_of(error)
  return found


def read(answer: Mapping[str, Any]) -> Reply:
  """Returns the reply of a chat completion.

  The sort of JSON is checked here: the client library builds its objects of anything.

  Raises:
    Fault: there is no choice, no message or no text in it.
  """
  choices = answer.get("choices")
  first = choices[0] if isinstance(choices, list) and choices else None
  message = first.get("message") if isinstance(first, dict) else None
  if not isinstance(first, dict) or not isinstance(message, dict):
    raise Fault(Reason.NO_CHOICE, "no choices" if not first else "no message")
  said, reason = _text(message.get("content")), first.get("finish_reason")
  finish = _FINISH.get(reason, "other") if reason is None or isinstance(reason, str) else "other"
  about: dict[str, Any] = {"usage": _usage(answer.get("usage")), "origin": _origin(answer)}
  refusal = message.get("refusal")
  if isinstance(refusal, str) and refusal:
    return Reply(None, "refusal", Reason.REFUSED, detail=one_line(refusal), **about)
  if finish == "filter":
    return Reply(None, "filter", Reason.FILTERED, detail=one_line(said or ""), **about)
  if said is None and finish == "length":  # All of it went into thinking.
    return Reply(None, "length", Reason.CUT, **about)
  if said is None:
    raise Fault(Reason.NO_CHOICE, f"no text, finish_reason {one_line(repr(reason), 40)}")
  if len(said) > _MAX_TEXT:
    return Reply(None, "failed", Reason.TOO_LARGE, detail=f"{len(said)} characters", **about)
  return Reply(said, finish, logprob=_logprob(first.get("logprobs")), **about)


def _error_of(error: object) -> Fault | Denied:
  """Some proxies put an error of their backend into an answer with status 200."""
  message: object = error
  if isinstance(error, dict):
    message, code = error.get("message", error), str(error.get("code"))
    status = int(code) if code.isdecimal() and len(code) == 3 else 0
    if status >= 400 or error.get("code"):
      return from_status(status if status >= 400 else 500, one_line(message), code=code)
  return Fault(Reason.NO_CHOICE, f"an error with status 200: {one_line(message)}")


def _text(content: object) -> str | None:
  """Returns the text of a message, which may come in parts."""
  if isinstance(content, list):
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    content = "".join(part for part in parts if isinstance(part, str)) if parts else None
  if not isinstance(content, str):
    return None
  return content.encode("utf-8", "replace").decode()  # Half surrogates can be written nowhere.


def _usage(usage: object) -> Usage:
  if not isinstance(usage, dict):
    return Usage()
  return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _logprob(logprobs: object) -> float | None:
  """Returns the sum over the tokens, which have to say theirs."""
  tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
  if not isinstance(tokens, list) or not tokens:
    return None
  each = [token.get("logprob") if isinstance(token, dict) else None for token in tokens]
  found = [float(x) for x in each if isinstance(x, int | float) and abs(x) < _MAX_LOGPROB]
  return sum(found) if len(found) == len(each) else None


def _count(value: object) -> int | None:
  if not isinstance(value, int) or isinstance(value, bool):
    return None
  return value if 0 < value < 1 << 40 else None


def _origin(answer: Mapping[str, Any]) -> str:
  said = (answer.get("model"), answer.get("system_fingerprint"))
  return one_line(" ".join(part for part in said if isinstance(part, str)), 200)
