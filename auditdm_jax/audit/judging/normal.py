# SPDX-License-Identifier: Apache-2.0
"""The normal form of an answer: what it says, without how it happens to be written.

  1. characters → tokens                        tokens.py
  2. contractions, "no one", "No. 5"
  3. numbers, ordinals, times of day            numbers.py, times.py
  4. units                                      units.py
  5. signs that were written as words, and the words that two answers may differ in: articles
  6. places: on the left side → left

An answer to a yes-or-no question may go on after its yes or no; an option may be a letter and its
text. Both readings are kept beside the tokens, and `compare.py` decides which one counts.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Literal

from auditdm_jax.audit.judging.numbers import read_numbers
from auditdm_jax.audit.judging.times import read_times
from auditdm_jax.audit.judging.tokens import Token, clean, scan
from auditdm_jax.audit.judging.units import read_units

MAX_CHARS = 400  # Longer texts are no short answers: they are compared as they are.

_YES = frozenset("yes yeah yep yup yea".split())
_NO = frozenset("no nope nah".split())
_NEGATIONS = frozenset("no not never without none nope nah".split())
_HEDGES = frozenset(
  "but if except unless maybe perhaps possibly partly partially unsure sure unclear unknown tell"
  " determine although though almost quite yes".split()
)
_PRONOUNS = frozenset("it he she they there this that these those we i you".split())
_VERBS = frozenset(
  "is are was were am does do did has have had can could will would should".split()
)
_NOT = {f"{verb}n{mark}t": f"{verb} not" for verb in (*_VERBS, "must") for mark in ("'", "")}
_NOT |= {f"wo{n}": "will not" for n in ("n't", "nt")} | {f"ca{n}": "can not" for n in ("n't", "nt")}
_NOT["cannot"] = "can not"
_SHORT = {"'re": "are", "'ll": "will", "'ve": "have", "'m": "am"}
_WITH_IS = _PRONOUNS | frozenset("what who where here how".split())
_OPTION = re.compile(r"^\s*(?:(?:option|answer|choice)\s*:?\s*)?\(?([a-h])\)?\s*[.:)]?\s*$", re.I)
_OPTION_TEXT = re.compile(r"^\s*(?:\(([a-h])\)|([a-h])[.:)])\s+\S", re.I)
_COMPARED = {
  tuple(phrase.split("_")): sign
  for sign, phrases in (
    ("≥", "at_least"),
    ("≤", "at_most up_to"),
    (">", "more_than greater_than"),
    ("<", "less_than fewer_than"),
    ("~", "about around approximately approx roughly circa"),
    ("+", "plus"),
  )
  for phrase in phrases.split()
}
_BETWEEN = {"x": "×", "by": "×", "times": "×", "plus": "+", "minus": "-", "equals": "="}
# "a" after these is a letter, and before those no article.
_LETTERED = frozenset(
  "type gate exit row section option vitamin hepatitis grade plan size block terminal platform"
  " class group team point line lane highway route zone level floor bus train room seat building"
  " door answer choice letter blood unit figure table appendix series model side column cell box"
  " bay pier dock hall wing tower track stand area district category key note part page".split()
)
_NO_NOUNS = frozenset(
  "is are was were and or to vs versus of in on at from with has not than then plus minus only"
  " wins".split()
)
_PREPOSITIONS = frozenset("on to at in towards toward".split())
_SIDES = frozenset("left right top bottom middle center centre".split())
_UP_DOWN = {"upper": "top", "lower": "bottom"}


@dataclasses.dataclass(frozen=True)
class NormalForm:
  """An answer as the judge reads it.

  Attributes:
    text: the normal form; "" says nothing.
    tokens: what it is made of, articles included and marked.
    option: the letter of the option it names, or "".
    bare: it is nothing but that letter.
    polarity: "yes" or "no" if it begins with one and goes on with no objection, else "".
    rest: what follows yes or no; () where it only repeats it: `yes, it is`.
    whole: it was short enough to be read; another one equals only itself.
  """

  text: str
  tokens: tuple[Token, ...]
  option: str = ""
  bare: bool = False
  polarity: Literal["yes", "no", ""] = ""
  rest: tuple[Token, ...] = ()
  whole: bool = True


@functools.lru_cache(maxsize=1 << 15)  # Of a kilobyte each.
def read(text: str) -> NormalForm:
  """Reads an answer."""
  text = text.strip()
  if len(text) > MAX_CHARS:
    return NormalForm(" ".join(text.split()).casefold(), (), whole=False)
  text = clean(text)
  tokens = tuple(_side(_articles(_signs(read_units(read_times(read_numbers(_words(text))))))))
  option, bare = _option(text)
  if bare:
    return NormalForm(option, tokens, option, True)
  polarity, rest = _polarity(tokens)
  text = polarity if polarity and len(tokens) == 1 else shown(tokens)
  return NormalForm(text, tokens, option, False, polarity, rest)


def shown(tokens: Sequence[Token]) -> str:
  """Tokens as text, which is read as the same tokens again."""
  words = []
  for i, token in enumerate(tokens):
    # In lower case it would be a unit: 5G, 3M.
    letter = len(token.text) == 1 and token.raw.isupper() and token.kind == "word"
    after_number = letter and i > 0 and tokens[i - 1].kind == "number"
    if not token.skip:
      words.append(token.raw if after_number else token.text)
  return " ".join(words)


def _option(text: str) -> tuple[str, bool]:
  if match := _OPTION.match(text):
    return match.group(1).lower(), True
  if match := _OPTION_TEXT.match(text):
    return (match.group(1) or match.group(2)).lower(), False
  return "", False


def _words(text: str) -> list[Token]:
  """Tokens with contractions written out, `no one` as one word, and the `No.` of a number.

  A comma after a negation is part of it: `No, dogs allowed` is the opposite of `No dogs allowed`.
  """
  tokens: list[Token] = []
  for token in scan(text):
    tokens += _written_out(token) if token.kind == "word" else [token]
  out: list[Token] = []
  for i, token in enumerate(tokens):
    after = tokens[i + 1] if i + 1 < len(tokens) else None
    numbered = after is not None and after.kind == "number" and after.cut in ("", ".", ":")
    if token.text in ("no", "#") and numbered:
      token = token._replace(kind="word", text="number")
    elif token.text in _NEGATIONS and after is not None and _stops(after.cut):
      token = token._replace(text=f"{token.text},")
    elif token.text == "one" and out and out[-1].text == "no" and token.cut in ("", "-"):
      out[-1] = out[-1]._replace(text="nobody")
      continue
    elif token.text == "&":
      token = token._replace(kind="word", text="and")
    out.append(token)
  return out


def _stops(cut: str) -> bool:
  """Whether punctuation ends something, as a comma does and a hyphen or a quote does not."""
  return any(c in ".,;:!" for c in cut)


def _written_out(token: Token) -> list[Token]:
  """`isn't` → is, not; `it's` → it, is; `man's` → man's, which equals man and mans."""
  text = token.text
  if spelled := _NOT.get(text):
    words = spelled.split()
  elif "'" not in text:
    return [token]
  else:
    stem, mark, end = text.rpartition("'")
    short = _SHORT.get(mark + end) or ("is" if end == "s" and stem in _WITH_IS else "")
    words = [stem, short] if short else [text]
  first = token._replace(text=words[0])
  return [first, *(Token("word", word, word) for word in words[1:])]


def _polarity(tokens: Sequence[Token]) -> tuple[Literal["yes", "no", ""], tuple[Token, ...]]:
  """Whether an answer is a yes or a no, and what it says beyond it."""
  first = tokens[0].text.rstrip(",") if tokens and tokens[0].kind == "word" else ""
  polarity: Literal["yes", "no", ""] = "yes" if first in _YES else "no" if first in _NO else ""
  rest = tuple(tokens[1:])
  if not polarity or not rest:
    return polarity, ()
  texts = [t.text for t in rest]
  echo = len(texts) > 1 and texts[0] in _PRONOUNS and texts[1] in _VERBS
  if not echo and not _stops(rest[0].cut):
    return "", ()
  if _HEDGES & set(texts) or (polarity == "yes" and {"no", "no,", "not", "nobody"} & set(texts)):
    return "", ()
  if not echo:
    return polarity, rest
  denied = "not" in texts[2:3]
  if len(texts) == 2 + denied:  # No, it is.
    return (polarity, ()) if denied == (polarity == "no") else ("", ())
  return polarity, rest


def _signs(tokens: Sequence[Token]) -> list[Token]:
  """Signs that were written as words, beside numbers only: `at least 5`, `4 by 6`, `A plus`."""
  out: list[Token] = []
  i = 0
  while i < len(tokens):
    token, length = tokens[i], 1
    before = out[-1] if out else None
    after = tokens[i + 1] if i + 1 < len(tokens) else None
    number_before = before is not None and before.kind in ("number", "fraction", "unit")
    if token.kind == "word" and number_before and after is not None and after.kind == "number":
      if sign := _BETWEEN.get(token.text):
        token = token._replace(kind="sign", text=sign)
    elif token.text == "x" and token.glued and before is not None and before.kind == "number":
      token = token._replace(kind="sign", text="×")
    elif token.text == "plus" and after is None and before is not None and len(before.text) == 1:
      token = token._replace(kind="sign", text="+")
    if token.kind == "word":
      token, length = _compared(tokens, i)
    out.append(token)
    i += length
  return out


def _compared(tokens: Sequence[Token], i: int) -> tuple[Token, int]:
  for length in (2, 1):
    after = tokens[i + length] if i + length < len(tokens) else None
    sign = _COMPARED.get(tuple(t.text for t in tokens[i : i + length]))
    if sign and after is not None and after.kind in ("number", "fraction", "time"):
      return tokens[i]._replace(kind="sign", text=sign), length
  return tokens[i], 1


def _articles(tokens: Sequence[Token]) -> list[Token]:
  """Marks articles, and the "and" of lists, as words that say nothing; letters stay."""
  if len(tokens) < 2:
    return list(tokens)
  mixed = any(t.raw[:1].islower() for t in tokens)
  skips = [t.kind == "word" and _says_nothing(tokens, i, mixed=mixed) for i, t in enumerate(tokens)]
  return list(tokens) if all(skips) else [t._replace(skip=s) for t, s in zip(tokens, skips)]


def _says_nothing(tokens: Sequence[Token], i: int, *, mixed: bool) -> bool:
  token, last = tokens[i], i + 1 == len(tokens)
  if token.text == "the":
    return True
  if token.text not in ("a", "an", "and") or last:
    return False
  after = tokens[i + 1]
  if token.text == "and":
    return i > 0
  if after.cut or after.glued or after.kind != "word":
    return False
  if after.text in ("few", "little") and i + 2 == len(tokens):  # A few are more than few.
    return False
  if token.text == "an":
    return True
  letter = len(after.text) < 2 or after.text in _NO_NOUNS
  letter |= i > 0 and tokens[i - 1].text in _LETTERED
  return not letter and not (i > 0 and mixed and token.raw == "A")


def _side(tokens: Sequence[Token]) -> list[Token]:
  """`on the left-hand side` → left, `in the upper right corner` → top right."""
  words = [t for t in tokens if not t.skip]
  texts = [t.text for t in words]
  start = int(bool(texts) and texts[0] in _PREPOSITIONS)
  end = start
  while end < len(texts) and (texts[end] in _SIDES or texts[end] in _UP_DOWN):
    end += 1
  sides, rest = texts[start:end], texts[end:]
  if not sides or rest not in ([], ["side"], ["hand", "side"], ["corner"]):
    return list(tokens)
  if rest == ["corner"] and len(sides) < 2:
    return list(tokens)
  if len(sides) == 1 and sides[0] in _UP_DOWN:
    return list(tokens)
  return [t._replace(text=_UP_DOWN.get(t.text, t.text), cut="") for t in words[start:end]]
