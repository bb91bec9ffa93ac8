# SPDX-License-Identifier: Apache-2.0
"""What a client is told when it gets no answer, in the form of OpenAI's API."""

import math
from typing import Any

_MAX_CHARS = 500  # Of a message: it may quote what the client sent.


class ApiError(Exception):
  """Ends a request.

  Args:
    status: HTTP status.
    message: what is wrong, and what would be right.
    code: a word for programs.
    param: the field of the request that is wrong.
    retry_s: when to come again.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    retry_s: float | None = None,
  ):
    super().__init__(message)
    self.status, self.message, self.code, self.param = status, message, code, param
    self.retry_s = retry_s

  @property
  def body(self) -> dict[str, Any]:
    """What the answer says."""
    kind = "server_error" if self.status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if self.status == 429 else kind
    message = self.message
    if len(message) > _MAX_CHARS:
      message = message[:_MAX_CHARS] + "…"
    return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

  @property
  def headers(self) -> dict[str, str]:
    """What goes with it."""
    if self.status == 401:
      return {"WWW-Authenticate": "Bearer"}
    # Whole seconds: that is all that the header can say.
    return {} if self.retry_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_s)))}


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
  """Returns a request that will never be answered, however often it is sent."""
  return ApiError(400, message, param=param, code=code)
