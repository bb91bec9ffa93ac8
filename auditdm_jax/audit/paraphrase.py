# SPDX-License-Identifier: Apache-2.0
"""Other wordings of questions, by a language model, where no grammar of a world gives them.

1. The model is asked for one wording at a time, in manners whose order a named stream draws for
   each question. It answers greedily, so an endpoint that ignores seeds serves as well.
2. A wording is the one question in the reply, bounded and printable.
3. It counts only if it keeps what can be checked (`keeps`): negations, numbers, names, sides and
   superlatives with what they are of, what is asked for, and two thirds of the words that carry
   meaning. The rules are ours. They are made for English and err towards rejection.
4. A wording that was there already, but for case and punctuation, is no new one.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import re

from auditdm_jax.audit.judging import tables
from auditdm_jax.audit.judging.model import TextModel
from auditdm_jax.audit.judging.numbers import read_numbers
from auditdm_jax.audit.judging.tokens import clean, scan
from auditdm_jax.audit.words import STOP
from auditdm_jax.core import streams
from auditdm_jax.text import english, markup

PROMPT = """\
Reword this question about a picture. {manner}
Keep its meaning: the same things, numbers, names, sides and negations, and the same answer.
Question: {question}
Reply with the reworded question only, on one line."""
MANNERS = (
  "Change the order of its words.",
  "Say it with more words.",
  "Begin with another word.",
  "Say it as one would say it to a friend.",
)
_MAX_QUESTION = 400  # Characters; longer questions are not reworded.
_MAX_REPLY = 4_000
_LABEL = re.compile(
  r"^(?:(?:[-*•]|\d{1,2}[.)])\s+)?(?:(?:the )?(?:reworded|rephrased|new)?\s?question\s*:\s*)?", re.I
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "`": "`"}
_SPECIAL = re.compile(r"</?[A-Za-z_][\w|]*>|<\|")
_QUOTED = re.compile(r"[\"“”]([^\"“”]+)[\"“”]")
_WORD = re.compile(r"\w+(?:['’.:]\w+)*")
# Words without which a question is another one; a row holds those that are one.
_FIXED = {
  word: row[0]
  for row in (
    *(["left"], ["right"], ["top", "upper", "topmost"], ["bottom", "lower"], ["front"], ["center"]),
    *(["above", "over"], ["below", "under", "beneath", "underneath"], ["before"], ["after"]),
    *(["last", "final"], ["most"], ["least"], ["more"], ["less", "fewer"], ["only"], ["except"]),
    *(["largest", "biggest"], ["smallest", "tiniest"], ["tallest", "highest"], ["shortest"]),
    *(["nearest", "closest"], ["farthest", "furthest"], ["all", "every", "each"], ["other"]),
    *(["north"], ["south"], ["east"], ["west"], ["same"], ["different"], ["bigger", "larger"]),
    *(["smaller"], ["between"], ["behind"], ["inside"], ["outside"], ["middle", "centre"]),
  )
  for word in row
}
_ASKED = {"which": "what", "whose": "who", "whom": "who", "much": "many"}
_KEPT = 2 / 3  # Share of the words that carry meaning which a wording has to keep.
_ADDED = 3  # Most of them that it may bring.


@dataclasses.dataclass(frozen=True)
class Paraphraser:
  """A model that rewords questions.

  Attributes:
    model: answers prompts without images.
    seed: of the run.
    max_new_tokens: of a reply.
  """

  model: TextModel
  seed: int
  max_new_tokens: int = 96

  def reword(self, questions: Sequence[str], count: int) -> dict[str, tuple[str, ...]]:
    """Returns up to `count` other wordings of each question; () where none could be had.

    A question takes at most one prompt for each of `MANNERS`.
    """
    found: dict[str, list[str]] = {q: [] for q in questions}
    for turn in range(len(MANNERS)):
      rows = [q for q, own in found.items() if len(own) < count and len(q) <= _MAX_QUESTION]
      if not rows:
        break
      prompts = [self._prompt(question, turn) for question in rows]
      replies = self.model.answer(
        [None] * len(prompts), prompts, max_new_tokens=self.max_new_tokens
      )
      for question, reply in zip(rows, replies, strict=True):
        wording = read_reply(reply or "")
        if wording and keeps(question, wording) and _is_new(wording, [question, *found[question]]):
          found[question].append(wording)
    return {question: tuple(own) for question, own in found.items()}

  def _prompt(self, question: str, turn: int) -> str:
    order = streams.rng(self.seed, "paraphrase", question).permutation(len(MANNERS))
    text = " ".join(question.split())
    return PROMPT.format(manner=MANNERS[int(order[turn])], question=text)


def read_reply(reply: str) -> str | None:
  """Returns the question in a reply, or None if there is none, or none that can be used."""
  rest = markup.without_thinking(reply[:_MAX_REPLY])
  if rest is None:
    return None
  lines = [line.strip() for line in markup.plain(rest).splitlines() if line.strip()]
  asking = [line for line in lines if line.rstrip("\"'”’`").endswith("?")]
  if not asking and len(lines) != 1:
    return None
  text = _LABEL.sub("", (asking or lines)[0]).strip()
  if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
    text = text[1:-1].strip()
  usable = text.isprintable() and len(text) <= _MAX_QUESTION and not _SPECIAL.search(text)
  return text if usable and _WORD.search(text) and text.count("?") <= 1 else None


def keeps(question: str, wording: str) -> bool:
  """Whether a wording keeps all of a question's meaning that can be checked without a model."""
  if any(check(question) != check(wording) for check in (_negations, _numbers, _fixed, _asked)):
    return False
  words = {w.casefold() for w in _WORD.findall(wording)}
  if not {w.casefold() for w in _names(question)} <= words:
    return False
  if any(text.casefold() not in wording.casefold() for text in _QUOTED.findall(question)):
    return False
  theirs = _objects(wording)
  if any(not _alike(x, theirs.get(side, x)) for side, x in _objects(question).items()):
    return False
  before, after = _meaning(question), _meaning(wording)
  kept = [word for word in before if any(_alike(word, other) for other in after)]
  added = [word for word in after if not any(_alike(word, other) for other in before)]
  return len(kept) >= _KEPT * len(before) and len(added) <= _ADDED


def _is_new(wording: str, others: Sequence[str]) -> bool:
  """Whether it differs from the others in more than case and punctuation."""
  mine = _WORD.findall(wording.casefold())
  return all(mine != _WORD.findall(other.casefold()) for other in others)


def _negations(text: str) -> int:
  return sum(english.is_negated(w.plain) for w in english.words(text))


def _numbers(text: str) -> list[str]:
  """Numbers, ordinals and times, sorted: "two" is "2"."""
  tokens = read_numbers(scan(clean(text)))
  return sorted(t.text for t in tokens if t.kind in ("number", "fraction", "clock", "ordinal"))


def _fixed(text: str) -> Counter[str]:
  return Counter(_FIXED[w.plain] for w in english.words(text) if w.plain in _FIXED)


def _objects(text: str) -> dict[str, str]:
  """The word after each fixed one: above the dog is not above the cat."""
  meaning, found, side = set(_meaning(text)), {}, ""
  for word in (w.plain for w in english.words(text)):
    if word in _FIXED:
      side = _FIXED[word]
    elif side and word in meaning:
      found.setdefault(side, word)
      side = ""
  return found


def _asked(text: str) -> frozenset[str]:
  """The words that say what is asked for; none of a question for yes or no."""
  found = {_ASKED.get(w.plain, w.plain) for w in english.words(text) if w.plain in english.WH}
  return frozenset(found - {"how"} if "many" in found else found)


def _names(text: str) -> list[str]:
  """Words in capitals, but for the first one, and words with digits."""
  words = _WORD.findall(text)
  capital = [w for w in words[1:] if w[0].isupper() and w != "I"]
  return capital + [w for w in words if any(c.isdigit() for c in w) and any(map(str.isalpha, w))]


def _meaning(text: str) -> list[str]:
  """Words that carry meaning, each once, without those that are checked by themselves."""
  words = (w.plain for w in english.words(text))
  numbers = {t.raw.casefold() for t in read_numbers(scan(clean(text))) if t.value is not None}
  own = (
    w
    for w in words
    if w not in STOP | english.AUXILIARIES | english.NEGATIONS | english.PRONOUNS
    and w not in _FIXED
    and w not in numbers
  )
  return list(dict.fromkeys(own))


def _alike(a: str, b: str) -> bool:
  """Whether two words have one stem or are synonyms in the judge's table."""
  return english.stem(a) == english.stem(b) or tables.load().synonyms(a, b)
