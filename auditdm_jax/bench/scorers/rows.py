# SPDX-License-Identifier: Apache-2.0
"""What a scorer takes and gives: items, rows with their scores, and the metrics of all rows.

1. An `Item` is one prediction with what it is compared with.
2. `Metric.score(items)` gives one `Scored` per judged unit. That is an item, or the items that are
   judged together: the rotations of a question, both questions of an MME image.
3. `Metric.reduce(rows, weights)` gives the values of the corpus. It takes many weightings at once,
   so that a bootstrap over images is one call.

Axes: N rows, R weightings.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum

import numpy as np

from auditdm_jax.core.config import UserError

Scorer = Callable[[str, Sequence[str]], float]


class Variant(enum.StrEnum):
  """Whose rules a metric follows where published scorers of one benchmark differ."""

  OFFICIAL = "official"  # The benchmark's authors.
  LMMS_EVAL = "lmms-eval"
  VLMEVALKIT = "vlmevalkit"
  BIG_VISION = "big_vision"
  OURS = "ours"
  ANLS = "anls"  # The package of this name on PyPI.
  ANLS_STAR = "anls-star"  # Likewise.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
  """Where the referred object is.

  Attributes:
    box: ymin, xmin, ymax, xmax as shares of the image's height and width.
    height: of the image, in pixels.
    width: of the image, in pixels.
    mask: bool[height, width], or None where only the box is known.
  """

  box: tuple[float, float, float, float]
  height: int = 1
  width: int = 1
  mask: np.ndarray | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """One prediction and what it is compared with; a metric reads the fields that it needs.

  Attributes:
    key: unique in the benchmark.
    prediction: what the model said.
    references: accepted answers; the letter of the right option for multiple choice.
    options: texts of the options, A first; empty where they are not known.
    image: names the image; intervals are made over images.
    group: names the items that are judged together, empty for an item on its own.
    category: for metrics that are averaged over categories.
    region: the object of a referring expression.
  """

  key: str
  prediction: str
  references: tuple[str, ...] = ()
  options: tuple[str, ...] = ()
  image: str = ""
  group: str = ""
  category: str = ""
  region: Region | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """One judged unit.

  Attributes:
    key: of its item, or of its group.
    score: what paired comparisons use; most metrics are its mean.
    image: of its items.
    category: of its items.
    n: predictions in this unit.
    invalid: how many of them could not be read.
    parts: further numbers that the metric's reduction needs, by name.
  """

  key: str
  score: float
  image: str = ""
  category: str = ""
  n: int = 1
  invalid: int = 0
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)


Values = dict[str, np.ndarray]
Reduction = Callable[[Sequence[Scored], np.ndarray], Values]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """A metric of a benchmark under one variant.

  Attributes:
    score: items -> rows.
    reduction: (rows, weights f64[R, N]) -> {name: f64[R]}, the primary value first.
    scale: what the primary value is at most.
  """

  score: Callable[[Sequence[Item]], list[Scored]]
  reduction: Reduction
  scale: float = 1.0

  def reduce(self, rows: Sequence[Scored]) -> dict[str, float]:
    """Returns the values of the corpus, the primary one first and the count of invalid last."""
    values = self.reduction(rows, np.ones((1, len(rows))))
    out = {name: float(value[0]) for name, value in values.items()}
    return out | {"invalid": float(sum(row.invalid for row in rows))}

  def resample(self, rows: Sequence[Scored], weights: np.ndarray) -> np.ndarray:
    """Returns the primary value f64[R] under weights f64[R, N], as a bootstrap needs it."""
    return next(iter(self.reduction(rows, weights).values()))


def per_answer(scorer: Scorer, *, reduction: Reduction | None = None) -> Metric:
  """Makes a metric of a function (prediction, references) -> [0, 1].

  A prediction without a visible character counts as invalid.
  """

  def score(items: Sequence[Item]) -> list[Scored]:
    return [
      row_of(item, scorer(item.prediction, item.references), invalid=not item.prediction.strip())
      for item in items
    ]

  return Metric(score=score, reduction=reduction or mean)


def row_of(item: Item, score: float, *, invalid: bool = False, **parts: float) -> Scored:
  """Returns the row of an item that is judged alone."""
  return Scored(
    key=item.key,
    score=float(score),
    image=item.image,
    category=item.category,
    invalid=int(invalid),
    parts=parts,
  )


def grouped(items: Sequence[Item]) -> dict[str, list[Item]]:
  """{group: its items}, in order of first appearance; an item without a group is its own."""
  groups: dict[str, list[Item]] = {}
  for item in items:
    groups.setdefault(item.group or item.key, []).append(item)
  return groups


def listed(references: Sequence[str]) -> Sequence[str]:
  """Returns the references as a list: one string is one of them, not its letters.

  Raises:
    UserError: there are none, so that there is no score.
  """
  references = (references,) if isinstance(references, str) else references
  if not len(references):
    raise UserError("an answer without references cannot be scored; leave the question out")
  return references


def mean(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  """{"mean"}: the mean of the scores."""
  return {"mean": weighted_mean(rows, weights)}


def mean_and_categories(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  """{"mean", "mean/<category>"}: the mean of the scores, and of those of each category."""
  parts = category_means(rows, weights)
  return mean(rows, weights) | {f"mean/{name}": part for name, part in parts.items() if name}


def weighted_mean(
  rows: Sequence[Scored], weights: np.ndarray, *, where: np.ndarray | None = None
) -> np.ndarray:
  """Mean score f64[R], over rows where bool[N] `where` holds; nan where no row has a weight."""
  scores = np.asarray([row.score for row in rows], np.float64)
  if where is not None:
    scores, weights = scores[where], weights[:, where]
  return ratio(weights @ scores, weights.sum(1))


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
  """numerator / denominator, and `empty` where the denominator is 0."""
  out = np.full(np.shape(denominator), empty, np.float64)
  return np.divide(numerator, denominator, out=out, where=denominator != 0)


def category_means(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  """{category: mean score f64[R]}, nan in a weighting that lacks the category."""
  names = np.asarray([row.category for row in rows])
  order = dict.fromkeys(row.category for row in rows)
  return {name: weighted_mean(rows, weights, where=names == name) for name in order}


def macro(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  """{"macro", "micro"}: the mean over categories of their means, and the mean over rows."""
  means = np.stack(list(category_means(rows, weights).values()))
  return {"macro": np.nanmean(means, axis=0), "micro": weighted_mean(rows, weights)}


def micro(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  """{"micro", "macro"}: as `macro`, the mean over rows first."""
  values = macro(rows, weights)
  return {"micro": values["micro"], "macro": values["macro"]}
