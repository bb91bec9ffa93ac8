# SPDX-License-Identifier: Apache-2.0
"""Why a question has no answer, and what follows from each reason.

No reason makes a contradiction: a question without an answer is left out and counted.
"""

from collections.abc import Mapping
import dataclasses
import email.utils
import enum
import math
import time

from auditdm_jax.core.config import TryLater, UserError


class Reason(enum.Enum):
  """Why there is no answer; counted by name."""

  TIMEOUT = "not answered in time"
  CONNECTION = "no connection, or it broke"
  RATE_LIMITED = "told to come back later, for too long"
  SERVER_ERROR = "the endpoint failed"
  REJECTED = "the endpoint does not take this request"
  NOT_JSON = "an answer that is not a JSON object"
  NO_CHOICE = "a JSON object without an answer"
  TOO_LARGE = "an answer above the size limit"
  FORBIDDEN = "HTTP 403 for this question alone"
  REFUSED = "the model refused"
  FILTERED = "a filter stopped the question or the answer"
  CUT = "cut before anything was said"


@dataclasses.dataclass(frozen=True)
class Rule:
  """What follows from a reason.

  Attributes:
    retried: whether to ask again.
    shared: whether the endpoint may be at fault rather than the question: then it is asked
      something else, and if it does not answer that either, everything waits.
    silent: nothing was said at all. That others were answered during the try proves nothing then:
      the endpoint may have stopped after that.
    kept: whether the question is left out by later runs too. What depends on the moment is not.
  """

  retried: bool = False
  shared: bool = False
  silent: bool = False
  kept: bool = True


RULES = {
  Reason.TIMEOUT: Rule(retried=True, shared=True, silent=True, kept=False),
  Reason.CONNECTION: Rule(retried=True, shared=True, silent=True, kept=False),
  Reason.RATE_LIMITED: Rule(kept=False),  # Retried by the clock, see Endpoint.
  Reason.SERVER_ERROR: Rule(retried=True, shared=True),
  Reason.REJECTED: Rule(),
  Reason.NOT_JSON: Rule(retried=True, shared=True),
  Reason.NO_CHOICE: Rule(retried=True, shared=True),
  Reason.TOO_LARGE: Rule(),
  Reason.FORBIDDEN: Rule(shared=True),  # A filter, or the key.
  Reason.REFUSED: Rule(),
  Reason.FILTERED: Rule(),
  Reason.CUT: Rule(),
}

_TIMEOUTS = {408, 504}
_DENIED = {401, 402, 404, 405, 410}
_FAILED = {409, 425}  # In addition to 5xx.
_UNSUPPORTED = {501, 505}
_FILTERS = {"content_filter", "content_policy_violation", "moderation_blocked"}
_NO_QUOTA = "insufficient_quota"  # OpenAI's 429 that no waiting helps.


class Fault(Exception):
  """A try that brought no answer.

  Attributes:
    reason: why.
    detail: what the endpoint said, one bounded line.
    wait_s: when to ask again at the earliest, if the endpoint said so.
  """

  def __init__(self, reason: Reason, detail: str = "", *, wait_s: float | None = None):
    super().__init__(f"{reason.value}{': ' if detail else ''}{detail}")
    self.reason, self.detail, self.wait_s = reason, detail, wait_s


class Denied(Exception):
  """An HTTP status after which no question has a chance: the key, the name or the address."""

  def __init__(self, status: int, detail: str):
    super().__init__(f"HTTP {status}: {detail}")
    self.status, self.detail = status, detail


class EndpointRefused(UserError):
  """The endpoint does not know the key, the model or the address."""


class EndpointDown(TryLater):
  """An endpoint that has answered before has stopped to; the same command continues."""


class EndpointAbsent(UserError):
  """Nobody has ever answered at that address."""


class BudgetSpent(UserError):
  """All requests or tokens that were allowed are spent; what was answered is kept."""


class BlindEndpoint(UserError):
  """The endpoint answers without a look at the picture."""


def from_status(
  status: int, detail: str, *, code: str = "", wait_s: float | None = None
) -> Fault | Denied:
  """Returns what an HTTP status means.

  Args:
    status: 300 and above.
    detail: what the endpoint said.
    code: the `code` of its error object.
    wait_s: what `retry_after` read.
  """
  said = f"HTTP {status}{': ' if detail else ''}{detail}"
  if code in _FILTERS:
    return Fault(Reason.FILTERED, said)
  if status < 400 or status in _DENIED or code == _NO_QUOTA:
    return Denied(status, detail)
  if status == 403:
    return Fault(Reason.FORBIDDEN, said)
  if status == 429:
    return Fault(Reason.RATE_LIMITED, said, wait_s=wait_s)
  if status in _TIMEOUTS:
    return Fault(Reason.TIMEOUT, said, wait_s=wait_s)
  if status in _FAILED or (status >= 500 and status not in _UNSUPPORTED):
    return Fault(Reason.SERVER_ERROR, said, wait_s=wait_s)
  return Fault(Reason.REJECTED, said)


def retry_after(headers: Mapping[str, str]) -> float | None:
  """Returns the seconds of a Retry-After (RFC 9110, 10.2.3), None without a readable one.

  A date is compared with the answer's own Date, so that a clock that is wrong does no harm.

  Args:
    headers: headers of the answer, with names in any case (httpx's) or in lower case.
  """
  for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
    try:
      seconds = float(headers.get(name, "")) * unit
    except ValueError:
      continue
    return max(seconds, 0.0) if math.isfinite(seconds) else None
  then = _seconds(headers.get("retry-after", ""))
  if then is None:
    return None
  now = _seconds(headers.get("date", ""))
  return max(then - (time.time() if now is None else now), 0.0)


def one_line(text: object, limit: int = 300) -> str:
  """Returns foreign text fit for a log or an error: one line, printable, bounded."""
  words = " ".join(str(text)[: 4 * limit].split())
  line = "".join(c if c.isprintable() else "?" for c in words)
  return line if len(line) <= limit else line[: limit - 1] + "…"


def _seconds(date: str) -> float | None:
  """Returns an HTTP date in seconds since 1970."""
  try:
    return email.utils.parsedate_to_datetime(date).timestamp()
  except (TypeError, ValueError, OverflowError):
    return None
