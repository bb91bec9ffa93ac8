# SPDX-License-Identifier: Apache-2.0
"""From the characters of an answer to tokens.

What may carry meaning becomes a token: letters with their vowel signs, digits with their decimal
point, and every sign. Punctuation that only sets words apart is no token; what stood there is kept
as `cut` of the token that follows. The same character can be either, and its neighbours decide:

    >5     a sign        A-1    no token     -5    a sign, a minus
    A+     a sign        7-2    a sign       B-    a sign
    5"     a sign        "5"    no token     ?     a sign, if the answer has nothing else
"""

from fractions import Fraction
from typing import Literal, NamedTuple
import unicodedata

import regex

Kind = Literal["word", "number", "fraction", "clock", "ordinal", "time", "unit", "sign", "minus"]


class Token(NamedTuple):
  """A piece of an answer.

  Attributes:
    kind: "minus" is a dash that makes the next number negative; a "clock" (3:15) may be a time.
    text: its normal form.
    raw: what was written, in its case.
    cut: the punctuation between it and the token before.
    glued: nothing, not even a blank, is between it and the token before.
    value: of numbers; of fractions in lowest terms, and None for others.
    skip: it says nothing here: an article, or the "and" of a list.
  """

  kind: Kind
  text: str
  raw: str = ""
  cut: str = ""
  glued: bool = False
  value: Fraction | None = None
  skip: bool = False


_NOTHING = dict.fromkeys(
  [
    *(0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
    *(0x20E3, *range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400)),  # Frames, variants, skin tones.
  ]
)
_ALIKE = str.maketrans(
  {
    **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
    **dict.fromkeys("‘’‚‛′＇ʼ", "'"),
    **dict.fromkeys("“”„‟″＂«»", '"'),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("∼〜～≈≃≅", "~"),
    "∶": ":",
    "…": "...",
  }
)
_MARKS = str.maketrans(dict.fromkeys("™®©℠", " "))
_SUPERSCRIPT = regex.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_VULGAR = regex.compile("([0-9]?)\\s?([¼½¾⅐-⅞])")
_NUMBER_NEXT = regex.compile(r"[$€£¥₹]?\.?[0-9]")
_NUMBER_SOON = regex.compile(r"\s+[$€£¥₹]?[0-9]")
_SPACED = regex.compile(r"(?<=[0-9]) ([:/]) (?=[0-9])")
_STARRED = regex.compile(r"(\*{1,3}|_{1,2})([^*_]+)\1")  # Emphasis of Markdown.
_ARROWS = {"->": "→", "-->": "→", "=>": "⇒", "<-": "←", "<--": "←"}
_COMPARISONS = {"<=": "≤", ">=": "≥", "!=": "≠"}

# Digits are ASCII here: `clean` has made them so, as far as Python knows them; regex knows more.
_PIECE = regex.compile(
  r"""
  (?P<code>
    [0-9]+(?:[.:/][0-9]+){2,} | [0-9]+(?:-[0-9]+){2,}         # a date, a version, a phone number
  | (?<![0-9],)[0-9]+,[0-9]+(?!,?[0-9])           # 1,5 may be a decimal or a list
    (?<!(?<![0-9])[0-9]{1,3},[0-9]{3})
  | [0-9]+:[0-9](?![0-9]) | [0-9]{3,}:[0-9]+ | [0-9]+:[0-9]{3,}        # a ratio
  )
| (?P<clock> [0-9]{1,2}:[0-9][0-9](?![0-9]) )
| (?P<fraction> [0-9]+\ ?/\ ?[0-9]+ )
| (?P<number>
    [0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?
  | [0-9]+\.[0-9]+ | (?<![\p{L}\p{N}.])\.[0-9]+ | [0-9]+
  )
| (?P<word>
    (?<![\p{L}\p{M}\p{N}])\p{L}(?:\.\p{L})+(?![\p{L}\p{M}\p{N}])\.?      # U.S.A.
  | (?<=[0-9]\s?)(?:km|mi|m|ft)/(?:hr?|s|sec)(?!\p{L})
  | (?<=[0-9]\s?)(?:[mck]?m|in|ft)\^[23](?![0-9])
  | [\p{L}\p{M}](?:[\p{L}\p{M}\u200c\u200d]|'(?=\p{L}))*
  )
| (?P<sign> <?-{1,2}>|<-{1,2}|=>|[<>!]=|\p{S}|\p{N} )
| (?P<soft> \p{P} )
""",
  regex.VERBOSE,
)
_HARD = frozenset("%‰‱@#§&")  # Punctuation to Unicode, but it says something wherever it stands.
_QUOTES = ("'", '"')


def clean(text: str) -> str:
  """One spelling for what looks the same: widths, dashes, quotes, fractions, superscripts."""
  if not text.isascii():
    text = text.translate(_NOTHING).translate(_ALIKE)
    text = _SUPERSCRIPT.sub(lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    text = _VULGAR.sub(_vulgar, text)
    text = text.translate(_MARKS) if text.translate(_MARKS).strip() else text
    text = unicodedata.normalize("NFKC", text).translate(_ALIKE)
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
  text = _SPACED.sub(r"\1", text.replace("''", '"').strip())
  return starred[2] if (starred := _STARRED.fullmatch(text)) else text


def fold(word: str) -> str:
  """Without case, as `clean` writes it."""
  return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word.casefold())


def scan(text: str) -> list[Token]:
  """Tokens of an answer, which `clean` has been through."""
  tokens: list[Token] = []
  quotes = _pairs_of_quotes(text)
  cut, end = "", 0
  for match in _PIECE.finditer(text):
    start, piece, kind = match.start(), match.group(), str(match.lastgroup)
    glued = start == end and start > 0 and not cut
    end = match.end()
    if kind in ("soft", "sign"):
      sign = None if start in quotes else _sign(text, start, end, tokens)
      if sign is None:
        cut += piece
        continue
      tokens.append(Token(sign[0], sign[1], piece, cut, glued))
    else:
      tokens.append(_token(kind, piece, cut, glued))
    cut = ""
  if not tokens and text.strip(". "):
    return [Token("sign", c) for c in text if not c.isspace()]
  return tokens


def _vulgar(match: regex.Match) -> str:
  """1½ → 1 1/2."""
  fraction = unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")
  return f"{match[1]} {fraction}" if match[1] else f" {fraction}"


def _token(kind: str, piece: str, cut: str, glued: bool) -> Token:
  """A token that begins with a letter or a digit."""
  if kind == "number":
    whole = piece.replace(",", "")
    if regex.match(r"0[0-9]", whole):  # 007 is no 7.
      return Token("word", whole, piece, cut, glued)
    return Token("number", whole, piece, cut, glued, Fraction(whole))
  if kind == "fraction":
    above, _, below = piece.replace(" ", "").partition("/")
    value = Fraction(int(above), int(below)) if int(below) > 1 else None
    if value is not None and (value.numerator, value.denominator) != (int(above), int(below)):
      value = None
    return Token("fraction", f"{above}/{below}", piece, cut, glued, value)
  if kind == "clock":
    return Token("clock", piece, piece, cut, glued)
  text = fold(piece)
  if kind == "word" and "." in text:
    text = text.replace(".", "")
  return Token("word", text, piece, cut, glued)


def _pairs_of_quotes(text: str) -> set[int]:
  """Places of quotes that open before a word, and of those that close them."""
  found: set[int] = set()
  for mark in _QUOTES:
    opened = None
    for i, char in enumerate(text):
      if char != mark:
        continue
      opens = (i == 0 or not text[i - 1].isalnum()) and i + 1 < len(text)
      if opened is None and opens and not text[i + 1].isspace():
        opened = i
      elif opened is not None and (i + 1 == len(text) or not text[i + 1].isalnum()):
        found |= {opened, i}
        opened = None
  return found


def _sign(text: str, start: int, end: int, tokens: list[Token]) -> tuple[Kind, str] | None:
  """The kind and normal form of a sign; None if it only sets words apart here."""
  piece = text[start:end]
  before, after = text[start - 1 : start], text[end : end + 1]
  between_digits = before.isdigit() and after.isdigit()
  if piece == "-":
    return _dash(text, start, tokens)
  if piece in _QUOTES:
    after_number = before.isdigit() and tokens and tokens[-1].kind in ("number", "fraction")
    return ("sign", piece) if after_number and not _is_decade(text, start) else None
  if piece in _ARROWS or piece in _COMPARISONS:
    return "sign", _ARROWS.get(piece) or _COMPARISONS[piece]
  if piece == "~":
    return ("sign", "~") if text[end:].lstrip().strip("$€£")[:1].isdigit() else None
  if piece == "*":
    starred = text[:start].rstrip()[-1:].isdigit() and not after.isalpha()
    times = text[end:].lstrip()[:1].isdigit()
    return ("sign", "×" if times else "*") if starred else None
  if piece in "`´¨":
    return None
  if piece in _HARD or between_digits or unicodedata.category(piece[0])[0] in "SN":
    return "sign", piece
  return None


def _is_decade(text: str, start: int) -> bool:
  """The apostrophe of 70's."""
  return text[start : start + 2] == "'s" and not text[start + 2 : start + 3].isalnum()


def _dash(text: str, i: int, tokens: list[Token]) -> tuple[Kind, str] | None:
  """A minus, the dash of a range, the one of a grade (B-), or None: the hyphen of a word."""
  before, rest = text[i - 1 : i], text[i + 1 :]
  last = tokens[-1] if tokens else None
  in_number = before.isdigit() or (before in _QUOTES and text[i - 2 : i - 1].isdigit())
  # Whether what is before it is a unit.
  measured = len(tokens) > 1 and tokens[-2].kind in ("number", "fraction", "clock")
  if _NUMBER_NEXT.match(rest):
    if in_number or (measured and tokens[-1].glued and before.isalpha()):
      return "sign", "-"
    return ("minus", "-") if not before.isalnum() and before not in (")", "]", ".") else None
  if _NUMBER_SOON.match(rest) and (last is None or last.kind != "word" or measured):
    return "sign", "-"
  if last is not None and len(last.text) == 1 and last.kind == "word":
    alone = not rest.strip(" .!?)\"'")
    if alone or (before.isalnum() and rest[:1].isspace()):
      return "sign", "-"
  return None
