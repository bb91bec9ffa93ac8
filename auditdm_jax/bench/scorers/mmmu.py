# SPDX-License-Identifier: Apache-2.0
"""MMMU: multiple choice and open answers in one benchmark.

An open answer is searched for what follows "is", "so" and the like, and for numbers. A number is
right if it is equal to two decimals, a text if a reference occurs in it.
Source: MMMU-Benchmark/MMMU, eval/eval_utils.py.
"""

from collections.abc import Sequence
import re

from auditdm_jax.bench.scorers import choices
from auditdm_jax.bench.scorers.rows import Item, Metric, Scored, Variant, listed, micro, row_of

_NUMBERS = (
  re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
  re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
  re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_BEFORE_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset((":", ",", ".", "!", "?", ";", "'"))


def open_accuracy(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if something in the answer equals a reference, by the official rules."""
  wanted = [form for reference in listed(references) for form in _forms(reference)]
  texts = [form for form in wanted if isinstance(form, str)]
  for said in parse_open(prediction):
    right = any(x in said for x in texts) if isinstance(said, str) else said in wanted
    if right:
      return 1.0
  return 0.0


def open_accuracy_of_lmms_eval(prediction: str, references: Sequence[str]) -> float:
  """Returns what lmms-eval gives: 0, but for an empty reference.

  It writes the parsed answers into one string and compares this letter by letter.
  """
  return float(bool(prediction.strip()) and any(not x.strip() for x in listed(references)))


def parse_open(response: str) -> list[str | float]:
  """Returns the candidates of an open answer: texts in lower case, numbers with two decimals."""
  keys = _key_parts(response)
  numbers = [number for part in keys for pattern in _NUMBERS for number in pattern.findall(part)]
  return list(dict.fromkeys(form for text in (*keys, *numbers) for form in _forms(text)))


def _key_parts(response: str) -> list[str]:
  """The shortest tail behind an indicator, for each line that has one; else the whole."""
  response = response.strip().strip(".").lower()
  lines = response.split("\n")  # The official split at ". A" never applies to lower case.
  parts = []
  for i, line in enumerate(lines):
    indicators = (*_BEFORE_ANSWER, "=") if i == len(lines) - 1 else _BEFORE_ANSWER
    tails = [line.split(x)[-1].strip() for x in indicators if x in line]
    shortest = _shortest(tails)
    if shortest and shortest not in _TRIVIAL:
      parts.append(shortest)
  return parts or [response]


def _shortest(tails: Sequence[str]) -> str:
  """The first of the shortest tails; an empty one is replaced by the tail after it."""
  best = ""
  for tail in tails:
    if not best or len(tail) < len(best):
      best = tail
  return best


def _forms(text: str) -> list[str | float]:
  """The number that a text is, else the text; a single character needs a blank beside it."""
  text = text.strip()
  try:
    return [round(float(text.replace(",", "")), 2)]
  except ValueError:
    text = text.lower()
  return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def metric(variant: Variant) -> Metric:
  """Makes MMMU's accuracy. An item with options is multiple choice, one without is open.

  Values are "micro", over all questions, and "macro", over subjects. Official scripts draw a letter
  for an answer that cannot be read; it is wrong and invalid here.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    return [_row(item, variant) for item in items]

  return Metric(score=score, reduction=micro)


def _row(item: Item, variant: Variant) -> Scored:
  if variant is Variant.VLMEVALKIT:
    item = _as_choice(item)
  if not item.options:
    scorer = open_accuracy_of_lmms_eval if variant is Variant.LMMS_EVAL else open_accuracy
    score = scorer(item.prediction, item.references)
    return row_of(item, score, invalid=not item.prediction.strip())
  reader = choices.vlmevalkit_letter if variant is Variant.VLMEVALKIT else choices.mmmu_letter
  said = item.prediction.strip() if variant is Variant.LMMS_EVAL else item.prediction
  letter = reader(said, choices.options_of(item))
  return row_of(item, letter == choices.right_letter(item), invalid=not letter)


def _as_choice(item: Item) -> Item:
  """VLMEvalKit's form of an open question: the answer is option A, "Other Answers" option B."""
  if item.options:
    return item
  options = (item.references[0], "Other Answers")
  return Item(
    key=item.key,
    prediction=item.prediction,
    references=("A",),
    options=options,
    image=item.image,
    category=item.category,
  )
