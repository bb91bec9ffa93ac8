# SPDX-License-Identifier: Apache-2.0
"""Scores of one answer against its references: pure functions `(prediction, references) -> [0, 1]`.

Published scorers of one benchmark differ from each other; each function says whose rules it
follows.
"""

from collections.abc import Callable, Sequence
import functools
import re
import unicodedata

from auditdm_jax.core.config import UserError

Scorer = Callable[[str, Sequence[str]], float]

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NO_DIGIT_AFTER_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_DIGIT_COMMA_DIGIT = re.compile(r"(\d)(,)(\d)")
_ONE_SPELLING = str.maketrans(
  {**dict.fromkeys("‐‑‒–—−", "-"), **dict.fromkeys("‘’′", "'"), **dict.fromkeys("“”„″«»", '"')}
)
_WRAPPED = re.compile(r"""(["']|\*{1,3})([^"'*]*)\1""")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NO_ZERO = re.compile(r"(?<!\d)\.(?=\d)")
_NEGATIVE = re.compile(r"-[$€£¥.]\d")
_GRADE = re.compile(r"(?<!\w)[a-z]-(?!\w)")
_SIGNS = frozenset("%‰#&@§")
_MAX_PERIODS = 32  # The official script passes re.UNICODE as the count of substitutions.


def _listed(references: Sequence[str]) -> Sequence[str]:
  """Returns the references as a list: one string is one of them, not its letters.

  Raises:
    UserError: there are none, so that there is no score.
  """
  references = (references,) if isinstance(references, str) else references
  if not len(references):
    raise UserError("an answer without references cannot be scored; leave the question out")
  return references


def exact_match(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if the strings are equal as they are (GQA and AI2D of the PaliGemma transfers)."""
  return float(prediction in _listed(references))


def normalized_match(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if equal without case, blanks and the punctuation of words.

  Words are treated as in lmms-eval's GQA, which takes all punctuation away: "t-shirt" is "tshirt".
  What makes a number or a sign another one stays (ours): 3.5, -5, 1/2, 3:15, A+, <, 5%, 5".
  """
  return float(_bare(prediction) in map(_bare, _listed(references)))


def _bare(text: str) -> str:
  text = text.translate(_ONE_SPELLING).strip().lower()
  if wrapped := _WRAPPED.fullmatch(text):
    text = wrapped[2].strip()
  text = _THOUSANDS.sub("", text)
  kept = "".join(c for i, c in enumerate(text) if not _is_punctuation(c) or _says(text, i))
  kept = _NO_ZERO.sub("0.", " ".join(kept.split()))
  return kept or text


def _is_punctuation(char: str) -> bool:
  return char == "`" or unicodedata.category(char)[0] == "P"


def _says(text: str, i: int) -> bool:
  """Returns whether the punctuation at i is part of a number or a sign."""
  char, before, after = text[i], text[i - 1 : i], text[i + 1 : i + 2]
  if char in _SIGNS or (before.isdigit() and after.isdigit()):
    return True
  if char == ".":
    return after.isdigit() and not before.isalnum()
  if char == "-":
    negative = (after.isdigit() or _NEGATIVE.match(text, i)) and not before.isalnum()
    return bool(negative) or _GRADE.search(text, i - 2 if i > 1 else 0, i + 2) is not None
  if char in "\"'":  # Inches and feet, if no quotation is open.
    return before.isdigit() and not _opens(char, text[:i])
  return char == "*" and before.isdigit()


def _opens(quote: str, text: str) -> bool:
  """Returns whether a quotation begins in this text."""
  return any(c == quote and not text[k - 1 : k].isalnum() for k, c in enumerate(text))


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
  """Returns the official VQAv2 accuracy: mean of min(1, matches / 3) without each annotator.

  When all annotators agree to the letter, nothing is normalised, so "yes" against ten "Yes"
  scores 0.

  Source: github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py.
  """
  prediction, references = _one_line(prediction), [_one_line(x) for x in _listed(references)]
  if len(set(references)) > 1:
    prediction, references = _vqa_normal(prediction), [_vqa_normal(x) for x in references]
  matches = [reference == prediction for reference in references]
  left_out = (min(1.0, (sum(matches) - match) / 3) for match in matches)
  return sum(left_out) / len(references)


def vote_accuracy(prediction: str, references: Sequence[str]) -> float:
  """min(1, matches / 3) without leaving out or normalising (OK-VQA of the PaliGemma transfers)."""
  return min(1.0, sum(reference == prediction for reference in _listed(references)) / 3)


def _one_line(text: str) -> str:
  return text.replace("\n", " ").replace("\t", " ").strip()


def _vqa_normal(text: str) -> str:
  """Punctuation, number words, articles and contractions, as the official script treats them."""
  out = text
  digit_comma = _DIGIT_COMMA_DIGIT.search(text)
  for mark in _PUNCTUATION:
    at_a_blank = f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if at_a_blank or digit_comma else " ")
  out = _NO_DIGIT_AFTER_PERIOD.sub("", out, count=_MAX_PERIODS)
  words = (_DIGITS.get(word, word) for word in out.lower().split())
  return " ".join(_contractions().get(word, word) for word in words if word not in _ARTICLES)


@functools.cache
def _contractions() -> dict[str, str]:
  """A contraction that lacks one apostrophe -> the whole one, for those of the official table."""
  table = {"somebody'd": "somebodyd"}  # The table's one entry that goes the other way.
  for word in _CONTRACTED.split():
    places = (i for i, char in enumerate(word) if char == "'")
    table |= {word[:i] + word[i + 1 :]: word for i in places}
  return table


_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
you'd've you'll you're you've
"""


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
  """ChartQA: numbers may be off by 5 per cent of the reference, others must be equal up to case.

  "12%" is read as 0.12. A reference of 0 demands its own spelling. Source: pix2struct, metrics.py.
  """
  return max(_relaxed(prediction.strip(), reference) for reference in _listed(references))


def _relaxed(prediction: str, reference: str) -> float:
  got, wanted = _number(prediction), _number(reference)
  if got is not None and wanted:
    return float(abs(got - wanted) / abs(wanted) <= 0.05)
  return float(prediction.lower() == reference.lower())


def _number(text: str) -> float | None:
  try:
    return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
  except ValueError:
    return None


def anls(prediction: str, references: Sequence[str]) -> float:
  """DocVQA: 1 minus the smallest normalised edit distance, and 0 when that is below one half.

  Texts are compared without case and with single blanks; the distance is divided by the length of
  the longer text as it was given. Source: the Robust Reading Competition's form, lmms-eval
  api/metrics.py.
  """
  prediction = prediction.strip()
  best = max(1 - _distance_share(prediction, x) for x in _listed(references))
  return best if best >= 0.5 else 0.0


def _distance_share(prediction: str, reference: str) -> float:
  longest = max(len(prediction), len(reference))
  if not longest:
    return 0.0
  a, b = (" ".join(text.lower().split()) for text in (prediction, reference))
  return edit_distance(a, b) / longest


def edit_distance(a: str, b: str) -> int:
  """Levenshtein distance over code points."""
  previous = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    previous = row
  return previous[-1]
