# SPDX-License-Identifier: Apache-2.0
import email.utils
import time

import pytest

from auditdm_jax.endpoints.failures import (
  RULES,
  Denied,
  Fault,
  Reason,
  from_status,
  one_line,
  retry_after,
)


def test_every_reason_has_a_rule():
  assert set(RULES) == set(Reason)


@pytest.mark.parametrize(
  ("status", "reason"),
  [
    (400, Reason.REJECTED),
    (403, Reason.FORBIDDEN),
    (408, Reason.TIMEOUT),
    (409, Reason.SERVER_ERROR),
    (413, Reason.REJECTED),
    (422, Reason.REJECTED),
    (425, Reason.SERVER_ERROR),
    (429, Reason.RATE_LIMITED),
    (500, Reason.SERVER_ERROR),
    (501, Reason.REJECTED),
    (502, Reason.SERVER_ERROR),
    (503, Reason.SERVER_ERROR),
    (504, Reason.TIMEOUT),
    (505, Reason.REJECTED),
    (529, Reason.SERVER_ERROR),
    (301, None),
    (307, None),
    (401, None),
    (402, None),
    (404, None),
    (405, None),
    (410, None),
  ],
)
def test_statuses(status, reason):
  meaning = from_status(status, "said")
  assert isinstance(meaning, Denied) if reason is None else meaning.reason is reason
  assert "said" in meaning.detail


def test_codes_are_stronger_than_statuses():
  filtered = from_status(400, "", code="content_filter")
  assert isinstance(filtered, Fault) and filtered.reason is Reason.FILTERED
  assert isinstance(from_status(429, "", code="insufficient_quota"), Denied)


def date(seconds: float) -> str:
  return email.utils.formatdate(seconds, usegmt=True)


def test_retry_after():
  now = time.time()
  assert retry_after({}) is None
  assert retry_after({"retry-after": "7"}) == 7
  assert retry_after({"retry-after": "0.5"}) == 0.5
  assert retry_after({"retry-after": "7", "retry-after-ms": "1500"}) == 1.5
  assert retry_after({"retry-after": "-3"}) == 0
  assert retry_after({"retry-after": date(now + 30)}) == pytest.approx(30, abs=2)
  # The server's clock is an hour late, or the moment has passed.
  skewed = {"retry-after": date(now - 3590), "date": date(now - 3600)}
  assert retry_after(skewed) == pytest.approx(10, abs=1)
  assert retry_after({"retry-after": date(now - 30)}) == 0


@pytest.mark.parametrize(
  "value", ["", "soon", "nan", "inf", "1e999", "Fri, 99 Foo 2026", "1" * 400]
)
def test_what_is_no_retry_after(value):
  assert retry_after({"retry-after": value}) is None


def test_one_line():
  assert one_line("a\n\tb\x1b[31m\0 c") == "a b?[31m? c"
  assert len(one_line("x" * 10_000)) == 300
  assert one_line(None) == "None"
