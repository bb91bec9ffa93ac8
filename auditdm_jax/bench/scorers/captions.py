# SPDX-License-Identifier: Apache-2.0
"""CIDEr-D of captions, as pycocoevalcap has it.

1. Captions become tokens (`ptb`), and counts of their 1- to 4-grams.
2. An n-gram weighs count * log(images / images whose references have it).
3. For each n, the prediction's vector is clipped to the reference's and multiplied with it, divided
   by both norms and damped by exp(-(difference in length)^2 / 72). Lengths are counted in bigrams.
4. An image's score is 10 times the mean over n and references. The corpus has the mean of images.

The weights of step 2 belong to a set of images: those of a part give another metric, which is why a
part is reported as `cider_subset`, unless it is scored with the frequencies of the full set.
Source: arXiv 1411.5726; pycocoevalcap 1.2, cider/cider_scorer.py.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import math

import numpy as np

from auditdm_jax.bench.scorers import ptb
from auditdm_jax.bench.scorers.rows import Item, Metric, Scored, Values, row_of, weighted_mean
from auditdm_jax.core.config import UserError

Tokenizer = Callable[[str], Sequence[str]]
Gram = tuple[str, ...]

_MAX_N = 4
_SIGMA = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frequencies:
  """In how many images' references an n-gram occurs.

  Attributes:
    images: number of images.
    counts: n-gram -> images; those of one image may be left out, as 1 is the default.
  """

  images: int
  counts: Counter[Gram]

  def idf(self, gram: Gram) -> float:
    return math.log(self.images) - math.log(max(1, self.counts[gram]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Vector:
  """tf-idf by n-gram, one dict and norm per n, and the number of bigrams."""

  weights: tuple[dict[Gram, float], ...]
  norms: tuple[float, ...]
  length: int


def frequencies(
  references: Iterable[Sequence[str]], *, tokenizer: Tokenizer = ptb.tokens
) -> Frequencies:
  """Counts the images of each n-gram; `references` has one list of captions per image."""
  counts: Counter[Gram] = Counter()
  images = 0
  for captions in references:
    images += 1
    counts.update({gram for text in captions for gram in _grams(tokenizer(text))})
  if not images:
    raise UserError("CIDEr needs the references of at least one image")
  return Frequencies(images=images, counts=counts)


def cider(
  items: Sequence[Item],
  *,
  known: Frequencies | None = None,
  tokenizer: Tokenizer = ptb.tokens,
) -> list[Scored]:
  """Scores one caption per image; an empty caption scores 0 and is invalid.

  Args:
    items: one per image, with all of its reference captions.
    known: frequencies of the full reference set; those of `items` if None.
    tokenizer: text -> tokens.

  Raises:
    UserError: an image occurs twice or has no references.
  """
  _check(items)
  known = known or frequencies((item.references for item in items), tokenizer=tokenizer)
  rows = []
  for item in items:
    said = tokenizer(item.prediction)
    rows.append(row_of(item, _score(said, item.references, known, tokenizer), invalid=not said))
  return rows


def metric(
  *,
  label: str = "cider",
  known: Frequencies | None = None,
  tokenizer: Tokenizer = ptb.tokens,
) -> Metric:
  """Makes the metric with its value named `label`: "cider", or "cider_subset" for a part."""

  def reduction(rows: Sequence[Scored], weights: np.ndarray) -> Values:
    return {label: weighted_mean(rows, weights)}

  score = functools.partial(cider, known=known, tokenizer=tokenizer)
  return Metric(score=score, reduction=reduction, scale=10.0)


def words(text: str) -> tuple[str, ...]:
  """What is between blanks: VLMEvalKit runs no tokenizer, so that "dog." is not "dog"."""
  return tuple(text.split())


def _check(items: Sequence[Item]) -> None:
  seen = set()
  for item in items:
    name = item.image or item.key
    if name in seen:
      raise UserError(f"image {name} has two captions; CIDEr scores one per image")
    if not item.references:
      raise UserError(f"image {name} has no reference captions; leave it out")
    seen.add(name)


def _score(
  said: Sequence[str], references: Sequence[str], known: Frequencies, tokenizer: Tokenizer
) -> float:
  if not said:
    return 0.0
  vector = _vector(said, known)
  shares = (_similarity(vector, _vector(tokenizer(x), known)) for x in references)
  return 10.0 * sum(shares) / len(references)


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
  tokens = tuple(tokens)
  return Counter(
    tokens[i : i + n] for n in range(1, _MAX_N + 1) for i in range(len(tokens) - n + 1)
  )


def _vector(tokens: Sequence[str], known: Frequencies) -> _Vector:
  weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(_MAX_N))
  for gram, count in _grams(tokens).items():
    weights[len(gram) - 1][gram] = count * known.idf(gram)
  norms = tuple(math.sqrt(sum(x * x for x in of_n.values())) for of_n in weights)
  return _Vector(weights=weights, norms=norms, length=max(len(tokens) - 1, 0))


def _similarity(said: _Vector, reference: _Vector) -> float:
  """Mean over n of the clipped cosine, damped by the difference in length."""
  total = 0.0
  for n in range(_MAX_N):
    norms = said.norms[n] * reference.norms[n]
    if norms:
      of_reference = reference.weights[n]
      own = said.weights[n].items()
      pairs = ((x, of_reference[gram]) for gram, x in own if gram in of_reference)
      total += sum(min(x, y) * y for x, y in pairs) / norms
  gap = said.length - reference.length
  return total / _MAX_N * math.exp(-(gap**2) / (2 * _SIGMA**2))
