# SPDX-License-Identifier: Apache-2.0
"""POPE and MME: questions that are answered by yes or no.

A reader gives "yes", "no", or "" where it finds neither.
"""

from collections.abc import Callable, Sequence
import re

import numpy as np

from auditdm_jax.bench.scorers.rows import (
  Item,
  Metric,
  Scored,
  Values,
  category_means,
  grouped,
  ratio,
  row_of,
  weighted_mean,
)
from auditdm_jax.core.config import UserError

YesNoReader = Callable[[str], str]

PERCEPTION = (
  *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
  *("artwork", "OCR"),
)
COGNITION = (
  *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")


def bare_word(text: str) -> str:
  """lmms-eval's POPE: the bare word, in any case, between blanks."""
  return _either(text.lower().strip())


def bare_word_as_is(text: str) -> str:
  """big_vision's POPE: the bare word in any case, without a blank beside it."""
  return _either(text.lower())


def negation_words(text: str) -> str:
  """POPE's own script: "no" if the first sentence has No, no or not as a word, else yes.

  Every answer is read as one of them, even one that says neither; `says_either` tells these.
  Source: RUCAIBox/POPE, evaluate.py.
  """
  return "no" if {"No", "no", "not"} & set(_first_sentence(text)) else "yes"


def says_either(text: str) -> str:
  """What `negation_words` reads, if there is a word that says so."""
  said = negation_words(text)
  lower = " ".join(_first_sentence(text)).lower()
  return said if said == "no" or "yes" in re.findall(r"\w+", lower) else ""


def _first_sentence(text: str) -> list[str]:
  return text.split(".")[0].replace(",", "").split(" ")


def one_of_the_words(text: str) -> str:
  """VLMEvalKit: the text has the word yes or the word no, and not both."""
  words = _vlmk_words(text.lower())
  yes, no = "yes" in words, "no" in words
  return "" if yes == no else "yes" if yes else "no"


def _vlmk_words(text: str) -> list[str]:
  """VLMEvalKit, smp/misc.py process_punctuation, split into words."""
  out, deletes = text, _DIGIT_COMMA.search(text)
  for mark in _MARKS:
    at_a_blank = f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if at_a_blank or deletes else " ")
  return _PERIOD.sub("", out, count=32).split()


def first_four(text: str) -> str:
  """MME's own script: yes, else no, within the first four characters: "Know" is no.

  Source: the benchmark's eval_tool/calculation.py.
  """
  text = text.lower()
  return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else ""


def first_four_or_initial(text: str) -> str:
  """lmms-eval's MME: as `first_four` without periods; "y" and "n" on their own count as well."""
  text = text.lower().strip().replace(".", "")
  return {"y": "yes", "n": "no"}.get(text, "") if len(text) == 1 else first_four(text)


def _either(text: str) -> str:
  return text if text in ("yes", "no") else ""


def pope(
  reader: YesNoReader, *, ignores_unread: bool = False, valid: YesNoReader | None = None
) -> Metric:
  """Makes POPE's metric: f1, accuracy, precision, recall and the share of "yes" answers.

  Args:
    reader: text -> "yes", "no" or "".
    ignores_unread: leaves a positive question whose answer could not be read out of the recall, as
      lmms-eval does; else it is a miss.
    valid: an answer in which this reads nothing is invalid; the reader itself if None.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    return [_binary_row(item, reader, valid or reader) for item in items]

  def reduction(rows: Sequence[Scored], weights: np.ndarray) -> Values:
    said, truth = _part(rows, "said"), _part(rows, "truth")
    hits = weights @ ((said == 1) & (truth == 1))
    missed = (truth == 1) & ((said == -1) if ignores_unread else (said != 1))
    precision = ratio(hits, weights @ (said == 1), empty=0.0)
    recall = ratio(hits, hits + weights @ missed, empty=0.0)
    total = weights.sum(1)
    return {
      "f1": ratio(2 * precision * recall, precision + recall, empty=0.0),
      "accuracy": weighted_mean(rows, weights),
      "precision": precision,
      "recall": recall,
      "yes_ratio": ratio(weights @ (said == 1), total),
      "yes_ratio_of_truth": ratio(weights @ (truth == 1), total),
      "readable": ratio(weights @ np.asarray([row.invalid == 0 for row in rows]), total),
    }

  return Metric(score=score, reduction=reduction)


def _binary_row(item: Item, reader: YesNoReader, valid: YesNoReader) -> Scored:
  said, truth = reader(item.prediction), _truth(item)
  sign = {"yes": 1.0, "no": -1.0, "": 0.0}
  invalid = not valid(item.prediction)
  return row_of(item, said == truth, invalid=invalid, said=sign[said], truth=sign[truth])


def _truth(item: Item) -> str:
  truth = item.references[0].lower().strip().rstrip(".") if len(item.references) == 1 else ""
  if truth not in ("yes", "no"):
    raise UserError(f"{item.key}: the answer is {list(item.references)}, not yes or no")
  return truth


def _part(rows: Sequence[Scored], name: str) -> np.ndarray:
  return np.asarray([row.parts[name] for row in rows], np.float64)


def mme(reader: YesNoReader) -> Metric:
  """Makes MME's sum: per category, accuracy + accuracy+ in per cent, then the sum of categories.

  Accuracy+ is the share of images with both questions right. One row is one image, with a score
  of 0, 50 or 200. Values are the sum, perception, cognition and each category.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    pairs: dict[tuple[str, str], list[Item]] = {}
    for key, group in grouped(items).items():
      for item in group:
        pairs.setdefault((item.category, key), []).append(item)
    return [_mme_row(key, pair, reader) for (_, key), pair in pairs.items()]

  return Metric(score=score, reduction=_mme_sums, scale=2800.0)


def _mme_row(key: str, pair: Sequence[Item], reader: YesNoReader) -> Scored:
  first = pair[0]
  if len(pair) != 2:
    raise UserError(
      f"MME asks two questions about an image, and {key} ({first.category}) has {len(pair)};"
      " leave the image out"
    )
  if first.category not in (*PERCEPTION, *COGNITION):
    known = ", ".join((*PERCEPTION, *COGNITION))
    raise UserError(f"{key}: no category {first.category!r} in MME; known: {known}")
  said = [reader(item.prediction) for item in pair]
  right = sum(one == _truth(item) for one, item in zip(said, pair))
  return Scored(
    key=f"{first.category}/{key}",
    score=50.0 * right + 100.0 * (right == 2),
    image=first.image,
    category=first.category,
    n=2,
    invalid=said.count(""),
  )


def _mme_sums(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  means = category_means(rows, weights)
  nothing = np.zeros(len(weights))
  parts = {
    name: sum((np.nan_to_num(means[x]) for x in group if x in means), nothing)
    for name, group in (("perception", PERCEPTION), ("cognition", COGNITION))
  }
  return {"sum": parts["perception"] + parts["cognition"], **parts, **means}
