# SPDX-License-Identifier: Apache-2.0
"""Recognises replies that give no answer: refusals, and abstentions.

  refusal      the model will not, or says that it is not made for it: "I'm sorry, I can't help …"
  abstention   the model says that the image does not tell: "I cannot tell", "not visible"

Only how a reply begins, or a whole clause of it, decides: a sign may well read "Sorry, we're
closed". A question that asks for just that ("is the text legible?") is answered by it.
"""

import re

_CANNOT = (
  r"(?:cannot|can not|can't|could not|couldn't|(?:am|are|is|was|'m)?\s?(?:unable|not able) to|won't"
  r"|will not|do not|don't|am not allowed to|'m not allowed to)"
)
# What a refusal refuses; of an abstention it would be seeing, telling, knowing.
_HELP = (
  r"(?:help|assist|process|view|comply|fulfil+|discuss|access|provide|offer|give|engage"
  r"|identify (?:who|this|that|the|real|any|people|persons?|individuals?|faces)|recogni[sz]e people"
  r"|see (?:images?|pictures?)|answer (?:that|this) request)"
)
_REFUSAL = (
  re.compile(
    r"(?:i'm sorry|i am sorry|sorry|i'm afraid|i apologi[sz]e|my apologies|apologies|unfortunately)"
    r"[,;:.]?\s(?:but\s)?(?:i|as an?|there is no image|no image)\b"
  ),
  re.compile(
    r"as an? (?:\S+ ){0,3}(?:ai|assistant|vlm|llm|model)\b.{0,60}?"
    r"(?:cannot|can't|unable|not able|not trained|don't|do not)\b"
  ),
  re.compile(rf"i\s?{_CANNOT} {_HELP}\b"),
  re.compile(
    r"(?:please )?(?:upload|provide|attach|share) (?:an|the|your) (?:image|picture|photo)"
  ),
)
_TELL = (
  r"(?:have (?:enough|sufficient|any)|tell|say|determine|know|see|make out|read|answer|find"
  r"|discern|confirm|identify|be sure|recogni[sz]e|verify|judge)"
)
_FEW = r"(?:not enough|insufficient|no way to|no information|no indication)"
_ABSTENTION = (
  re.compile(
    r"(?:unanswerable|unknown|unclear|unsure|uncertain|indeterminate|undeterminable|illegible|n/a"
    r"|(?:cannot|can't|can not|could not) (?:be )?(?:determined?|telling|tell|say|answer(?:ed)?"
    r"|know|see|read|identif(?:y|ied))"
    r"|not (?:sure|certain|visible|specified|available|given|provided|mentioned|shown|clear|known"
    r"|applicable|enough information|possible to \w+|answerable|legible|readable))\b"
  ),
  re.compile(rf"i(?:\s|(?='))(?:\w+ )?{_CANNOT} {_TELL}\b"),
  re.compile(r"i(?:'m| am) (?:not (?:sure|certain)|unsure|uncertain)\b"),
  re.compile(
    r"it(?:'s| is)? (?:isn't possible|not possible|impossible|unclear|not clear|difficult|hard"
    r"|unknown)(?: to \w+|\b)"
  ),
  re.compile(rf"there(?:'s| is| are) {_FEW}\b"),
  re.compile(r"there (?:isn't|is not) (?:enough|sufficient|any) (?:information|indication)\b"),
  re.compile(
    r"(?:the|this) (?:image|picture|photo|photograph|question) (?:does not|doesn't|cannot|can't)"
    r" (?:provide|show|contain|give|specify|include|say|be answered)\b"
  ),
)
_CLAUSE = (
  re.compile(
    r"\b(?:cannot|can't|could not|can not) be (?:determined|identified|answered|seen|read|told"
    r"|known|discerned)\b"
  ),
  re.compile(
    r"\b(?:(?:is|are|was|were)(?: not|n't)|\w+'s not) (?:clearly |fully )?"
    r"(?:visible|clear|legible|readable|shown"
    r"|specified|identifiable|discernible|provided|given|mentioned|known)\b"
  ),
  re.compile(
    r"\b(?:is|are) (?:illegible|unreadable|unclear|unknown|unspecified|obscured|hidden"
    r"|too (?:small|blurry|dark|far|blurred|faint)\b.{0,20}?\bto (?:read|see|tell|make|identify))"
  ),
)
_WORD = re.compile(r"[a-z']+")


def is_refusal(sentence: str) -> bool:
  """Returns whether a reply that begins with this sentence declines to answer at all."""
  said = _plain(sentence)
  return any(pattern.match(said) for pattern in _REFUSAL) and not _is_telling(said)


def is_abstention(sentence: str, question: str) -> bool:
  """Returns whether a sentence says that the image does not tell."""
  said = _plain(sentence)
  for word in ("sorry", "i'm sorry", "unfortunately", "i apologize"):
    said = said.removeprefix(word).lstrip(", ").removeprefix("but ")
  if any(pattern.match(said) for pattern in _ABSTENTION):
    return True
  asked = set(_WORD.findall(question.lower()))
  found = next((m for pattern in _CLAUSE if (m := pattern.search(said))), None)
  return found is not None and _WORD.findall(found[0])[-1] not in asked


def _is_telling(said: str) -> bool:
  """Returns whether the model only says that it cannot tell, as in "Sorry, I can't tell"."""
  return bool(re.search(rf"\bi\s?{_CANNOT} {_TELL}\b", said)) and not re.search(
    rf"\bi\s?{_CANNOT} {_HELP}\b", said
  )


def _plain(sentence: str) -> str:
  return " ".join(sentence[:300].lower().replace("\u2019", "'").split())
