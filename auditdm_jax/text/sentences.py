# SPDX-License-Identifier: Apache-2.0
"""Takes the short answer from an English sentence: what it adds to the words of its question.

    what is the man holding?    The man is holding a [phone].
    how many cats are there?    There are [three] cats in the image.
    is there a dog?             There is a dog in the picture.  -> yes
    where is the cat?           The cat is sitting [on the sofa].

Neither parser nor model: a word is one of the question's (echo), one that carries no answer
(filler), or another. The others must stand together, or nothing is taken. What these rules are
worth is measured by `benchmarks.short_answers`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Literal

from auditdm_jax.text import english
from auditdm_jax.text.english import Word, content, words

Kind = Literal["yes/no", "choice", "count", "place", "other"]

_HOW_MANY = re.compile(r"how many\b|what (?:is |was )?(?:the )?(?:total |exact )?number of\b")
_PLACE = re.compile(r"\b(?:where|when|which side|direction|relation|position)\b")
_ABSENT = re.compile(
  r"there(?: is|'s| are) no (?P<a>[^,;.]+)\.?$"
  r"|no (?P<b>[^,;.]+) (?:is|are) (?:visible|shown|present|there)\.?$",
  re.IGNORECASE,
)
# "It says No parking": all that follows, word for word.
_READING = frozenset("say says read reads written".split())
_SAYS = re.compile(r"(?:it|the [\w ]{1,60}?) (?:says|reads):? (?!that\b)(.+)", re.IGNORECASE)
_NO_NUMBER = re.compile(r"\b(?:no|aren't any|isn't any|not any)\b")
_QUOTED = re.compile(r"[\"“]([^\"“”]{1,200})[\"”]|(?<!\w)'([^']{2,200})'(?!\w)")
# "a phone in his right hand" is a phone.
_OWN = re.compile(
  r"\s(?:in|on|with|from|over|around|under|to|at)\s"
  r"(?:his|her|their|its|the (?:man|woman|boy|girl))(?:'s)?\s.*$"
)
_POINTING = frozenset("the another this that which".split())  # "the one on the left"
_IT_IS = re.compile(
  r"(?:it|this|that)(?: is|'s| was) (?!not\b)(\S{1,40}(?: \S{1,40}){0,2}?)\.?$", re.IGNORECASE
)
_SENSES = frozenset("look feel taste smell sound seem appear".split())
_BOUNDS = frozenset("at least most more less than over under nearly almost".split())
# Questions about what goes on, whose answers begin with a verb.
_ACTIONS = frozenset("doing happening activity action weather feel feeling playing".split())


@dataclasses.dataclass(frozen=True)
class Question:
  """The parts of a question that matter for finding its answer.

  Attributes:
    text: as it was asked.
    kind: what it asks for.
    echo: stems of its content words, in order.
    plain: its words.
    choices: the two alternatives in "a dog or a cat".
  """

  text: str
  kind: Kind
  echo: tuple[str, ...]
  plain: frozenset[str]
  choices: tuple[str, ...] = ()

  @property
  def is_english(self) -> bool:
    return bool(self.plain & english.QUESTION_WORDS) or not self.plain

  @property
  def degree(self) -> str | None:
    """Returns the stem of the adjective in "how full is …"."""
    asked = words(self.text)
    after = (b.stem for a, b in zip(asked, asked[1:]) if a.plain == "how")
    return next(after, None)

  @property
  def is_about_text(self) -> bool:
    return bool(self.plain & _READING)

  @property
  def is_about_action(self) -> bool:
    return bool(self.plain & _ACTIONS)


@functools.lru_cache(maxsize=1024)
def read(text: str) -> Question:
  """Returns what matters of a question."""
  plain = [w.plain.removesuffix("'s") for w in words(text)]
  kind = _kind_of(plain)
  choices = _choices(text) if kind == "choice" else ()
  # Alternatives are answers, and no echo.
  ignored = {w.stem for choice in choices for w in content(choice)}
  asking = english.WH | english.AUXILIARIES
  echo = [w.stem for w in content(text) if w.plain.removesuffix("'s") not in asking]
  return Question(text, kind, tuple(s for s in echo if s not in ignored), frozenset(plain), choices)


def _kind_of(plain: Sequence[str]) -> Kind:
  text = " ".join(plain)
  if "or" in plain:
    return "choice"
  if _HOW_MANY.search(text):
    return "count"
  if plain and (plain[0] in english.AUXILIARIES or not english.WH & set(plain)):
    return "yes/no"
  return "place" if _PLACE.search(text) else "other"


def _choices(text: str) -> tuple[str, ...]:
  """Returns the alternatives around the last "or", the first one as long as the second."""
  before, _, after = text.strip(" ?.").lower().rpartition(" or ")
  aside, comma, listed = before.rpartition(", ")
  if comma and english.WH & {w.plain for w in words(aside)}:
    return english.bare(listed), english.bare(after)  # "Which is bigger, the dog or the cat?"
  second = content(after)
  first = content(before)[-len(second) or None :]
  if not first or not second:
    return ()
  return before[first[0].start : first[-1].end], after[second[0].start : second[-1].end]


def yes_or_no(sentence: str, question: Question) -> str | None:
  """Returns "yes" or "no" if that is what a sentence says, else None."""
  opening = [w.plain for w in words(sentence)][:3]
  sentence = english.without_lead_in(sentence)
  said = words(sentence)
  both = bool(english.YES & set(opening)) and bool(english.NO & set(opening))
  for start in (*opening[:1], *(w.plain for w in said[:1])):
    if start in english.YES | english.NO and not both:
      return "yes" if start in english.YES else "no"
  denied = any(english.is_negated(w.plain) for w in said)
  rest = [w.stem for w in content(sentence) if not english.is_negated(w.plain)]
  asked = list(question.echo)
  if asked != rest and len(asked) > 1 and english.PRONOUNS & {w.plain for w in said}:
    asked = asked[1:]  # "he" stands for the subject.
  # In one order: "more dogs than cats" is not "more cats than dogs".
  return ("no" if denied else "yes") if asked and asked == rest else None


def chosen(sentence: str, question: Question) -> str | None:
  """Returns the alternative of the question that a sentence names, if it names but one."""
  main = {w.stem for w in words(english.main_clause(english.without_lead_in(sentence)))}
  parts = [{w.stem for w in content(choice)} for choice in question.choices]
  named = [
    i
    for i, own in enumerate(parts)
    if own <= main and not any((other - own) & main for other in parts if other is not own)
  ]
  return question.choices[named[0]] if len(named) == 1 else None


def counted(sentence: str, question: Question) -> str | None:
  """Returns the number in a sentence that answers "how many", or None."""
  said = words(sentence)
  plain = [w.plain for w in said]
  if english.UNSURE & set(plain) or "between" in plain:
    return None
  found = _numbers(said)
  if not found and _NO_NUMBER.search(" ".join(plain)):
    return "zero" if set(question.echo) & {w.stem for w in said} else None
  if len(found) > 1:
    total = [(a, b) for a, b in found if plain[a - 1 : a] == ["of"] and "total" in plain[:a]]
    things = [
      (a, b)
      for a, b in found
      if question.echo[:1]
      and question.echo[0] in {w.stem for w in said[b : b + 2]}
      and plain[max(a - 2, 0) : a] != ["of", "the"]  # "of the five people"
    ]
    found = total or things
  if len(found) != 1:
    return None
  start, end = found[0]
  while start and plain[start - 1] in _BOUNDS | {"a"}:
    start -= 1
  return sentence[said[start].start : said[end - 1].end]


def _numbers(said: Sequence[Word]) -> list[tuple[int, int]]:
  """Returns [start, end) of the runs of number words. "the one on the left" does not count."""
  runs: list[tuple[int, int]] = []
  for i, word in enumerate(said):
    is_number = (
      re.fullmatch(r"\d[\d,.]*", word.plain) or set(word.plain.split("-")) <= english.NUMBERS
    )
    pointed = i and said[i - 1].plain in _POINTING
    if not is_number or (word.plain == "one" and pointed):
      continue
    if runs and runs[-1][1] == i:
      runs[-1] = (runs[-1][0], i + 1)
    else:
      runs.append((i, i + 1))
  return runs


def answer_in(sentence: str, question: Question) -> str | None:
  """Returns what a sentence says beyond its question.

  None if these words are not next to each other, or if the sentence is not certain.
  """
  sentence = english.without_lead_in(sentence)
  quoted = ["".join(groups) for groups in _QUOTED.findall(sentence)]
  if len(quoted) == 1 and len(words(sentence)) > len(words(quoted[0])):
    return None if quoted[0].lower() in question.text.lower() else quoted[0]
  if sentence.count('"') % 2:
    return None  # The rest of the quotation is another sentence.
  if question.is_about_text and (match := _SAYS.match(sentence)):
    return english.bare(match[1])
  if (match := _ABSENT.match(sentence)) and (things := content(match["a"] or match["b"])):
    if all(w.stem in question.echo for w in things):
      return "none"  # "There is no dog.", where its colour was asked.
  found = _beyond(english.main_clause(sentence), question)
  if found is None and (match := _IT_IS.match(sentence)) and question.kind == "other":
    plain = {w.plain for w in words(match[1])}
    found = english.bare(match[1]) if not plain & (english.UNSURE | english.VERBS) else None
  if found and {"percentage", "percent"} & question.plain and not re.search(r"%|percent", found):
    return None
  return found


def shared(sentence: str, question: Question) -> int:
  """Returns how many content words of its question a sentence holds."""
  return len(set(question.echo) & {w.stem for w in words(sentence)})


def repeats(sentence: str, question: Question) -> bool:
  """Returns whether a sentence holds all content words of its question."""
  return shared(sentence, question) == len(set(question.echo))


def _beyond(sentence: str, question: Question) -> str | None:
  said = words(sentence)
  plain = [w.plain for w in said]
  roles = [_role(sentence, i, question) for i in range(len(said))]
  other = [i for i, role in enumerate(roles) if role == "other"]
  if not other and said and said[-1].stem == question.degree:
    return plain[-1]  # "How full is it?" "It is full."
  if not other or english.UNSURE & set(plain):
    return None
  announced = english.NOUNS & question.plain and english.NOUNS & set(plain)
  if "echo" not in roles and not announced and plain[0] not in english.SUBJECTS:
    return None
  first, last = other[0], other[-1] + 1
  verbs = [i for i in range(first, last) if plain[i] in english.BE]
  if (
    len(verbs) == 1 and "echo" in roles[:first] and plain[verbs[0] - 1] not in english.WH | {"that"}
  ):
    first = next(i for i in other if i > verbs[0])  # "The car by the tree is [red]."
  elif verbs:
    return None
  if plain[last : last + 1] == ["room"]:
    last, roles = last + 1, [*roles[:last], "other", *roles[last + 1 :]]  # "a [living room]"
  if "echo" in roles[first:last] or _is_half(roles, plain, first, last):
    return None
  if _is_other_verb(plain, first, question):
    return None
  if question.kind == "place":
    while first and plain[first - 1] in english.PREPOSITIONS | english.ARTICLES:
      first -= 1
  text = sentence[said[first].start : said[last - 1].end]
  if question.kind != "place" and not question.is_about_action:
    text = _OWN.sub("", text)
  return english.bare(text)


def _role(sentence: str, i: int, question: Question) -> Literal["echo", "filler", "other"]:
  """Returns what word i is to the question."""
  word = words(sentence)[i]
  as_written = sentence[word.start : word.end]
  if word.stem in question.echo:
    return "echo"
  pointed = i > 0 and words(sentence)[i - 1].plain in _POINTING
  if word.plain == "one" and not pointed and "one" not in question.plain:
    return "other"
  if i and len(as_written) == 1 and as_written.isupper() and as_written != "I":
    return "other"  # The letter A is no article.
  if question.kind == "place" and word.plain in english.PREPOSITIONS - english.FILLER:
    return "other"
  if word.plain in english.POSTURES and not question.plain & {"doing", "posture", "pose"}:
    return "filler"
  return "filler" if word.plain in english.FILLER else "other"


def _is_half(roles: Sequence[str], plain: Sequence[str], first: int, last: int) -> bool:
  """Returns whether words [first, last) leave out words of the question: "near the blue" car."""
  return roles[last : last + 1] == ["echo"] and bool(english.TIES & set(plain[first:last]))


def _is_other_verb(plain: Sequence[str], first: int, question: Question) -> bool:
  """Returns whether an answer begins with a verb not asked about: "is [enjoying] pizza"."""
  if question.is_about_action or question.kind == "place":
    return False
  if "how" in question.plain and question.plain & {"do", "does", "did"}:
    return not question.plain & _SENSES  # A manner: "got there by bike".
  is_verb = plain[first].endswith("ing") and plain[first] not in english.ING
  return is_verb and first > 0 and plain[first - 1] in english.BE
