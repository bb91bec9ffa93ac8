# SPDX-License-Identifier: Apache-2.0
"""Reads the letter of an option out of what a model said, and scores multiple choice.

A reader takes the prediction and {letter: text of the option} and returns a letter, or "" where it
finds none. Such an answer is wrong and counted as invalid; some published scorers draw a letter at
random instead.
"""

from collections.abc import Callable, Mapping, Sequence
import re
import string

import numpy as np

from auditdm_jax.bench.scorers.rows import (
  Item,
  Metric,
  Reduction,
  Scored,
  Values,
  grouped,
  mean,
  mean_and_categories,
  ratio,
  row_of,
)
from auditdm_jax.core.config import UserError

Options = Mapping[str, str]
Reader = Callable[[str, Options], str]

_FOUR = dict.fromkeys("ABCD", "")
_OUTER_MARKS = (",", ".", "!", "?", ";", ":", "'")
# lmms-eval, tasks/_task_utils/mcq_extract.py. Each finds letters after it, over any distance.
_PHRASES = (
  *("the answer is", "answer is", "the correct answer is", "correct answer is"),
  *("the best answer is", "best answer is", "the correct option is", "correct option is"),
  *("the best option is", "best option is", "the choice is", "choice is"),
  *("the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
  *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选"),
  "答えは",
)
_VLMK_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VLMK_REFUSALS = (
  "Sorry, I can't help with images of people yet.",
  "I can't process this file.",
  "I'm sorry, but without the image provided",
  "Cannot determine the answer",
)
_VLMK_ANSWER_IS = re.compile(r"(?i)answer\s+is\s+\**([ABCD])\**")
_MMBENCH_FRAMES = (
  *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
  *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)


def options_of(item: Item) -> Options:
  """{letter: text}; the letters A to D without texts where the options are not known."""
  return dict(zip(string.ascii_uppercase, item.options)) if item.options else _FOUR


def choice(reader: Reader, *, reduction: Reduction = mean_and_categories) -> Metric:
  """Makes the metric "the letter that the reader finds is the right one"."""

  def score(items: Sequence[Item]) -> list[Scored]:
    rows = []
    for item in items:
      letter = reader(item.prediction, options_of(item))
      rows.append(row_of(item, letter == right_letter(item), invalid=not letter))
    return rows

  return Metric(score=score, reduction=reduction)


def circular(reader: Reader) -> Metric:
  """Makes the metric "right in every rotation of the options", one row per group (MMBench).

  The primary value is "circular"; "vanilla" is the accuracy of the first rotations alone.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    rows = []
    for key, group in grouped(items).items():
      letters = [reader(item.prediction, options_of(item)) for item in group]
      hits = [letter == right_letter(item) for letter, item in zip(letters, group)]
      first = group[0]
      rows.append(
        Scored(
          key=key,
          score=float(all(hits)),
          image=first.image,
          category=first.category,
          n=len(group),
          invalid=letters.count(""),
          parts={"vanilla": float(hits[0])},
        )
      )
    return rows

  def reduction(rows: Sequence[Scored], weights: np.ndarray) -> Values:
    values = mean_and_categories(rows, weights)
    vanilla = weights @ np.asarray([row.parts["vanilla"] for row in rows])
    named = {name.replace("mean", "circular", 1): value for name, value in values.items()}
    return named | {"vanilla": ratio(vanilla, weights.sum(1))}

  return Metric(score=score, reduction=reduction)


def choice_or_text(reader: Reader) -> Metric:
  """Makes RealWorldQA's metric: a letter where the answer is A to D, else the text.

  Texts are compared without case, outer blanks and final periods of the prediction.
  Source: lmms-eval, tasks/realworldqa/utils.py.
  """
  letters = choice(reader)

  def score(items: Sequence[Item]) -> list[Scored]:
    rows = []
    for item in items:
      if right_letter(item) in _FOUR:
        rows += letters.score([item])
      else:
        said = item.prediction.lower().strip().rstrip(".")
        right = said == item.references[0].strip().lower()
        rows.append(row_of(item, right, invalid=not said))
    return rows

  return Metric(score=score, reduction=mean)


def right_letter(item: Item) -> str:
  if len(item.references) != 1:
    raise UserError(f"{item.key}: a choice has one right letter, not {list(item.references)}")
  return item.references[0].strip().upper()


def first_character(prediction: str, options: Options) -> str:
  """SEED-Bench of lmms-eval: the first character, in any case."""
  letter = prediction.strip()[:1].upper()
  return letter if letter in options else ""


def lmms_letter(prediction: str, options: Options) -> str:
  """lmms-eval's shared reader (MMStar, RealWorldQA): the best format wins, then the last place.

  Source: lmms-eval, tasks/_task_utils/mcq_extract.py.
  """
  text = prediction.strip()
  for mark in (*_OUTER_MARKS[:6], "'", '"'):
    text = text.strip(mark)
  padded, bare = f" {text} ", text.strip()
  found = [  # (priority, place, letter), in the order that decides between equals.
    *((rank, padded.rfind(form), letter) for rank, letter, form in _lmms_forms(options)),
    *((7, place, letter) for place, letter in _after_phrases(padded, options)),
    *((10, 0, x) for x in options if bare.startswith(x) and not bare[1:2].isalpha()),
    *((9, len(padded) - 1, x) for x in options if bare.endswith(x) and not bare[-2:-1].isalpha()),
  ]
  found = [entry for entry in found if entry[1] >= 0]
  found = found or [(0, padded.rfind(x), x) for x in options if x in padded]
  return max(found, key=lambda entry: entry[:2])[2] if found else ""


def _lmms_forms(options: Options) -> list[tuple[int, str, str]]:
  """(priority, letter, what it looks like)."""
  forms = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))
  return [(rank, letter, form.format(letter)) for rank, form in forms for letter in options]


def _after_phrases(text: str, options: Options) -> list[tuple[int, str]]:
  """(place, letter) of the first of each letter after the first of each phrase."""
  lower, places = text.lower(), []
  for phrase in _PHRASES:
    at = lower.find(phrase)
    if at >= 0:
      places += [(text.find(letter, at + len(phrase)), letter) for letter in options]
  return places


def vlmevalkit_letter(prediction: str, options: Options) -> str:
  """VLMEvalKit without a judge: one letter near the end, "answer is X", else one option's text.

  Source: VLMEvalKit, utils/matching_util.py.
  """
  if "Failed to obtain answer via API" not in prediction:
    if any(refusal in prediction for refusal in _VLMK_REFUSALS):
      return ""
    words = prediction.translate(_VLMK_BLANKS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
      return letters[0]
    if not letters and "Z" in words:
      return ""
    match = _VLMK_ANSWER_IS.search(prediction)
    if match and match[1].upper() in options:
      return match[1].upper()
  if len(prediction) > 2 * sum(map(len, options.values())):
    return ""
  return _only_text(prediction, options)


def mmbench_letter(prediction: str, options: Options) -> str:
  """MMBench of lmms-eval without a judge: a letter on its own, a text, else `lmms_letter`.

  Only the options A to D have texts here. Source: lmms-eval, tasks/mmbench/mmbench_evals.py.
  """
  prediction = prediction.strip()
  texts = {letter: text for letter, text in options.items() if letter in "ABCD"}
  return (
    _mmbench_letter(prediction.split())
    or _only_text(prediction, texts)
    or lmms_letter(prediction, texts)
  )


def _mmbench_letter(words: Sequence[str]) -> str:
  bare = [letter for letter in "ABCDE" if letter in words]
  if len(bare) == 1 and not ("A" in words and len(words) > 3):  # It may be the article.
    return bare[0]
  for before, after in _MMBENCH_FRAMES:
    framed = [letter for letter in "ABCDE" if before + letter + after in words]
    if len(framed) == 1:
      return framed[0]
  return ""


def _only_text(prediction: str, options: Options) -> str:
  """The letter of the only option whose text occurs in the prediction, in any case."""
  if not all(options.values()):
    return ""
  lower = prediction.lower()
  found = [letter for letter, text in options.items() if text.lower() in lower]
  return found[0] if len(found) == 1 else ""


def mmmu_letter(prediction: str, options: Options) -> str:
  """MMMU's official reader: the last "(B)", else "B ", else "B.", else an option's text.

  The text counts in answers of more than five words. Source: MMMU-Benchmark/MMMU,
  eval/eval_utils.py.
  """
  text = _without_outer_marks(prediction)
  for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
    letters = [letter for letter in options if form.format(letter) in text]
    if letters:
      return letters[int(np.argmax([text.rfind(place.format(x)) for x in letters]))]
  if len(text.split()) <= 5 or not all(options.values()):
    return ""
  lower = text.lower()
  letters = [letter for letter, option in options.items() if option.lower() in lower]
  return max(letters, key=lambda x: lower.rfind(options[x].lower()), default="")


def mmt_letter(prediction: str, options: Options) -> str:
  """MMT-Bench of lmms-eval: "(B)", else " B ", else "B."; the last " B " between several."""
  text = _without_outer_marks(prediction.strip())
  for form in ("({})", " {} ", "{}."):
    letters = [letter for letter in options if form.format(letter) in text]
    if letters:
      return letters[int(np.argmax([text.rfind(f" {x} ") for x in letters]))]
  return ""


def _without_outer_marks(text: str) -> str:
  for mark in _OUTER_MARKS:
    text = text.strip(mark)
  return f" {text} "
