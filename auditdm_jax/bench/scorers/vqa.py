# SPDX-License-Identifier: Apache-2.0
"""Accuracy over the answers of several annotators: VQAv2 and OK-VQA.

Source of the rules: github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py.
lmms-eval, VLMEvalKit and big_vision each have their own reading of it.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re

from auditdm_jax.bench.scorers.rows import Variant, listed
from auditdm_jax.core.config import UserError

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MARK = re.compile("[" + re.escape(_PUNCTUATION) + "]")
_ONE_COMMA = re.compile(r"\d,\d")
_COMMAS = re.compile(r"\d,+\d")
# The official expression was meant to keep the period of "3." but does not look behind.
_PERIOD_NOT_BEFORE_DIGIT = re.compile(r"(?!<=\d)\.(?!\d)")
_PERIOD_AWAY_FROM_DIGITS = re.compile(r"(?<!\d)\.(?!\d)")
_FLAG_AS_COUNT = 32  # The script passes re.UNICODE where the number of substitutions goes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rules:
  """How one implementation reads the rules.

  Attributes:
    comma: if found, all punctuation is deleted instead of being replaced by blanks.
    period: periods to delete.
    most_periods: how many at most, 0 for all.
    spares_agreement: if all annotators agree to the letter, nothing is normalised.
  """

  comma: re.Pattern[str] = _ONE_COMMA
  period: re.Pattern[str] = _PERIOD_NOT_BEFORE_DIGIT
  most_periods: int = _FLAG_AS_COUNT
  spares_agreement: bool = True


_RULES = {
  Variant.OFFICIAL: _Rules(),
  Variant.LMMS_EVAL: _Rules(comma=_COMMAS, spares_agreement=False),
  Variant.VLMEVALKIT: _Rules(period=_PERIOD_AWAY_FROM_DIGITS, spares_agreement=False),
  Variant.BIG_VISION: _Rules(most_periods=0),
}


def vqa_accuracy(
  prediction: str, references: Sequence[str], *, variant: Variant = Variant.OFFICIAL
) -> float:
  """Returns the VQAv2 accuracy: the mean of min(1, matches / 3) without each annotator in turn.

  In the official form, "yes" against ten "Yes" scores 0: when all annotators agree to the letter,
  nothing is normalised. lmms-eval and VLMEvalKit always normalise.
  """
  rules = _RULES[_known(variant, _RULES)]
  prediction, references = _one_line(prediction), [_one_line(x) for x in listed(references)]
  if not rules.spares_agreement or len(set(references)) > 1:
    prediction = _normal(prediction, rules)
    references = [_normal(x, rules) for x in references]
  return _without_each(prediction, references)


def vote_accuracy(
  prediction: str, references: Sequence[str], *, variant: Variant = Variant.BIG_VISION
) -> float:
  """Returns the OK-VQA accuracy.

  big_vision takes min(1, matches / 3) over all annotators and normalises nothing. lmms-eval leaves
  each annotator out in turn and normalises all texts, commas and question marks first. The official
  form is that of VQAv2.
  """
  if variant is Variant.OFFICIAL:
    return vqa_accuracy(prediction, references)
  if variant is Variant.LMMS_EVAL:
    said = _evalai(prediction.strip())
    return _without_each(said, [_evalai(x) for x in listed(references)])
  _known(variant, (Variant.OFFICIAL, Variant.LMMS_EVAL, Variant.BIG_VISION))
  return min(1.0, sum(reference == prediction for reference in listed(references)) / 3)


def _known(variant: Variant, known: Sequence[Variant] | dict[Variant, _Rules]) -> Variant:
  if variant not in known:
    raise UserError(f"no variant {variant!r} of this accuracy; known: {', '.join(known)}")
  return variant


def _without_each(prediction: str, references: Sequence[str]) -> float:
  """Mean over annotators of min(1, matches among the others / 3)."""
  matches = [reference == prediction for reference in references]
  total = sum(matches)
  if not total:
    return 0.0
  return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def _one_line(text: str) -> str:
  return text.replace("\n", " ").replace("\t", " ").strip()


def _evalai(text: str) -> str:
  """The form of lmms-eval's EvalAIAnswerProcessor."""
  words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
  return _normal(_one_line(words), _RULES[Variant.LMMS_EVAL])


@functools.lru_cache(maxsize=1 << 16)  # Most answers are among a few thousand words.
def _normal(text: str, rules: _Rules) -> str:
  """Treats punctuation, number words, articles and contractions."""
  out = text
  if _MARK.search(text):
    deletes = rules.comma.search(text)
    for mark in _PUNCTUATION:
      if mark in text:
        at_a_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if at_a_blank or deletes else " ")
  if "." in out:
    out = rules.period.sub("", out, count=rules.most_periods)
  replaced = _replacements()
  return " ".join(replaced.get(word, word) for word in out.lower().split() if word not in _ARTICLES)


@functools.cache
def _replacements() -> dict[str, str]:
  """Number words, and contractions that lack an apostrophe, of the official tables."""
  digits = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}
  return contractions() | digits


@functools.cache
def contractions() -> dict[str, str]:
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
