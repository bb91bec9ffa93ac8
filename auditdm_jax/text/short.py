# SPDX-License-Identifier: Apache-2.0
"""Takes the short answer from what a model said, so that models that talk can be compared.

1. A reply that was cut, or that never left its thinking, has no answer.
2. Marks around the answer are taken off: tags, JSON, LaTeX boxes, fences, Markdown.
3. Refusals and abstentions are told apart from answers, see `text.declining`.
4. "Answer: red", "The answer is **red**": what follows. Where the question gives options, their
   letter.
5. A sentence: what it says beyond the words of its question, see `text.sentences`.

Where none of these is sure, the whole text stays, as kind "whole". Nothing is guessed.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Literal

from auditdm_jax.text import declining, english, markup, sentences
from auditdm_jax.text.sentences import Question

Kind = Literal[
  "answer", "whole", "abstention", "refusal", "truncated", "thinking", "empty", "failed"
]

MAX_CHARS = 400  # Of an answer.
_MAX_READ = 4000  # Characters of a reply that are looked at: of a longer one beginning and end.
_AS_IT_IS = 5  # Words of a reply that is taken as it is, if it is no sentence.
_MAX_FRAGMENT = 8  # Words of one that is taken if it repeats nothing of its question.

# Signs that are no text: controls, those that turn the direction, halves of surrogate pairs.
_CONTROL = re.compile(
  "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_CUT = frozenset(("length", "max_tokens", "model_length"))
_FILTERED = frozenset(("content_filter", "safety"))
_LABELS = (
  # "So the final answer is: ", "Result: ", "The answer to the question is "
  re.compile(
    r"(?:^|(?<=[.!?\n]\s)|(?<=\n))\s*(?:(?:so|therefore|thus|hence),?\s)?"
    r"(?:i (?:believe|think|would say)(?: that)?\s)?(?:(?:the|my|your)\s)?"
    r"(?:(?:final|correct|short|best)\s)?(?:answer|result|option|choice)(?:\sto\s[^:\n]{1,120}?)?"
    r"\s?(?:is\s?:?|:|would be)\s*(?!not\b)",
    re.IGNORECASE,
  ),
  re.compile(
    r"(?:^|\n)(?:A|Réponse|Respuesta|Antwort|Risposta|答え|答案)\s?[:：]\s*", re.IGNORECASE
  ),
  re.compile(r"(?:^|\n)\s*(?:final )?answer\s*:?\s*\n+", re.IGNORECASE),
  re.compile(
    r"(?:i (?:would )?(?:choose|pick|select)|(?:the )?(?:option|choice))\s+(?=\(?[a-h]\b)",
    re.IGNORECASE,
  ),
)
_OPTION = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-H])[).:]\s+")
_LETTER = re.compile(r"\(?([A-Ha-h])\)?[).:]?")
_LETTER_TEXT = re.compile(r"(?:\(([A-H])\)|([A-H])[).:])\s+(?=\S)")
_MARK = re.compile(r"^(?:\([A-H]\)|[A-H][).:]|1[.)])\s+(?=\S)")
_FLUFF = re.compile(
  r"(?:sure|certainly|of course|okay|ok|great question|absolutely|let me know|is there anything"
  r"|i hope|feel free|here(?:'s| is| are)|note\b|let's|let me|confidence|explanation|please note"
  r"|would you like)\b.*",
  re.IGNORECASE | re.DOTALL,
)
_TURN = re.compile(
  r"\b(?:but|however|although|though|except|on second thought)\b|^(?:wait|correction|actually)\b",
  re.IGNORECASE,
)
_TOTAL = re.compile(r"\b(?:total|altogether|in all)\b", re.IGNORECASE)
_FEW = frozenset(("several", "many", "few", "none"))
_FINAL = re.compile(r"(?:so|therefore|thus|hence|in total|overall|in conclusion)\b[,:]?\s", re.I)
_QUOTES = {'"': '"', "“": "”", "'": "'", "`": "`"}


@dataclasses.dataclass(frozen=True)
class Short:
  """The answer in a reply, and what kind of reply it was.

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
  if finish in _FILTERED:
    return Short(None, "refusal")
  rest = markup.without_thinking(_CONTROL.sub("", raw))
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
  """Returns whether a reply ended because it had become too long."""
  return finish in _CUT


def options_of(question: str) -> dict[str, str]:
  """Returns the options of a question by letter; {} unless A and B are among them."""
  found = list(_OPTION.finditer(question))
  start = next((i for i, m in enumerate(found) if m[1] == "A"), len(found))
  found = found[start:]
  if len(found) < 2 or [m[1] for m in found] != list("ABCDEFGH"[: len(found)]):
    return {}
  ends = [m.start() for m in found[1:]] + [len(question)]
  return {m[1]: _clean(question[m.end() : end].strip("( \n")) for m, end in zip(found, ends)}


def _read(text: str, question: str) -> Short:
  """Returns the short answer in a text that has no marks and is not empty."""
  options = options_of(question)
  asked = sentences.read(question.partition("\n")[0] if options else question)
  text = _without_question(text, question)
  labelled = _labelled(text)
  told = text if labelled is None else labelled
  if not options:
    told = _MARK.sub("", told, count=1)  # A letter without options says nothing.
  parts = english.sentences(told)
  if not parts:
    return Short(None, "empty")
  if asked.kind != "yes/no" or sentences.yes_or_no(parts[0], asked) is None:
    if declining.is_refusal(parts[0]):
      return Short(None, "refusal")
    if declining.is_abstention(parts[0], question):
      return Short(None, "abstention")
  found = _from_options(parts, asked, options) if options else _from_sentences(parts, asked)
  if found:
    return Short(found[:MAX_CHARS], "answer")
  whole = _clean(" ".join(text.split()))[:MAX_CHARS]
  return Short(whole, "whole") if whole else Short(None, "empty")


def _without_question(text: str, question: str) -> str:
  """Returns a reply without the question that it repeats first."""
  asked = question.strip()
  for label in ("Q:", "Question:", ""):
    rest = text.removeprefix(label).lstrip() if label else text
    ends = not rest[len(asked) :] or not asked[-1:].isalnum() or rest[len(asked)] in "?.:\n"
    if asked and rest[: len(asked)].lower() == asked.lower() and ends:
      return rest[len(asked) :].lstrip("?.: \n").strip()
  for quotes in ('""', "“”"):
    text = text.replace(f"{quotes[0]}{asked}{quotes[1]}", "it")
  return text


def _labelled(text: str) -> str | None:
  """Returns what follows the last "Answer:" or "the answer is", to the end of its line."""
  ends = [match.end() for pattern in _LABELS for match in pattern.finditer(text)]
  if not ends:
    return None
  line = text[max(ends) :].lstrip().partition("\n")[0].strip()
  return line or None


def _from_options(parts: Sequence[str], asked: Question, options: Mapping[str, str]) -> str | None:
  """Returns the letter of the option that was chosen, or an answer besides the options."""
  whole = " ".join(" ".join(parts).split())
  if match := _LETTER.fullmatch(_clean(whole)):
    return match[1].upper()
  if match := _LETTER_TEXT.match(whole):
    letter = match[1] or match[2]
    wanted, rest = options.get(letter, "").lower(), whole[match.end() :].lower()
    return letter if wanted and rest.startswith(wanted) else None
  found = _from_sentences(parts, asked)
  if found is None:
    return None
  by_text = {text.lower(): letter for letter, text in options.items()}
  return by_text.get(found.lower(), found)


def _from_sentences(parts: Sequence[str], asked: Question) -> str | None:
  """Returns the answer in the sentences of a reply, None if it is not sure."""
  told = [p for p in parts if not _FLUFF.fullmatch(p)] or list(parts)
  first, alone = told[0], len(told) == 1
  if not asked.is_english:
    few = _is_fragment(first, most=_MAX_FRAGMENT, asked=asked)
    return _clean(first) if alone and few else None
  if asked.kind == "yes/no":
    return sentences.yes_or_no(first, asked) or (_word(first, asked) if alone else None)
  if any(_TURN.search(p) for p in told) or (asked.is_about_text and not alone):
    return None
  if not alone and _FINAL.match(told[-1]):
    return _from_sentence(told[-1], asked)
  if asked.kind == "count":
    return _count(told, asked)
  found = _from_sentence(first, asked)
  if found is not None or alone:
    return found
  later = {sentences.answer_in(p, asked) for p in told[1:] if sentences.repeats(p, asked)} - {None}
  return later.pop() if len(later) == 1 else None


def _word(sentence: str, asked: Question) -> str | None:
  """Returns up to three words that are no sentence, as an answer to a yes/no question."""
  short = _is_fragment(sentence, most=3, asked=asked)
  return _clean(sentence) if short and not sentence.lower().startswith(("yes", "no")) else None


def _count(told: Sequence[str], asked: Question) -> str | None:
  """Returns the only number in sentences that answer "how many": the total, if there is one."""
  told = [p for p in told if _TOTAL.search(p)] or told
  numbers = {n for p in told if (n := sentences.counted(p, asked))}
  if not numbers and len(told) == 1 and (found := _from_sentence(told[0], asked)):
    few = _is_fragment(told[0], most=_MAX_FRAGMENT, asked=asked)
    return found if few or found.lower() in _FEW else None
  return numbers.pop() if len(numbers) == 1 else None


def _from_sentence(sentence: str, asked: Question) -> str | None:
  if asked.kind == "count" and (number := sentences.counted(sentence, asked)):
    return number
  if _QUOTES.get(sentence[0]) == sentence[-1] and len(sentence) > 1:
    return _clean(sentence)  # What a sign says, word for word.
  if sentences.shared(sentence, asked) < 2 and _is_fragment(sentence, most=_AS_IT_IS, asked=asked):
    return _fragment(sentence)  # Not "Russia exported the most wheat".
  if asked.kind == "choice":
    if sentences.yes_or_no(sentence, asked) == "no":
      return "no"
    if (choice := sentences.chosen(sentence, asked)) is not None:
      return choice
  if (found := sentences.answer_in(sentence, asked)) is not None:
    return _clean(found)
  main = english.main_clause(english.without_lead_in(sentence))
  if sentences.shared(main, asked):
    return None
  main = sentence if asked.is_about_text else main
  return _fragment(main) if _is_fragment(main, most=_MAX_FRAGMENT, asked=asked) else None


def _fragment(text: str) -> str:
  """Returns the answer in a few words that are no sentence."""
  return english.without_about(_clean(text))


def _is_fragment(text: str, *, most: int, asked: Question) -> bool:
  """Returns whether a text is no sentence: it has few words and no known subject or verb.

  What is to be read out may begin with any word.
  """
  plain = [w.plain for w in english.words(text)]
  if len(plain) > most or text.startswith(("{", "[")):
    return False
  if not asked.is_about_text and {*plain[:1]} & (english.SUBJECTS | {"i"}):
    return False
  return not (english.VERBS | english.UNSURE) & set(plain)


def _clean(text: str) -> str:
  """Returns a text without the quotes around it and the full stop at its end."""
  text = text.strip()
  for _ in range(2):
    text = text.rstrip(".;,。!！ ") or text
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
      text = text[1:-1].strip()
  return text
