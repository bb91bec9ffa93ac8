# SPDX-License-Identifier: Apache-2.0
"""Two answers that were read: the same, different, or neither for certain.

  1. The same tokens in the same order. Words may be singular or plural, or synonyms; articles and
     the "and" of a list may be missing.
  2. An option's letter alone, against a letter with its text.
  3. A yes or no, against one that goes on.
  4. Two quantities: numbers within the tolerance, of which one may lack its unit.
  5. As 1, but with a kind in place of its member (dog, poodle): undecided.

What no rule calls the same is different.
"""

from collections.abc import Callable, Sequence
import enum
from fractions import Fraction

from auditdm_jax.audit.judging.normal import NormalForm
from auditdm_jax.audit.judging.plurals import is_plural_of
from auditdm_jax.audit.judging.tables import Lexicon
from auditdm_jax.audit.judging.tokens import Token
from auditdm_jax.audit.judging.units import near_unit, same_unit

Alike = Callable[[Token, Token], bool]


class Same(enum.Enum):
  """Outcome of a comparison; UNDECIDED pairs are dropped and counted, never guessed."""

  SAME = "same"
  DIFFERENT = "different"
  UNDECIDED = "undecided"


def compare(
  a: NormalForm,
  b: NormalForm,
  *,
  table: Lexicon,
  plurals: bool,
  units_optional: bool,
  close: Callable[[Fraction, Fraction], bool],
  elaborates: bool,
) -> Same:
  """Compares two answers that say something.

  Args:
    a: one answer.
    b: the other one.
    table: synonyms and kinds.
    plurals: whether a plural equals its singular.
    units_optional: whether a number equals that number with a unit.
    close: whether two numbers that are not equal are close enough.
    elaborates: whether `yes, two` may answer what `yes` answers: not if a text was asked for.
  """

  def alike(x: Token, y: Token) -> bool:
    return _alike(x, y, plurals=plurals) or (
      x.kind == y.kind == "word" and table.synonyms(x.text, y.text)
    )

  def related(x: Token, y: Token) -> bool:
    return alike(x, y) or (x.kind == y.kind == "word" and table.related(x.text, y.text))

  def equal(x: Sequence[Token], y: Sequence[Token], how: Alike = alike) -> bool:
    return _match(x, y, how) or _match(table.merge(x), table.merge(y), how)

  if not a.whole or not b.whole:
    return Same.SAME if a.text == b.text else Same.DIFFERENT
  if equal(a.tokens, b.tokens):
    return Same.SAME
  if a.option and b.option and (a.bare or b.bare):
    return Same.SAME if a.option == b.option else Same.DIFFERENT
  if a.polarity and b.polarity and elaborates:
    same_rest = not a.rest or not b.rest or equal(a.rest, b.rest)
    return Same.SAME if a.polarity == b.polarity and same_rest else Same.DIFFERENT
  if _same_quantity(a.tokens, b.tokens, units_optional=units_optional, close=close):
    return Same.SAME
  return Same.UNDECIDED if equal(a.tokens, b.tokens, related) else Same.DIFFERENT


def _match(a: Sequence[Token], b: Sequence[Token], alike: Alike) -> bool:
  """Whether the tokens are alike in their order; those that say nothing may lack a partner."""
  i = j = 0
  while i < len(a) or j < len(b):
    if i < len(a) and j < len(b) and alike(a[i], b[j]):
      i, j = i + 1, j + 1
    elif i < len(a) and a[i].skip:
      i += 1
    elif j < len(b) and b[j].skip:
      j += 1
    else:
      return False
  return True


def _alike(a: Token, b: Token, *, plurals: bool) -> bool:
  if a.kind == b.kind == "word":
    return a.text == b.text or _forms_of_one_word(a.text, b.text, plurals=plurals)
  if a.kind == b.kind == "unit":
    return same_unit(a.text, b.text)
  numbers = ("number", "fraction")
  if a.kind in numbers and b.kind in numbers and not (a.kind == b.kind == "fraction"):
    return a.value is not None and a.value == b.value
  return a.kind == b.kind and a.text == b.text


def _forms_of_one_word(a: str, b: str, *, plurals: bool) -> bool:
  if a.endswith("'s") or b.endswith("'s"):
    stem, other = (a, b) if a.endswith("'s") else (b, a)
    return other.removesuffix("'s") in (stem[:-2], stem[:-2] + "s")
  return plurals and (is_plural_of(a, b) or is_plural_of(b, a))


def _same_quantity(
  a: Sequence[Token],
  b: Sequence[Token],
  *,
  units_optional: bool,
  close: Callable[[Fraction, Fraction], bool],
) -> bool:
  p, q = _quantity(a), _quantity(b)
  if p is None or q is None:
    return False
  (x, unit_x), (y, unit_y) = p, q
  if unit_x is not None and unit_y is not None:
    same = near_unit if units_optional else same_unit
    units_agree = same(unit_x.text, unit_y.text)
  else:
    only = unit_x or unit_y
    # A single letter is too little to be sure that it is a unit: 5g, 4s.
    units_agree = only is None or (
      units_optional and not (len(only.raw) == 1 and only.raw.isalpha())
    )
  return units_agree and (x == y or close(x, y))


def _quantity(tokens: Sequence[Token]) -> tuple[Fraction, Token | None] | None:
  """`5 cm` → (5, cm), `3` → (3, None); None if the answer is anything else."""
  words = [t for t in tokens if not t.skip]
  if not words or words[0].kind != "number" or words[0].value is None or len(words) > 2:
    return None
  unit = words[1] if len(words) == 2 else None
  return (words[0].value, unit) if unit is None or unit.kind == "unit" else None
