# SPDX-License-Identifier: Apache-2.0
"""Do the intervals cover, and is a model equal to itself? Simulations with images as units.

  python -m benchmarks.intervals [--runs=500] [--aa-runs=200]

Probes of one image share a rate drawn from a beta distribution (a Dirichlet one for pairs), whose
intraclass correlation (ICC) is given. The first tables print, over several true rates, the lowest
and highest share of runs whose 95 % interval holds the truth. The last one compares a model with
itself: of the pairs a tenth fails only before and a tenth only afterwards, in images of one kind.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools

from absl import app, flags
import numpy as np

from auditdm_jax.audit import compare, rates
from auditdm_jax.core import streams

IMAGES, QUESTIONS, ICC = (20, 60, 250), (3, 8), (0.0, 0.3, 0.7)
TRUE = (0.02, 0.05, 0.1, 0.3, 0.5, 0.9)
# Shares of pairs that fail only afterwards, and only before.
CHANGES = ((0.0, 0.0), (0.02, 0.02), (0.05, 0.0), (0.1, 0.02), (0.3, 0.05), (0.0, 0.5))
CORRECTED = (0.05, 0.1, 0.5, 0.8)
SENSITIVITY, SPECIFICITY, LABELS = 0.8, 0.9, 50
MODES = 12

_RUNS = flags.DEFINE_integer("runs", 500, "Runs of a cell.")
_AA_RUNS = flags.DEFINE_integer("aa-runs", 200, "Runs of a cell in which a model meets itself.")

Interval = tuple[float, float]


def failures(
  rng: np.random.Generator, images: int, questions: int, rate: float, icc: float
) -> np.ndarray:
  """bool[images, questions] whose failures share the rate of their image."""
  chance = np.full(images, rate)
  if icc:
    scale = (1 - icc) / icc
    chance = rng.beta(rate * scale, (1 - rate) * scale, images)
  return rng.random((images, questions)) < chance[:, None]


def pairs(
  rng: np.random.Generator, images: int, questions: int, shares: Sequence[float], icc: float
) -> tuple[np.ndarray, np.ndarray]:
  """Failures before and after, bool[images, questions] each.

  Args:
    rng: the draws.
    images: how many.
    questions: about each.
    shares: of pairs that pass twice, fail afterwards only, before only, and twice.
    icc: correlation within an image.
  """
  own = np.broadcast_to(np.asarray(shares), (images, 4))
  if icc:
    weights = rng.gamma(np.maximum(own * (1 - icc) / icc, 1e-12))
    lost = weights.sum(1) <= 0
    weights[lost] = np.eye(4)[rng.choice(4, int(lost.sum()), p=shares)]
    own = weights / weights.sum(1, keepdims=True)
  edges = np.cumsum(own, axis=1)[:, None, :3]
  kind = (rng.random((images, questions, 1)) > edges).sum(-1)
  return (kind == 2) | (kind == 3), (kind == 1) | (kind == 3)


def names(images: int, questions: int) -> list[int]:
  """The image of each probe."""
  return np.repeat(np.arange(images), questions).tolist()


def cells() -> Iterator[tuple[int, int, float]]:
  yield from itertools.product(IMAGES, QUESTIONS, ICC)


def covered(draw: Callable[[], Interval], truth: float, runs: int) -> float:
  """Returns the share of runs whose interval holds the truth."""
  found = [draw() for _ in range(runs)]
  return float(np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in found]))


def rate_cover(images: int, questions: int, icc: float, runs: int) -> tuple[list[float], ...]:
  """Cover of `rate_by_image`, and of Wilson's interval of independent probes."""
  rng, unit = streams.rng(0, "rates", images, questions, str(icc)), names(images, questions)

  def by_image(rate: float) -> Interval:
    return rates.rate_by_image(failures(rng, images, questions, rate, icc).ravel(), unit).ci95

  def independent(rate: float) -> Interval:
    failed = failures(rng, images, questions, rate, icc)
    return rates.rate(int(failed.sum()), failed.size).ci95

  return tuple(
    [covered(functools.partial(draw, rate), rate, runs) for rate in TRUE]
    for draw in (by_image, independent)
  )


def change_cover(images: int, questions: int, icc: float, runs: int) -> list[float]:
  """Cover of `change_by_image`."""
  rng, unit = streams.rng(0, "changes", images, questions, str(icc)), names(images, questions)

  def draw(worse: float, better: float) -> Interval:
    rest = 1 - worse - better
    old, new = pairs(rng, images, questions, (0.7 * rest, worse, better, 0.3 * rest), icc)
    return rates.change_by_image(old.ravel(), new.ravel(), unit).ci95

  return [covered(functools.partial(draw, w, b), w - b, runs) for w, b in CHANGES]


def corrected_cover(images: int, questions: int, icc: float, runs: int) -> list[float]:
  """Cover of `corrected` by a judge that was measured on 50 labels of either kind."""
  rng, unit = streams.rng(0, "corrected", images, questions, str(icc)), names(images, questions)

  def draw(rate: float) -> Interval:
    truly = failures(rng, images, questions, rate, icc)
    flagged = rng.random(truly.shape) < np.where(truly, SENSITIVITY, 1 - SPECIFICITY)
    return rates.corrected(
      rates.rate_by_image(flagged.ravel(), unit),
      rates.Labelled(int(rng.binomial(LABELS, SENSITIVITY)), LABELS),
      rates.Labelled(int(rng.binomial(LABELS, SPECIFICITY)), LABELS),
    ).ci95

  return [covered(functools.partial(draw, rate), rate, runs) for rate in CORRECTED]


def against_itself(images: int, questions: int, icc: float, runs: int) -> rates.Rate:
  """Returns the share of comparisons of a model with itself that have a significant mode."""
  rng, unit = streams.rng(0, "itself", images, questions, str(icc)), names(images, questions)
  changed = 0
  for _ in range(runs):
    items = []
    for mode in range(MODES):
      old, new = pairs(rng, images, questions, (0.6, 0.1, 0.1, 0.2), icc)
      items += [
        compare.PairedOutcome(str(mode), str(i), str(image), bool(a), bool(b))
        for i, (image, a, b) in enumerate(zip(unit, old.ravel(), new.ravel(), strict=True))
      ]
    changed += bool(compare.compare(items).significant)
  return rates.rate(changed, runs)


def enriched(images: int, questions: int, icc: float, runs: int) -> list[float]:
  """Shares of runs in which a mode of the rate of the rest is significant at 5 %."""
  rng = streams.rng(0, "enriched", images, questions, str(icc))
  unit, rest = names(images, questions), [(i,) for i in names(250, questions)]

  def p(rate: float) -> float:
    inside = failures(rng, images, questions, rate, icc).ravel()
    outside = failures(rng, 250, questions, rate, icc).ravel()
    return rates.enriched_by_image(inside, unit, outside, rest)

  return [float(np.mean([p(rate) <= 0.05 for _ in range(runs)])) for rate in (0.05, 0.3, 0.45)]


def span(shares: Sequence[float]) -> str:
  """Lowest and highest, in %."""
  return f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  print(
    "| images x questions | ICC | Wilson of probes | `rate_by_image` | `change_by_image` |"
    " `corrected` | `enriched_by_image`: p <= .05 | a model against itself |"
  )
  print("|" + "---|" * 8)
  for cell in cells():
    images, questions, icc = cell
    by_image, independent = rate_cover(*cell, _RUNS.value)
    itself = against_itself(*cell, _AA_RUNS.value)
    low, high = itself.ci95
    print(
      f"| {images} x {questions} | {icc:g} | {span(independent)} | {span(by_image)} |"
      f" {span(change_cover(*cell, _RUNS.value))} | {span(corrected_cover(*cell, _RUNS.value))} |"
      f" {span(enriched(*cell, _RUNS.value))} |"
      f" {100 * itself.value:.1f} [{100 * low:.1f}, {100 * high:.1f}] |",
      flush=True,
    )


if __name__ == "__main__":
  app.run(main)
