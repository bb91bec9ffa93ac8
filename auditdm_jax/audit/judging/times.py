# SPDX-License-Identifier: Apache-2.0
"""Times of day, however they are written; numbers are tokens already.

    3:15 p.m., 15:15 → 3:15 pm     half past three → 3:30     noon → 12:00 pm     9 am → 9:00 am

`3:15` alone may be of either half of the day, and equals neither.
"""

from collections.abc import Sequence

from auditdm_jax.audit.judging.numbers import text_at
from auditdm_jax.audit.judging.tokens import Token

_NOON = {"noon": "12:00 pm", "midday": "12:00 pm", "midnight": "12:00 am"}
_DAYTIME = {"morning": "am", "afternoon": "pm", "evening": "pm"}


def read_times(tokens: Sequence[Token]) -> list[Token]:
  """Times of day become time tokens; `3:15` alone may be of either half of the day."""
  out: list[Token] = []
  i = 0
  while i < len(tokens):
    token, end = _time(tokens, i) or (tokens[i], i + 1)
    if token.kind == "clock":
      token = token._replace(kind="word")
    out.append(token)
    i = end
  for i in range(1, len(out) - 1):
    if out[i].text == "to" and out[i - 1].kind == out[i + 1].kind == "time":
      out[i] = out[i]._replace(kind="sign", text="-")
  return out


def _time(tokens: Sequence[Token], i: int) -> tuple[Token, int] | None:
  first = tokens[i]
  if first.text in _NOON and first.kind == "word":
    return first._replace(kind="time", text=_NOON[first.text]), i + 1
  if first.value == 12 and (noon := _NOON.get(text_at(tokens, i + 1))):  # 12 noon
    return first._replace(kind="time", text=noon), i + 2
  if (past := _past(tokens, i)) is not None:
    minutes, end = past
    half, end = _half_of_day(tokens, end)
    return first._replace(kind="time", text=_written(*divmod(minutes, 60), half)), end
  half, end = _half_of_day(tokens, i + 1)
  if first.kind == "clock":
    hour, minute = map(int, first.raw.split(":"))
    if hour > 23 or minute > 59:
      return None
    return first._replace(kind="time", text=_written(hour, minute, half)), end
  if first.kind != "number" or first.value is None or not 1 <= first.value < 13:
    return None
  if half and first.raw.count(".") == 1 and len(first.raw.split(".")[1]) == 2:  # 3.15 pm
    hour, minute = map(int, first.raw.split("."))
    if minute < 60:
      return first._replace(kind="time", text=_written(hour, minute, half)), end
  if first.value.denominator > 1:
    return None
  if text_at(tokens, i + 1) in ("o'clock", "oclock"):
    half, end = _half_of_day(tokens, i + 2)
  elif not half:
    return None
  return first._replace(kind="time", text=_written(int(first.value), 0, half)), end


def _past(tokens: Sequence[Token], i: int) -> tuple[int, int] | None:
  """`half past three`, `quarter to four`, `ten past three` → (minutes, place after it)."""
  i += tokens[i].text == "a" and text_at(tokens, i + 1) == "quarter"
  first = tokens[i]
  named = {"half": 30, "quarter": 15}.get(first.text)
  count = named or (first.value if first.kind == "number" and first.value is not None else None)
  at = i + 1 + (text_at(tokens, i + 1) in ("minutes", "minute"))
  word = text_at(tokens, at)
  if count is None or count not in range(1, 31) or at + 1 >= len(tokens):
    return None
  hour = tokens[at + 1].value if tokens[at + 1].kind == "number" else None
  if hour is None or hour not in range(1, 13):
    return None
  # `ten to five` may be a range as well.
  to = word in ("to", "till") and (named == 15 or at > i + 1)
  if word not in ("past", "after") and not to:
    return None
  minutes = int(hour) * 60 + (-int(count) if to else int(count))
  end = at + 2 + (text_at(tokens, at + 2) in ("o'clock", "oclock"))
  return (minutes + 720 if minutes < 60 else minutes), end


def _half_of_day(tokens: Sequence[Token], i: int) -> tuple[str, int]:
  """am, pm or "" at i, and the place after it."""
  text = text_at(tokens, i)
  if text in ("am", "pm"):
    return text, i + 1
  if text == "in":
    i += 1 + (text_at(tokens, i + 1) == "the")
    if half := _DAYTIME.get(text_at(tokens, i)):
      return half, i + 1
  return "", i


def _written(hour: int, minute: int, half: str) -> str:
  """24 hours and 12 hours have one form where they say the same."""
  if not half and (hour > 12 or hour == 0):
    half = "pm" if hour > 12 else "am"
  hour = (hour - 1) % 12 + 1
  return f"{hour}:{minute:02d}{' ' * bool(half)}{half}"
