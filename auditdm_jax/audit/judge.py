# SPDX-License-Identifier: Apache-2.0
"""The judge D: do two short answers mean the same? Rules first, a language model only if given.

Order of the rules in `Judge.same`: option letter · number with unit · normalised text.
"""

from collections.abc import Callable
import dataclasses
import enum
import functools
import re
import unicodedata

from auditdm_jax.audit.words import singular

_SMALL = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
  " sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER = {w: i for i, w in enumerate(_SMALL)} | {w: 20 + 10 * i for i, w in enumerate(_TENS)}
_SCALE = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_YES = frozenset("yes yeah yep yup".split())
_NO = frozenset("no nope nah".split())
_ARTICLES = frozenset(("a", "an", "the"))
_UNITS = {
  alias: unit
  for unit, aliases in {
    "%": "% percent pct", "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre",
    "m": "m meter metre", "km": "km kilometer kilometre", "in": "in inch", "ft": "ft foot feet",
    "mi": "mi mile", "kg": "kg kilogram", "g": "g gram", "lb": "lb pound", "s": "s sec second",
    "min": "min minute", "h": "h hr hour", "day": "day", "year": "yr year", "$": "$ dollar usd",
    "€": "€ euro eur", "°": "° degree deg",
  }.items()
  for alias in aliases.split()
}  # fmt: skip
_OPTION = re.compile(r"^\s*(?:(?:option|answer)\s*:?\s*)?\(?([a-hA-H])\)?\s*[.:)]?\s*$")
_OPTION_TEXT = re.compile(r"^\s*(?:\(([a-hA-H])\)|([a-hA-H])[.:)])\s+\S")
_PIECE = re.compile(r"-?\d+(?:\.\d+)?(?::\d+)?|[^\W\d_]+|[%$€°]")


class Same(enum.Enum):
  """Outcome of a comparison; UNDECIDED pairs are dropped and counted, never guessed."""

  SAME = "same"
  DIFFERENT = "different"
  UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """Rules that a task may want otherwise.

  Attributes:
    relative_tolerance: for numbers that are not small counts (ChartQA uses 0.05).
    exact_below: integers below this must be equal whatever the tolerance.
    units_optional: `5 cm` equals `5` (but never `5 m`).
    plurals: `two dogs` equals `two dog`.
  """

  relative_tolerance: float = 0.0
  exact_below: int = 20
  units_optional: bool = True
  plurals: bool = True


@dataclasses.dataclass(frozen=True)
class Judge:
  """Deterministic rules, then an optional model asked in both orders.

  Attributes:
    config: the rules.
    ask: `ask(question, first, second) -> bool`, a frozen language model at temperature 0; it is
      consulted only where the rules say "different".
  """

  config: JudgeConfig = JudgeConfig()
  ask: Callable[[str, str, str], bool] | None = None

  def normalize(self, text: str) -> str:
    """Canonical form: case, punctuation, articles, number words, units, yes/no, plurals."""
    return _normalize(text, self.config.plurals)

  def same(self, a: str, b: str, *, question: str = "") -> bool:
    """True only if the two answers certainly mean the same."""
    return self.compare(a, b, question=question) is Same.SAME

  def compare(self, a: str, b: str, *, question: str = "") -> Same:
    """The comparison with its third outcome: a model whose two orders disagree."""
    if _same_by_rules(a, b, self.config):
      return Same.SAME
    if self.ask is None:
      return Same.DIFFERENT
    forward, backward = self.ask(question, a, b), self.ask(question, b, a)
    if forward != backward:
      return Same.UNDECIDED
    return Same.SAME if forward else Same.DIFFERENT


@functools.lru_cache(maxsize=262_144)
def _same_by_rules(a: str, b: str, config: JudgeConfig) -> bool:
  if a == b:
    return True
  x, y = _normalize(a, config.plurals), _normalize(b, config.plurals)
  if x == y:
    return True
  if not x or not y:
    return False
  letters = _option(a), _option(b)
  if all(letters) and (_OPTION.match(a) or _OPTION.match(b)):
    return letters[0] == letters[1]
  p, q = _quantity(x), _quantity(y)
  if p is None or q is None:
    return False
  units_agree = p[1] == q[1] or (config.units_optional and not (p[1] and q[1]))
  return units_agree and _close(p[0], q[0], config)


def _close(a: float, b: float, config: JudgeConfig) -> bool:
  if a == b:
    return True
  counts = a.is_integer() and b.is_integer() and max(abs(a), abs(b)) < config.exact_below
  return not counts and abs(a - b) <= config.relative_tolerance * max(abs(a), abs(b))


def _option(text: str) -> str | None:
  if match := _OPTION.match(text):
    return match.group(1).lower()
  if match := _OPTION_TEXT.match(text):
    return (match.group(1) or match.group(2)).lower()
  return None


def _quantity(normalized: str) -> tuple[float, str] | None:
  """`5 cm` → (5.0, "cm"), `3` → (3.0, ""); None if the text is anything else."""
  parts = normalized.split()
  if len(parts) == 2 and parts[0] in _UNITS:
    parts.reverse()
  if len(parts) > 2 or (len(parts) == 2 and parts[1] not in _UNITS):
    return None
  try:
    return float(parts[0]), parts[1] if len(parts) == 2 else ""
  except ValueError:
    return None


@functools.lru_cache(maxsize=262_144)
def _normalize(text: str, plurals: bool) -> str:
  text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("'s", "")
  text = re.sub(r"(?<=\d),(?=\d{3})", "", text)  # 1,000 → 1000
  text = re.sub(r"(?<=\w)-(?=\w)", " ", text)  # twenty-one, left-hand
  words = _PIECE.findall(text)
  if option := _OPTION.match(text):
    return option.group(1)
  if len(words) > 1:
    words = [w for w in words if w not in _ARTICLES] or words
  words = _numbers(words)
  if len(words) == 1 or (words and words[0] in _YES | _NO and text.find(",") > 0):
    words = ["yes"] if words[0] in _YES else ["no"] if words[0] in _NO else words
  if plurals:
    words = [singular(w) for w in words]
  for i in range(1, len(words)):
    if words[i] in _UNITS and words[i - 1][-1].isdigit():
      words[i] = _UNITS[words[i]]
  if len(words) == 2 and words[0] in "$€":
    words.reverse()
  return " ".join(words)


def _numbers(words: list[str]) -> list[str]:
  """Runs of number words become digits: `two hundred five` → `205`."""
  out, total, part, running = [], 0, 0, False
  for word in [*words, ""]:
    if word in _NUMBER and (not running or _continues(part, _NUMBER[word])):
      part, running = part + _NUMBER[word], True
    elif word in _SCALE and running and part:
      part *= _SCALE[word]
      if _SCALE[word] > 100:
        total, part = total + part, 0
    elif word != "and" or not running:
      if running:
        out.append(str(total + part))
        total, part, running = 0, 0, False
      if word in _NUMBER:
        part, running = _NUMBER[word], True
      elif word:
        out.append(word)
  return out


def _continues(part: int, value: int) -> bool:
  """Whether a number word extends the number so far: 20 + 5 and 200 + 15 do, 2 + 3 does not."""
  if part % 100 == 0:
    return value > 0
  return part % 10 == 0 and part % 100 >= 20 and 0 < value < 10
