# SPDX-License-Identifier: Apache-2.0
"""English as far as short answers need it: classes of words, stems, sentences and clauses.

The lists and rules are ours. They need not be complete: a word that no list knows counts as part of
the answer, and an answer that does not stand together is not taken (`text.sentences`).
"""

from collections.abc import Iterator
import dataclasses
import functools
import re

AUXILIARIES = frozenset(
  "is are was were am do does did can could has have had will would should must may might isn't"
  " aren't doesn't don't".split()
)
WH = frozenset("what which who whose whom where when why how many much".split())
QUESTION_WORDS = WH | frozenset("is are does did the there this it describe name can you".split())
ARTICLES = frozenset("a an the".split())
BE = frozenset("is are was were it's that's he's she's they're".split())
# Verbs that no answer in a few words has.
VERBS = BE | frozenset(
  "has have had shows depicts features contains says reads appears seems looks feels costs".split()
)
# Pronouns that stand for what was asked about.
SUBJECTS = frozenset(
  "it this that these those there he she they it's he's she's they're there's that's".split()
)
PRONOUNS = SUBJECTS | frozenset("here him them we i you one i'm".split())
YES, NO = frozenset("yes yeah yep yup".split()), frozenset("no nope nah".split())
NEGATIONS = frozenset("no not never none cannot without neither nothing".split())
UNSURE = frozenset("could might either possibly perhaps maybe or another".split())
PREPOSITIONS = frozenset(
  "on in at to under below above behind near beside over next between inside outside against from"
  " by around along across off up down left right during before after".split()
)
# Words in -ing that are no verbs.
ING = frozenset(
  "ring king wing thing string spring swing sling evening morning ceiling building painting pudding"
  " wedding clothing railing awning earring sibling duckling".split()
)
TIES = frozenset("of to in on at under below above behind near beside between inside with".split())
POSTURES = frozenset(
  "sit sits sitting stand stands standing lie lies lying rest rests resting hang hangs hanging"
  " perched seated parked".split()
)
NUMBERS = frozenset(
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
  " sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
  " hundred thousand million dozen".split()
)
# Nouns that only announce an answer.
NOUNS = frozenset(
  "object objects thing things item items color colors colour colours kind kinds type types sort"
  " word words text name names number numbers time shape shapes side sides total percentage".split()
)
# What may surround an answer: the picture itself, verbs that only join, such nouns.
FILLER = ARTICLES | BE | PRONOUNS | NOUNS | frozenset(
  "image images picture pictures photo photos photograph photographs scene frame screenshot"
  " of in on at to for with from by and as its his her their our your has have had having do does"
  " did can should would will must be been being appears appear appeared seems seem seemed looks"
  " look like likely probably clearly shown depicted visible seen displayed pictured given provided"
  " contains contain includes include shows show features feature depicts depict represents"
  " represent says say reads read reading called named labeled labelled marked dated titled written"
  " made located situated placed positioned found wearing wears worn equal equals = costs cost"
  " colored"
  " coloured some any also currently actually itself see what".split()
)  # fmt: skip

_IRREGULAR = {
  "ridden": "ride", "worn": "wear", "held": "hold", "eaten": "eat", "written": "write",
  "taken": "take", "shown": "show", "driven": "drive", "drawn": "draw", "thrown": "throw",
  "broken": "break", "made": "make",
}  # fmt: skip
_SIGNS = "\"'“”‘’`.,;:!?()[]*"
_ABBREVIATIONS = frozenset("dr mr mrs ms st no approx vs".split())
_DOTTED = re.compile(r"(?:[A-Za-z]\.){1,8}[A-Za-z]")
_END = re.compile(r"[.!?。！？]['\"”’)*]*(?:\s+|(?<=[。！？])|$)")
_CLAUSE = re.compile(
  r"\s(?:because|which|who|than)\s|,\s(?:since|while|whereas|not|as|so|with|where|when|likely|possibly|perhaps|probably|specifically|including|located"
  r"|rather|\w{2,20}(?:ing|[ai]ble)|and (?:it|he|she|they|there|the)|an?(?![^.]*\band\b))\s"
  r"|;\s|(?<!\d)\s[-–—]\s|\s\("
)
_LEAD_INS = (
  re.compile(
    r"(?:based on|according to|judging (?:by|from)|looking at|in|from|given|on|out of)\s"
    r"[^,.]{1,80},\s"
  ),
  re.compile(
    r"(?:the|this) (?:image|picture|photo|photograph|scene) (?:shows|depicts|features|displays)\s"
  ),
  re.compile(
    r"(?:sure|certainly|of course|okay|ok|well|hmm|ah|so|therefore|thus|hence|overall|in total"
    r"|in conclusion|in this case|upon closer inspection|yes)[,:]?\s"
  ),
  re.compile(
    r"(?:i|we|you)(?:'d| would)? (?:can |could )?(?:clearly )?"
    r"(?:see|observe|count|believe|think|say)(?: that)?\s"
  ),
  re.compile(
    r"it (?:is|'s) (?:clear|clearly visible|evident|obvious|likely) that\s|it (?:looks like"
    r"|appears(?: that|(?= there))|seems(?: that| like))\s"
  ),
)
_HEDGE = re.compile(r"^(?:most likely|likely|probably|definitely|clearly)\s", re.IGNORECASE)
_ABOUT = re.compile(
  rf"(?:about|approximately|around|roughly)\s(?=[$£€]?\d|(?:half|{'|'.join(sorted(NUMBERS))})\b)",
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of a text.

  Attributes:
    start: where it begins in the text.
    end: where it ends.
    plain: in lower case, without the signs around it.
    stem: in the form in which it is compared, without a possessive 's.
  """

  start: int
  end: int
  plain: str
  stem: str


@functools.lru_cache(maxsize=256)
def words(text: str) -> tuple[Word, ...]:
  """Returns the words between blanks; signs alone are no word."""
  return tuple(_words(text))


def _words(text: str) -> Iterator[Word]:
  for match in re.finditer(r"\S+", text):
    bare = match[0].strip(_SIGNS)
    if not bare:
      continue
    start = match.start() + match[0].index(bare)
    plain = bare.lower().replace("\u2019", "'")
    own = plain.endswith("'s") and plain not in PRONOUNS
    yield Word(start, start + len(bare), plain, stem(plain[:-2] if own else plain))


def stem(word: str) -> str:
  """Returns a rough stem, good enough to find a word of the question again."""
  word = _IRREGULAR.get(word, word)
  for suffix in ("ing", "ed", "es", "s"):
    if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
      word = word.removesuffix(suffix)
      if suffix in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
      break
  return word.removesuffix("e")


def content(text: str) -> list[Word]:
  """Returns the words of a text that are no filler."""
  return [w for w in words(text) if w.plain not in FILLER]


def is_negated(plain: str) -> bool:
  """Returns whether a word denies."""
  return plain in NEGATIONS or plain.endswith("n't")


def sentences(text: str) -> list[str]:
  """Splits a text into sentences; a line never goes on in the next."""
  out = []
  for line in text.splitlines():
    start = 0
    for match in _END.finditer(line):
      if match.end() == len(line) or not _is_abbreviated(line[start : match.start() + 1]):
        out.append(line[start : match.end()].strip())
        start = match.end()
    out.append(line[start:].strip())
  return [sentence for sentence in out if sentence]


def _is_abbreviated(text: str) -> bool:
  """Returns whether a full stop belongs to a word: "Dr.", "p.m.", "B. red", "J. K. Rowling"."""
  if not text.endswith("."):
    return False
  before, _, last = text[:-1].rpartition(" ")
  if not before and last.isdecimal():
    return True  # "1. Red"
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


def main_clause(sentence: str) -> str:
  """Returns a sentence up to ", because", ", which", " than" or a dash."""
  match = _CLAUSE.search(sentence)
  return sentence[: match.start()] if match else sentence


def bare(text: str) -> str:
  """Returns an answer without the article before it, "most likely", or "about" a number."""
  text = without_about(_HEDGE.sub("", text.strip()))
  first, _, rest = text.partition(" ")
  return rest if rest and first.lower() in ARTICLES else text


def without_about(text: str) -> str:
  """Returns "7 cm" of "about 7 cm"."""
  match = _ABOUT.match(text)
  return text[match.end() :] if match else text
