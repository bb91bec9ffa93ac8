# SPDX-License-Identifier: Apache-2.0
"""Tokens of a caption as the COCO evaluation has them: Penn Treebank rules, lower case, no marks.

The COCO code runs Stanford's PTBTokenizer (CoreNLP 3.4.1) in Java and then drops punctuation. This
is written after its outputs. On captions it agrees but for rare cases; `benchmarks/scorers.py` and
the marked tests count them.
"""

import functools
import re

# pycocoevalcap, tokenizer/ptbtokenizer.py. In lower case the brackets are other strings, and stay.
DROPPED = frozenset(
  ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--")
  + ("...", ";")
)
LINE_ENDS = re.compile("\r\n|[\n\r\v\f\u2028\u2029]")

_ABBREVIATIONS = """
  st ste mt dr drs jr sr mr mrs ms messrs prof profs gov sen rep gen col lt sgt capt maj rev hon
  pres adm brig cpl pvt esq co cos corp inc ltd bros assn univ intl natl plc vs etc al seq cf ft
  ave blvd rd ct bldg ext tel est sq dept
  jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
  ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt
  wis wyo
"""
_BEFORE_NUMBERS = "ca fig figs prop no nos art p pp op approx"

_LETTER, _CHAR = r"[^\W\d_]", r"[^\W_]"
_APOSTROPHE = "['\u2019]"
_SUFFIX = rf"{_APOSTROPHE}(?:s|m|d|re|ve|ll)(?!{_CHAR})"
_NOT = rf"n{_APOSTROPHE}t(?!{_CHAR})"
_NUMBER = r"(?:\d+(?:[.,:]\d+)*|[.,:]\d+(?:[.,:]\d+)*)"
_WORD = rf"{_CHAR}+(?:[-/_]{_CHAR}+)*"


def _one_of(words: str) -> str:
  return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


_TOKEN = re.compile(
  "|".join(
    (
      r"(?:https?|ftp)://[^\s<>|\"`(){}]+[^\s<>|\"`(){}.,;:!?']",
      r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",  # E-mail.
      r"</?[a-z!?][^<>]*>",
      r"[<>]?[:;=][-o*']?[()dpo{@|\[\]\\](?![^\W_])",  # Smileys.
      r"\^_\^|c\+\+|c#|(?-i:(?<![\w&])[A-Z]+&[A-Z]+(?![\w&]))",  # R&B, but a & b.
      rf"[@\#]{_LETTER}\w*",
      # Contractions: the word before n't, then n't; 'tis in two; quoted n, years, short forms.
      rf"{_LETTER}+?(?={_NOT})",
      _NOT,
      rf"(?<!\w){_APOSTROPHE}t(?=(?:is|was)(?!\w))",
      rf"{_APOSTROPHE}n{_APOSTROPHE}",
      rf"(?<=\w){_APOSTROPHE}n(?!\w)",
      rf"(?<!\w){_APOSTROPHE}\d\d(?:s(?!\w)|(?!\w))",
      rf"(?<!\w){_APOSTROPHE}(?:em|cause|til|till|tween|neath|o)(?!\w)",
      _SUFFIX,
      rf"y{_APOSTROPHE}(?=all(?!\w))",
      rf"(?<!\w)(?:[dol]{_APOSTROPHE}{_LETTER}+|ma{_APOSTROPHE}am|n{_APOSTROPHE}{_LETTER}+"
      rf"|ol{_APOSTROPHE}|s{_APOSTROPHE}mores?)",
      # Abbreviations keep their period: listed ones, letters, any word before a comma.
      rf"(?<!\w){_LETTER}(?:\.{_LETTER})+\.(?!\w)",
      rf"(?<!\w)(?:ph\.d\.|{_one_of(_ABBREVIATIONS)}\.(?!\w))",
      rf"(?<!\w){_one_of(_BEFORE_NUMBERS)}\.(?=\s?\d)",
      rf"(?<!{_CHAR})(?<!\d[.,:])[a-z]\.(?!{_LETTER})",
      rf"{_WORD}\.(?=[,;:])",
      # Words that a full stop, a question or an exclamation mark joins are one token.
      rf"{_LETTER}{_CHAR}*(?:-{_CHAR}+)*(?<={_LETTER})(?:[.?!]{_LETTER}+)+",
      rf"(?<![\w.])[-+]?(?>{_NUMBER})(?!{_CHAR}|[-/]{_CHAR})",
      r"[-+]?\d+(?:[.,:]\d+)+",
      _WORD,
      r"[-+.,:]\d+(?:[.,:]\d+)*",
      r"[?!]{2,}",
      r"\*+|\#+|_+|<<|>>|--+|\.+",
      r"[^\s\w]",
    )
  ),
  re.IGNORECASE,
)
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(lem|gim)(me)\b", re.I)
_ENTITIES = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos);", re.I)
_ENTITY = {"&amp;": " & ", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " ", "&apos;": "'"}
_FRACTION = {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
_FRACTIONS = re.compile("[" + "".join(_FRACTION) + "]")
_UNREADABLE = re.compile("[\U00010000-\U0010ffff\u200b-\u200f\ufe00-\ufe0f\ufeff]")
_RENAMED = {
  **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
  **{"£": "#", "€": "$", "¢": "cents"},
}
_MARKS = frozenset("\"“”„‘’‛`´'…–—―-.,;:?!")


@functools.lru_cache(maxsize=1 << 14)
def tokens(caption: str) -> tuple[str, ...]:
  """Returns the tokens of one caption; line ends in it count as blanks."""
  text = _ENTITIES.sub(lambda match: _ENTITY[match[0].lower()], LINE_ENDS.sub(" ", caption))
  text = _FRACTIONS.sub(lambda match: _FRACTION[match[0]], text)
  text = _TWO_WORDS.sub(_apart, _UNREADABLE.sub(" ", text))
  found = []
  for match in _TOKEN.finditer(text):
    token = _written(match[0])
    if token and token not in DROPPED:
      found.append(token)
  return tuple(found)


def _apart(match: re.Match[str]) -> str:
  return " ".join(part for part in match.groups() if part)


def _written(token: str) -> str:
  """Lower case, straight apostrophes and the tokenizer's names of brackets and currencies."""
  if token in _RENAMED:
    return _RENAMED[token]
  if token[0] in ".-" and not token.strip(".-"):
    return ""  # Full stops, ellipses and dashes of any length.
  if len(token) == 1:
    return "" if token in _MARKS else token.lower()
  token = token.lower().replace("\u2019", "'")
  if token[0] in "<>:;=" and token[-1] in "()[]{}":
    return token[:-1] + _RENAMED[token[-1]]  # A smiley.
  return token
