# SPDX-License-Identifier: Apache-2.0
"""The short answer in what a model said, for comparing models that talk with models that do not.

1. A reply that was cut, or that never left its thinking, has no answer.
2. Marks around the answer are taken off: tags, JSON, LaTeX boxes, fences, Markdown.
3. Refusals and abstentions are told apart from answers, see `declining`.
4. "Answer: red", "The answer is **red**": what follows. Letters and texts of options that the
   question gives: the letter.
5. A sentence: what it says beyond the words of its question, see `sentences`.

Where none of these is sure, the whole text stays, as kind "whole". Nothing is guessed.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Literal

from auditdm_jax.text import declining, markup, sentences
from auditdm_jax.text.sentences import Question

Kind = Literal[
  "answer", "whole", "abstention", "refusal", "truncated", "thinking", "empty", "failed"
]
KINDS: tuple[Kind, ...] = (
  "answer", "whole", "abstention", "refusal", "truncated", "thinking", "empty", "failed",
)  # fmt: skip
MAX_CHARS = 400  # Of an answer that stays whole.
_MAX_READ = 4000  # Characters of a reply that are looked at.
_MAX_FRAGMENT = 8  # Words of a reply that is an answer as it is.

# Signs that are no text: controls, those that turn the direction, halves of surrogate pairs.
_CONTROL = re.compile(
  "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_CUT = frozenset(("length", "max_tokens", "model_length"))
_FILTERED = frozenset(("content_filter", "safety"))
_LABEL = re.compile(
  r"(?:^|(?<=[.!?\n]\s)|(?<=\n))\s*(?:(?:so|therefore|thus|hence),?\s)?(?:(?:the|my|your)\s)?"
  r"(?:(?:final|correct|short|best)\s)?(?:answer|result|option|choice)(?:\sto\s[^:\n]{1,120}?)?"
  r"\s?(?:is\s?:?|:|would be)\s*(?!not\b)",
  re.IGNORECASE,
)
_ANSWER_LINE = re.compile(r"(?:^|\n)(?:A|Réponse|Respuesta|Antwort|Risposta|答え|答案)\s?[:：]\s*", re.I)
_CHOSEN = re.compile(r"(?:i (?:would )?(?:choose|pick|select)|(?:the )?(?:option|choice))\s+(?=\(?[a-h]\b)", re.I)
_HEADING = re.compile(r"(?:^|\n)\s*(?:final )?answer\s*:?\s*\n+", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-H])[).:]\s+")
_LETTER = re.compile(r"\(?([A-Ha-h])\)?[).:]?")
_LETTER_TEXT = re.compile(r"(?:\(([A-H])\)|([A-H])[).:])\s+(?=\S)")
_FLUFF = re.compile(
  r"(?:sure|certainly|of course|okay|ok|great question|absolutely|let me know|is there anything"
  r"|i hope|feel free|here(?:'s| is| are)|note\b|let's|let me|confidence|explanation|please note"
  r"|would you like)\b.*",
  re.IGNORECASE | re.DOTALL,
)
_TOTAL = re.compile(r"\b(?:total|altogether|in all)\b", re.IGNORECASE)
_FINAL = re.compile(r"(?:so|therefore|thus|hence|in total|overall|in conclusion)\b[,:]?\s", re.I)


@dataclasses.dataclass(frozen=True)
class Short:
  """What a reply amounts to.

  Attributes:
    text: the answer; None unless the kind is "answer" or "whole".
    kind: "answer"; "whole": no short answer could be taken, so the text is all that was said;
      "abstention": the model says that the image does not tell; "refusal": it will not answer;
      "truncated", "thinking", "empty": nothing was said to the end; "failed": no reply came.
  """

  text: str | None
  kind: Kind


def short_answer(
  raw: str, *, question: str = "", truncated: bool = False, finish: str | None = None
) -> Short:
  """Takes the short answer from a reply.

  Args:
    raw: what the model said.
    question: what it was asked, options included.
    truncated: whether the reply was cut at its longest.
    finish: why it ended, in the words of OpenAI's API, if that is known.
  """
  raw = _CONTROL.sub("", raw)
  if finish in _FILTERED:
    return Short(None, "refusal")
  rest = markup.without_thinking(raw)
  if rest is None:
    return Short(None, "thinking")
  if truncated or is_cut(finish):
    return Short(None, "truncated")
  if len(rest) > _MAX_READ:
    rest = f"{rest[: _MAX_READ // 2]}\n{rest[-_MAX_READ // 2 :]}"
  framed = markup.framed(rest)
  text = markup.plain(rest if framed is None else framed)
  if not text.strip(" .…*_`#\n\t"):
    return Short(None, "empty")
  return _read(text, question[:_MAX_READ])


def is_cut(finish: str | None) -> bool:
  """Whether a reply ended because it had become too long."""
  return finish in _CUT


def _read(text: str, question: str) -> Short:
  options = options_of(question)
  asked = Question.of(question.partition("\n")[0] if options else question)
  text = _without_question(text, question)
  if not text:
    return Short(None, "empty")
  labelled = _labelled(text)
  parts = sentences.split(text if labelled is None else labelled)
  if not parts:
    return Short(None, "empty")
  if asked.kind != "yes/no" or sentences.yes_or_no(parts[0], asked) is None:
    if declining.is_refusal(parts[0]):
      return Short(None, "refusal")
    if declining.is_abstention(parts[0], question):
      return Short(None, "abstention")
  whole = " ".join((text if labelled is None else labelled).split())
  found = _from_options(whole, parts, asked, options) if options else _answer(parts, asked)
  if found is None:
    return Short(clean(" ".join(text.split()))[:MAX_CHARS], "whole")
  return Short(found[:MAX_CHARS], "answer")


def options_of(question: str) -> dict[str, str]:
  """Returns the options of a question by letter, {} if it gives none: A and B at the least."""
  found = list(_OPTION.finditer(question))
  start = next((i for i, m in enumerate(found) if m[1] == "A"), len(found))
  found = found[start:]
  if len(found) < 2 or [m[1] for m in found] != list("ABCDEFGH"[: len(found)]):
    return {}
  ends = [m.start() for m in found[1:]] + [len(question)]
  return {m[1]: clean(question[m.end() : end].strip("( \n")) for m, end in zip(found, ends)}


def clean(text: str) -> str:
  """Returns a text without the quotes around it and the full stop behind it."""
  text = text.strip()
  for _ in range(2):
    text = text.rstrip(".;,。!！ ").strip() if len(text) > 1 else text
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”"), ("'", "'"), ("`", "`")):
      text = text[1:-1].strip()
  return text


def _without_question(text: str, question: str) -> str:
  """Returns a reply without the question that it repeats first."""
  asked = question.strip()
  for label in ("Q:", "Question:", ""):
    rest = text.removeprefix(label).lstrip() if label else text
    if asked and rest[: len(asked)].lower() == asked.lower():
      return rest[len(asked) :].strip()
  return text


def _labelled(text: str) -> str | None:
  """Returns what stands behind the last "Answer:" or "the answer is", to the end of its line."""
  ends = [m.end() for pattern in (_LABEL, _ANSWER_LINE, _HEADING, _CHOSEN) for m in pattern.finditer(text)]
  if not ends:
    return None
  line = text[max(ends) :].lstrip().partition("\n")[0].strip()
  return line or None


def _from_options(
  whole: str, parts: list[str], asked: Question, options: Mapping[str, str]
) -> str | None:
  """Returns the letter of the option that was chosen, or an answer beside the options."""
  by_text = {text.lower(): letter for letter, text in options.items()}
  if match := _LETTER.fullmatch(clean(whole)):
    return match[1].upper()
  if match := _LETTER_TEXT.match(whole):
    letter = match[1] or match[2]
    wanted, rest = options.get(letter, "").lower(), whole[match.end() :].lower()
    return letter if wanted and rest.startswith(wanted) else None
  found = _answer(parts, asked)
  if found is None:
    return None
  return by_text.get(found.lower(), found)


def _answer(parts: list[str], asked: Question) -> str | None:
  """Returns the answer in the sentences of a reply, None if it is not sure."""
  told = [p for p in parts if not _FLUFF.fullmatch(p)] or parts
  if not asked.is_english:
    return clean(told[0]) if len(told) == 1 and _is_fragment(told[0]) else None
  first = told[0]
  if asked.kind == "yes/no" and (found := sentences.yes_or_no(first, asked)):
    return found
  if any(sentences._TURNS.search(p.lower()) for p in told):
    return None
  if len(told) > 1 and _FINAL.match(told[-1]):
    return _from_sentence(told[-1], asked)
  if asked.kind == "count":
    return _count(told, asked)
  if asked.kind == "yes/no":
    short = len(told) == 1 and _is_fragment(first) and len(first.split()) <= 3
    return clean(first) if short and not first.lower().startswith(("yes", "no")) else None
  found = _from_sentence(first, asked)
  if found is not None or len(told) == 1:
    return found
  later = [sentences.said(p, asked) for p in told[1:] if sentences.repeats(p, asked)]
  sure = {text for text, _ in filter(None, later)}
  return sure.pop() if len(sure) == 1 else None


def _count(told: list[str], asked: Question) -> str | None:
  told = [p for p in told if _TOTAL.search(p)] or told
  found = [sentences.counted(p, asked) for p in told]
  sure = list(dict.fromkeys(f for f in found if f))
  if len(sure) == 1:
    return sure[0]
  if sure:
    return None
  return _from_sentence(told[0], asked) if len(told) == 1 else None


def _from_sentence(sentence: str, asked: Question) -> str | None:
  if asked.kind == "count" and (number := sentences.counted(sentence, asked)):
    return number
  if asked.kind == "choice":
    if (declined := sentences.yes_or_no(sentence, asked)) == "no":
      return declined
    if (named := sentences.chosen(sentence, asked)) is not None:
      return named
  if (found := sentences.said(sentence, asked)) is not None:
    return clean(found[0])
  if not _is_fragment(sentence):
    return None
  if match := _LETTER_TEXT.match(sentence):
    sentence = sentence[match.end() :]
  return sentences.without_about(clean(sentences.main_clause(sentence)))


def _is_fragment(sentence: str) -> bool:
  """Whether a text is no sentence: few words and no verb that we know."""
  plain = [w.plain for w in sentences.words(sentence)]
  is_data = sentence.startswith(("{", "["))
  return len(plain) <= _MAX_FRAGMENT and not sentences._BE & set(plain) and not is_data
