# SPDX-License-Identifier: Apache-2.0
"""Numbers, however they are written: digits, words, scales, fractions, ordinals.

    two hundred and five → 205     1.5 million → 1500000     a dozen → 12       two thirds → 2/3
    one and a half → 1.5           twenty-first → 21st

A run of tokens that is one number becomes one token.
"""

from collections.abc import Sequence
from fractions import Fraction

from auditdm_jax.audit.judging.tokens import Token

_SMALL = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
  " sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER = {w: i for i, w in enumerate(_SMALL)} | {w: 20 + 10 * i for i, w in enumerate(_TENS)}
_SCALE = {f"{word}illion": 1000**n for n, word in enumerate(("m", "b", "tr"), 2)}
_SCALE |= {"dozen": 12, "hundred": 100, "thousand": 1000}
_KNOWN = _NUMBER.keys() | _SCALE.keys()
_SHORT_SCALE = {"k": 10**3, "mn": 10**6, "bn": 10**9}
_MONEY_SCALE = {"m": 10**6, "b": 10**9, "mm": 10**6}
MONEY = frozenset("$€£¥₹₩₽₺₫₱₪฿₿")
_ORDINALS = (
  "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth"
  " fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
).split()
_ORDINAL = (
  {w: i for i, w in enumerate(_ORDINALS, 1)}
  | {w[:-1] + "ieth": n for w, n in _NUMBER.items() if n >= 20}
  | {"hundredth": 100, "thousandth": 1000, "millionth": 10**6}
)
_PARTS = {"third": 3, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}


def written(value: Fraction) -> str:
  """The digits of a number: a decimal if it ends, else a fraction."""
  if value.denominator == 1:
    return str(value.numerator)
  rest = value.denominator
  for prime in (2, 5):
    while rest % prime == 0:
      rest //= prime
  if rest > 1:
    return f"{value.numerator}/{value.denominator}"
  places = 1
  while 10**places % value.denominator:
    places += 1
  digits = str(abs(value.numerator) * (10**places // value.denominator)).rjust(places + 1, "0")
  return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def read_numbers(tokens: Sequence[Token]) -> list[Token]:
  """Runs of number words, digits and scales become number tokens, with their minus."""
  out: list[Token] = []
  i = 0
  while i < len(tokens):
    if (found := _ordinal(tokens, i)) or (found := _number(tokens, i, out)):
      token, i = found
      if token.value is not None and _take_minus(out):
        token = token._replace(text=f"-{token.text}", value=-token.value)
      out.append(token)
    else:
      out.append(tokens[i])
      i += 1
  return [t._replace(kind="sign") if t.kind == "minus" else t for t in out]


def _take_minus(out: list[Token]) -> bool:
  """Takes away the minus of the number after `out`: `-5`, `-$5`, `minus 5`, not `7 minus 5`."""
  at = len(out) - 1 - (bool(out) and out[-1].text in MONEY)
  if at < 0 or not (out[at].kind == "minus" or out[at].text in ("minus", "negative")):
    return False
  if out[at].kind == "word" and at > 0 and out[at - 1].kind == "number":
    return False
  del out[at]
  return True


def _number(tokens: Sequence[Token], i: int, out: Sequence[Token]) -> tuple[Token, int] | None:
  """The number that begins at token i, and the place after it."""
  first, text = tokens[i], tokens[i].text
  if first.kind not in ("word", "number", "fraction"):
    return None
  if first.kind == "fraction" and first.value is not None:
    return first, i + 1
  if text == "half" and text_at(tokens, i + 1) != "past":
    return _half(tokens, i)
  if text in ("a", "one") and text_at(tokens, i + 1) == "half":
    return _half(tokens, i + 1, first)
  start = i + 1 if text in ("a", "an") and text_at(tokens, i + 1) in _SCALE else i
  if first.kind != "number" and tokens[start].text not in _KNOWN:
    return None
  if part := _part(tokens, i):
    return part
  value, end = _run(tokens, start, money=bool(out) and out[-1].text in MONEY)
  value, end = _and_a_half(tokens, value, end)
  return first._replace(kind="number", text=written(value), value=value), end


def text_at(tokens: Sequence[Token], i: int) -> str:
  """The word at i; "" if there is none, or punctuation is before it."""
  if i >= len(tokens) or tokens[i].kind != "word":
    return ""
  return tokens[i].text if i == 0 or tokens[i].cut in ("", "-") else ""


def _half(tokens: Sequence[Token], i: int, first: Token | None = None) -> tuple[Token, int]:
  """`half`, `half a million`, `half dozen`; i is the place of `half`."""
  value, end = Fraction(1, 2), i + 1
  of = i + 1 + (text_at(tokens, i + 1) in ("a", "an", "of"))
  of += text_at(tokens, of) == "a"
  if scale := _SCALE.get(text_at(tokens, of)):
    value, end = value * scale, of + 1
  first = first or tokens[i]
  return first._replace(kind="number", text=written(value), value=value), end


def _part(tokens: Sequence[Token], i: int) -> tuple[Token, int] | None:
  """`two thirds`, `one fifth`."""
  above = tokens[i].value if tokens[i].kind == "number" else _NUMBER.get(tokens[i].text)
  name = text_at(tokens, i + 1)
  below = _PARTS.get(name.removesuffix("s"))
  if not above or not below or above >= below or name.endswith("s") != (above > 1):
    return None
  value = Fraction(above, below)
  return tokens[i]._replace(kind="number", text=written(value), value=value), i + 2


def _run(tokens: Sequence[Token], start: int, *, money: bool) -> tuple[Fraction, int]:
  """Value of the run of numbers and scales at `start`, and the place after it."""
  total, part, i = Fraction(0), Fraction(0), start
  seen = scaled = False
  while i < len(tokens):
    token = tokens[i]
    text = token.text if i == start else text_at(tokens, i)
    if token.kind == "number" and (i == start or token.cut == ""):
      value = token.value
    else:
      value = _NUMBER.get(text)
    scale = _scale(tokens, i, money=money) if seen else _SCALE.get(text)
    if value is not None and (not seen or _continues(part, value, token.kind, scaled)):
      part, seen, scaled = part + value, True, False
    elif scale:
      part = (part if seen else Fraction(1)) * scale
      seen = scaled = True
      if scale >= 1000:
        total, part = total + part, Fraction(0)
    elif not (text == "and" and scaled and _is_number(tokens, i + 1)):
      break
    i += 1
  value = total + part
  if text_at(tokens, i) == "point" and value.denominator == 1:
    return _decimals(tokens, value, i)
  return value, i


def _is_number(tokens: Sequence[Token], i: int) -> bool:
  return text_at(tokens, i) in _NUMBER or (i < len(tokens) and tokens[i].kind == "number")


def _scale(tokens: Sequence[Token], i: int, *, money: bool) -> int | None:
  """What the word at i multiplies the number before it by: million, k, and after a $ also M."""
  text, alone = text_at(tokens, i), i + 1 == len(tokens) or not tokens[i + 1].glued
  if text in _SCALE:
    return _SCALE[text]
  after_digits = i > 0 and tokens[i - 1].kind == "number" and alone
  if not after_digits:
    return None
  if text in _SHORT_SCALE and (tokens[i].glued or text != "k"):
    return _SHORT_SCALE[text]
  return _MONEY_SCALE.get(text) if money else None


def _continues(part: Fraction, value: Fraction | int, kind: str, scaled: bool) -> bool:
  """Whether a number extends the one so far: 20 + 5 and 200 + 15 do, 2 + 3 does not."""
  if scaled:
    return value > 0 and (part == 0 or value < 100)
  return kind == "word" and part % 10 == 0 and part % 100 >= 20 and 0 < value < 10


def _decimals(tokens: Sequence[Token], value: Fraction, i: int) -> tuple[Fraction, int]:
  """`three point one four`; i is the place of `point`."""
  end, digits = i + 1, ""
  while (digit := _NUMBER.get(text_at(tokens, end), 10)) < 10:
    digits, end = digits + str(digit), end + 1
  if not digits:
    return value, i
  return value + Fraction(int(digits), 10 ** len(digits)), end


def _and_a_half(tokens: Sequence[Token], value: Fraction, i: int) -> tuple[Fraction, int]:
  """What follows a whole number: `1/2`, `and a half`, and then perhaps `million`."""
  if value.denominator > 1:
    return value, i
  words = [text_at(tokens, k) for k in range(i, i + 3)]
  more, end = Fraction(0), i
  if i < len(tokens) and tokens[i].kind == "fraction" and tokens[i].cut == "":
    more, end = tokens[i].value or more, i + 1
  elif words[0] == "and" and words[1] in ("a", "one") and words[2] in ("half", "quarter"):
    more, end = Fraction(1, 2 if words[2] == "half" else 4), i + 3
  if not 0 < more < 1:
    return value, i
  scale = _SCALE.get(text_at(tokens, end), 1)
  return (value + more) * scale, end + (scale > 1)


def _ordinal(tokens: Sequence[Token], i: int) -> tuple[Token, int] | None:
  """`1st`, `first`, `twenty-first`."""
  first, after = tokens[i], text_at(tokens, i + 1)
  value = _ORDINAL.get(first.text) if first.kind == "word" else None
  end = i + 1
  if first.kind == "number" and after in ("st", "nd", "rd", "th") and tokens[i + 1].glued:
    whole = int(first.value or 0)
    if first.value == whole and after == _suffix(whole):
      value, end = whole, i + 2
  tens = _NUMBER.get(first.text, 0)
  if tens >= 20 and _ORDINAL.get(after, 10) < 10:
    value, end = tens + _ORDINAL[after], i + 2
  if value is None:
    return None
  return first._replace(kind="ordinal", text=f"{value}{_suffix(value)}"), end


def _suffix(n: int) -> str:
  return "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
