# SPDX-License-Identifier: Apache-2.0
"""The short answer in an English sentence: what it says beyond the words of its question.

    what is the man holding?    The man is holding [a phone].
    how many cats are there?    There are [three] cats in the image.
    is there a dog?             There is a dog in the picture.  -> yes
    where is the cat?           The cat is sitting [on the sofa].

No parser and no model: words are those of the question (echo), words that carry no answer (filler)
or others. The others must stand together, or nothing is taken. The rules are ours; what they are
worth is measured by `benchmarks.short_answers`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re

_AUXILIARIES = frozenset(
  "is are was were am do does did can could has have had will would should must may might isn't"
  " aren't doesn't don't".split()
)
_WH = frozenset("what which who whose whom where when why how".split())
_ENGLISH = _WH | frozenset("is are was does did the there describe name can you".split())
_ARTICLES = frozenset("a an the".split())
_BE = frozenset("is are was were be been being am it's that's he's she's they're".split())
_PRONOUNS = frozenset(
  "it this that these those there here he she they him them we i you one it's he's she's they're"
  " i'm there's that's".split()
)
_PICTURE = frozenset(
  "image images picture pictures photo photos photograph photographs scene frame screenshot".split()
)
_YES, _NO = frozenset("yes yeah yep yup".split()), frozenset("no nope nah".split())
_NEGATIONS = frozenset("no not never none cannot without neither nothing".split())
# Words that may surround an answer and are none.
_FILLER = (
  _ARTICLES | _BE | _PRONOUNS | _PICTURE | frozenset(
    "of in on at to for with from by and as its his her their our your has have had having do does"
    " did can could been appears appear appeared seems seem seemed looks look like likely probably"
    " clearly shown depicted visible seen displayed pictured given provided contains contain includes"
    " include shows show features feature depicts depict says say reads read reading called named"
    " labeled labelled marked dated titled titled written located situated placed positioned found"
    " should would will must equal equals some any also currently actually itself object thing item color colour colored coloured"
    " kind type sort word words text name number time shape side total there see".split()
  )
)  # fmt: skip
_POSTURES = frozenset(
  "sit sits sitting stand stands standing lie lies lying rest rests resting hang hangs hanging"
  " perched seated parked".split()
)
_PREPOSITIONS = frozenset(
  "on in at to under below above behind near beside over next between inside outside against from"
  " by around along across off up down left right during before after".split()
)
_TIES = frozenset("of to in on at under below above behind near beside between inside with".split())
_MENDED = {
  "ridden": "ride", "worn": "wear", "held": "hold", "eaten": "eat", "written": "write",
  "taken": "take", "shown": "show", "driven": "drive", "drawn": "draw", "thrown": "throw",
  "broken": "break", "made": "make", "sitting": "sit", "lying": "lie", "taller": "tall",
}  # fmt: skip
_PHRASE_ENDS = re.compile(
  r"(?:,\s|\s)(?:because|since|while|whereas|which|who|not|than)\s"
  r"|,\s(?:as|so|with|where|when|likely|possibly|perhaps|probably|specifically|including|located"
  r"|rather|\w{2,20}ing|and (?:it|he|she|they|there|the))\s|;\s|\s[-–—]\s|\s\("
)
_QUOTED = re.compile(r"[\"“]([^\"“”]{1,200})[\"”]|(?<!\w)'([^']{2,200})'(?!\w)")
_THERE_IS_NO = re.compile(r"there (?:is|are) no ([^,;.]+)\.?$", re.IGNORECASE)
_UNSURE = frozenset("could might may either possibly perhaps maybe or another".split())
_TURNS = re.compile(
  r"\b(?:but|however|although|though|except|on second thought)\b|^(?:wait|correction|actually)\b"
)
_LEAD_INS = (
  re.compile(
    r"(?:based on|according to|judging (?:by|from)|looking at|in|from|given|on|out of)\s[^,.]{1,80},\s"
  ),
  re.compile(
    r"(?:sure|certainly|of course|okay|ok|well|so|therefore|thus|hence|overall|in total|in conclusion"
    r"|in this case|upon closer inspection|yes)[,:]?\s"
  ),
  re.compile(
    r"(?:i|we|you) (?:can |could )?(?:clearly )?(?:see|observe|count|believe|think)(?: that)?\s"
  ),
  re.compile(
    r"it (?:is|'s) (?:clear|clearly visible|evident|obvious|likely) that\s|it (?:looks like|appears"
    r"(?: that|(?= there))|seems(?: that| like))\s"
  ),
)
_NUMBER_OF = re.compile(r"what (?:is |was )?(?:the )?(?:total |exact )?number of\b")
_PLACE = re.compile(r"\b(?:where|when|which side|direction)\b")
_NUMBERS = frozenset(
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
  " sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred"
  " thousand million dozen".split()
)
_BOUNDS = frozenset("least most more less than over under nearly almost between".split())
_NOT_ACTIONS = frozenset("doing happening activity action weather feel feeling playing".split())
_ABOUT = re.compile(
  rf"^(?:about|approximately|around|roughly)\s(?=[$£€]?\d|(?:half|{'|'.join(sorted(_NUMBERS))})\b)",
  re.IGNORECASE,
)
_OWN = re.compile(
  r"\s(?:in|on|with|from|over|around|under|to|at)\s(?:his|her|their|its|the (?:man|woman|boy|girl))"
  r"(?:'s)?\s.*$"
)
_ABBREVIATIONS = frozenset("dr mr mrs ms st no approx vs etc".split())
_DOTTED = re.compile(r"(?:[A-Za-z]\.){1,8}[A-Za-z]")
_END = re.compile(r"[.!?。！？]['\"”’)*]*(?:\s+|(?<=[。！？])|$)")
_TRIM = "\"'“”‘’`.,;:!?()[]*"


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of a text: where it stands, and in what form it is compared."""

  start: int
  end: int
  plain: str
  stem: str


@functools.lru_cache(maxsize=4096)
def words(text: str) -> tuple[Word, ...]:
  """Splits at blanks; signs around a word and a possessive 's are no part of its plain form."""
  found = []
  for match in re.finditer(r"\S+", text):
    bare = match[0].strip(_TRIM)
    if not bare:
      continue
    start = match.start() + match[0].index(bare)
    plain = bare.lower().replace("\u2019", "'")
    own = plain.endswith("'s") and plain not in _PRONOUNS
    found.append(Word(start, start + len(bare), plain, stem(plain[:-2] if own else plain)))
  return tuple(found)


def stem(word: str) -> str:
  """Returns a rough stem, good enough to find a word of the question again."""
  word = _MENDED.get(word, word)
  for suffix in ("ing", "ed", "es", "s"):
    if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
      word = word.removesuffix(suffix)
      if suffix in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
      break
  return word.removesuffix("e")


@dataclasses.dataclass(frozen=True)
class Question:
  """What of a question matters for finding its answer.

  Attributes:
    text: as it was asked.
    kind: "yes/no", "choice", "count", "where", or "other".
    echo: stems of its content words, in order.
    plain: its words.
    choices: of "a dog or a cat", the two alternatives.
  """

  text: str
  kind: str
  echo: tuple[str, ...]
  plain: frozenset[str]
  choices: tuple[str, ...] = ()

  @classmethod
  @functools.lru_cache(maxsize=4096)
  def of(cls, text: str) -> "Question":
    """Reads a question, of which the last sentence counts."""
    all_words = words(text)
    plain = [w.plain for w in all_words]
    kind = _kind_of(plain)
    echo = tuple(w.stem for w in _content(text) if w.plain not in _WH | _AUXILIARIES)
    choices = _choices(text) if kind == "choice" else ()
    # Alternatives are answers, and no echo.
    offered = {w.stem for choice in choices for w in _content(choice)}
    echo = tuple(stem for stem in echo if stem not in offered)
    return cls(text, kind, echo, frozenset(plain), choices)

  @property
  def is_english(self) -> bool:
    return bool(self.plain & _ENGLISH) or not self.plain


def _kind_of(plain: Sequence[str]) -> str:
  plain = [p.removesuffix("'s") for p in plain]
  text = " ".join(plain)
  if "or" in plain:
    return "choice"
  if "how many" in text or _NUMBER_OF.match(text):
    return "count"
  if plain and (plain[0] in _AUXILIARIES or not _WH & set(plain)):
    return "yes/no"
  return "where" if _PLACE.search(text) else "other"


def _content(text: str) -> list[Word]:
  return [w for w in words(text) if w.plain not in _FILLER]


def _choices(text: str) -> tuple[str, ...]:
  """Returns the alternatives around the last "or", the first one as long as the second."""
  before, _, after = text.strip(" ?.").lower().rpartition(" or ")
  aside, comma, listed = before.rpartition(", ")
  if comma and _WH & {w.plain for w in words(aside)}:
    return bare(listed), bare(after)  # "Which is bigger, the dog or the cat?"
  second = _content(after)
  first = _content(before)[-len(second) or None :]
  if not first or not second:
    return ()
  return before[first[0].start : first[-1].end], after[second[0].start : second[-1].end]


def split(text: str) -> list[str]:
  """Splits into lines and sentences."""
  out = []
  for line in text.splitlines():
    start = 0
    for match in _END.finditer(line):
      if match.end() == len(line) or not _is_abbreviated(line[start : match.start() + 1]):
        out.append(line[start : match.end()].strip())
        start = match.end()
    out.append(line[start:].strip())
  return [s for s in out if s]


def _is_abbreviated(text: str) -> bool:
  """Whether the full stop at the end belongs to a word: "Dr.", "p.m.", "B. red", "J. K. Rowling"."""
  if not text.endswith("."):
    return False
  before, _, last = text[:-1].rpartition(" ")
  if _DOTTED.fullmatch(last) or last.lower() in _ABBREVIATIONS:
    return True
  initial = len(last) == 1 and last.isupper()
  return initial and (not before or before.rpartition(" ")[2][:1].isupper())


def without_lead_in(sentence: str) -> str:
  """Returns a sentence without "Based on the image," and "I can see that" before it."""
  for _ in range(4):
    low = sentence.lower().replace("\u2019", "'")
    match = next((m for pattern in _LEAD_INS if (m := pattern.match(low))), None)
    if match is None:
      break
    sentence = sentence[match.end() :]
  return sentence


def yes_or_no(sentence: str, question: Question) -> str | None:
  """Returns "yes" or "no" if that is what a sentence says, else None."""
  opening = [w.plain for w in words(sentence)][:3] or [""]
  said = [w.plain for w in words(without_lead_in(sentence))] or [""]
  for start in (opening[0], said[0]):
    if start in _YES | _NO and not (_YES & set(opening) and _NO & set(opening)):
      return "yes" if start in _YES else "no"
  rest = [w for w in words(without_lead_in(sentence)) if w.plain not in _FILLER]
  negated = any(w.plain in _NEGATIONS or w.plain.endswith("n't") for w in rest) or any(
    p.endswith("n't") or p in _NEGATIONS for p in said
  )
  rest = [w.stem for w in rest if w.plain not in _NEGATIONS and not w.plain.endswith("n't")]
  asked = list(question.echo)
  if asked and asked != rest and set(said) & _PRONOUNS and len(asked) > 1:
    asked = asked[1:]  # "he" stands for the subject.
  return ("no" if negated else "yes") if asked and asked == rest else None


def chosen(sentence: str, question: Question) -> str | None:
  """Returns the alternative of the question that a sentence names, if it names but one."""
  main = {w.stem for w in words(main_clause(without_lead_in(sentence)))}
  parts = [{w.stem for w in _content(choice)} for choice in question.choices]
  named = [
    i for i, own in enumerate(parts)
    if own <= main and not any((other - own) & main for other in parts if other is not own)
  ]  # fmt: skip
  return question.choices[named[0]] if len(named) == 1 else None


def counted(sentence: str, question: Question) -> str | None:
  """Returns the number in a sentence that answers "how many", or None."""
  all_words = words(sentence)
  plain = [w.plain for w in all_words]
  text = " ".join(plain)
  if _UNSURE & set(plain):
    return None
  if re.search(r"\b(?:no|aren't any|isn't any|not any)\b", text) and not _numbers(all_words):
    return "zero" if set(question.echo) & {w.stem for w in all_words} else None
  found = _numbers(all_words)
  if len(found) > 1:
    total = [
      (a, b) for a, b in found
      if plain[max(a - 3, 0) : a][-3:] == ["a", "total", "of"] or plain[a - 1 : a] == ["of"] and "total" in plain[:a]
    ]  # fmt: skip
    head = [
      (a, b) for a, b in found
      if any(w.stem in question.echo[:1] for w in all_words[b : b + 2])
      and plain[max(a - 2, 0) : a] != ["of", "the"]
    ]  # fmt: skip
    found = total or head
  if len(found) != 1:
    return None
  start, end = found[0]
  while start and plain[start - 1] in _BOUNDS | {"at"}:
    start -= 1
  return sentence[all_words[start].start : all_words[end - 1].end]


def _numbers(all_words: Sequence[Word]) -> list[tuple[int, int]]:
  """Returns runs of number words; "the one on the left" is none."""
  runs, start = [], None
  for i, word in enumerate([*all_words, None]):
    is_number = word is not None and (
      bool(re.fullmatch(r"\d[\d,.]*", word.plain)) or set(word.plain.split("-")) <= _NUMBERS
    )
    if is_number and word.plain == "one" and i and all_words[i - 1].plain in ("the", "another", "this", "that"):
      is_number = False
    if is_number and start is None:
      start = i
    elif not is_number and start is not None:
      runs.append((start, i))
      start = None
  return runs


def said(sentence: str, question: Question) -> tuple[str, bool] | None:
  """Returns what a sentence says beyond its question, and whether it repeats words of it.

  None where that does not stand together, or where the sentence is not sure.
  """
  sentence = without_lead_in(sentence)
  quoted = ["".join(groups) for groups in _QUOTED.findall(sentence)]
  if len(quoted) == 1 and len(words(sentence)) > len(words(quoted[0])):
    return None if quoted[0].lower() in question.text.lower() else (quoted[0], True)
  if (absent := _absent(sentence, question)) is not None:
    return absent, True
  return _span(main_clause(sentence), question)


def repeats(sentence: str, question: Question) -> bool:
  """Whether a sentence holds all content words of its question."""
  return set(question.echo) <= {w.stem for w in words(sentence)}


def main_clause(sentence: str) -> str:
  """Returns a sentence up to ", because", ", which" or a dash."""
  match = _PHRASE_ENDS.search(sentence)
  return sentence[: match.start()] if match else sentence


def _absent(sentence: str, question: Question) -> str | None:
  """Returns "none" for "There is no dog." where the colour of the dog was asked."""
  match = _THERE_IS_NO.match(sentence)
  if match is None:
    return None
  things = [w for w in words(match[1]) if w.plain not in _FILLER]
  return "none" if things and all(w.stem in question.echo for w in things) else None


def _span(sentence: str, question: Question) -> tuple[str, bool] | None:
  all_words = words(sentence)
  if _UNSURE & {w.plain for w in all_words} - {"may"}:
    return None
  kinds = [_role(w, i, question, sentence) for i, w in enumerate(all_words)]
  other = [i for i, kind in enumerate(kinds) if kind == "other"]
  echoes = "echo" in kinds
  if not other or not (echoes or (all_words[0].plain in _PRONOUNS)):
    return None
  first, last = other[0], other[-1] + 1
  inside = [i for i in range(first, last) if all_words[i].plain in _BE]
  if len(inside) == 1 and "echo" in kinds[:first] and all_words[inside[0] - 1].plain not in _WH | {"that"}:
    first = next(i for i in other if i > inside[0])  # "The car by the tree is red."
  elif inside:
    return None
  if "echo" in kinds[first:last]:
    return None
  if kinds[last : last + 1] == ["echo"] and _TIES & {w.plain for w in all_words[first:last]}:
    return None  # "next to the blue" car
  doing = bool(_NOT_ACTIONS & question.plain)
  if all_words[first].plain.endswith("ing") and first and all_words[first - 1].plain in _BE and not doing and question.kind != "where":
    return None
  if "how" in question.plain and question.plain & {"do", "does", "did"}:
    return None  # A manner: "got there by bike".
  if question.kind == "where":
    while first and all_words[first - 1].plain in _PREPOSITIONS | _ARTICLES:
      first -= 1
  text = sentence[all_words[first].start : all_words[last - 1].end]
  if not doing and question.kind != "where":
    text = _OWN.sub("", text)
  return bare(text), echoes


def _role(word: Word, i: int, question: Question, sentence: str) -> str:
  """Returns "echo", "filler" or "other"."""
  if word.stem in question.echo:
    return "echo"
  as_written = sentence[word.start : word.end]
  if i and len(as_written) == 1 and as_written.isupper() and as_written != "I":
    return "other"  # The letter A is no article.
  if question.kind == "where" and word.plain in _PREPOSITIONS - {"in", "on", "at", "to", "from", "by"}:
    return "other"
  if word.plain in _POSTURES and not question.plain & {"doing", "posture", "pose"}:
    return "filler"
  return "filler" if word.plain in _FILLER else "other"


def bare(text: str) -> str:
  """Returns an answer without the article before it, or "about" before a number."""
  text = without_about(text.strip())
  first, _, rest = text.partition(" ")
  return rest if rest and first.lower() in _ARTICLES else text


def without_about(text: str) -> str:
  """Returns "7 cm" of "about 7 cm"."""
  return _ABOUT.sub("", text)
