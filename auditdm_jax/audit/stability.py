# SPDX-License-Identifier: Apache-2.0
"""Would the same modes be found on another draw of images?

Discovery is done again on bootstrap samples of the images. A mode's stability is the mean, over the
samples, of the largest Jaccard index of its members with those of a mode of the sample (Hennig
2007, Computational Statistics & Data Analysis 52:258). Members are counted among all attempts.
"""

import dataclasses

import numpy as np

from auditdm_jax.audit.taxonomy import Evidence, Taxonomy, members, name_modes
from auditdm_jax.core import streams

SAMPLES = 20
UNSTABLE = 0.5  # A mode below this would often not be found.
_MOST = 20_000  # Attempts; above that, those of a part of the images.


def stability(
  evidence: Evidence, taxonomy: Taxonomy, *, seed: int, samples: int = SAMPLES
) -> dict[str, float]:
  """Mean largest Jaccard index of each mode, by id.

  Args:
    evidence: what the modes were found on.
    taxonomy: these modes.
    seed: of the run.
    samples: of the images, with replacement.
  """
  if not taxonomy.modes:
    return {}
  evidence = _bounded(evidence, seed)
  of = members(taxonomy, evidence)
  best = np.zeros(len(taxonomy.modes))
  count = int(evidence.images.max()) + 1
  for i in range(samples):
    rng = streams.rng(seed, "stability", i)
    weight = np.bincount(rng.integers(count, size=count), minlength=count)[evidence.images]
    again = name_modes(_taken(evidence, np.flatnonzero(weight), weight))
    best += _jaccard(of, members(again, evidence), len(best), len(again.modes))
  return {m.mode_id: float(x) / samples for m, x in zip(taxonomy.modes, best, strict=True)}


def _jaccard(of: np.ndarray, other: np.ndarray, n: int, other_n: int) -> np.ndarray:
  """f64[n]: the largest index of each mode with one of the others; 0 without members."""
  both = np.zeros((n + 1, other_n + 1))
  np.add.at(both, (of, other), 1)  # -1, no mode, is the last one.
  shared = both[:n, :other_n]
  union = both[:n].sum(axis=1)[:, None] + both[:, :other_n].sum(axis=0) - shared
  return (shared / np.maximum(union, 1)).max(axis=1, initial=0.0)


def _taken(evidence: Evidence, rows: np.ndarray, weight: np.ndarray) -> Evidence:
  return dataclasses.replace(
    evidence,
    questions=tuple(evidence.questions[i] for i in rows),
    images=evidence.images[rows],
    skills=evidence.skills[rows],
    table=evidence.table.take(rows).weighted(weight[rows].astype(np.float64)),
  )


def _bounded(evidence: Evidence, seed: int) -> Evidence:
  """The attempts about a part of the images, if there are very many: a mode is found less then."""
  n = len(evidence.questions)
  if n <= _MOST:
    return evidence
  count = int(evidence.images.max()) + 1
  kept = streams.rng(seed, "stability", "images").random(count) < _MOST / n
  rows = np.flatnonzero(kept[evidence.images])
  part = _taken(evidence, rows, np.ones(n))
  return dataclasses.replace(part, images=np.unique(part.images, return_inverse=True)[1])
