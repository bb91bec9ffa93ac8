# SPDX-License-Identifier: Apache-2.0
"""Clusters of the failures that no rule covers, turned into rules that can be tested.

Average linkage on TF-IDF cosine; a cluster is described by its class-TF-IDF terms, and kept only
if "has most of these terms" has an enriched failure rate among attempted probes. A cluster of
failures alone says nothing: it may be what everybody asks.
"""

from collections.abc import Sequence
import math

import numpy as np
from scipy.cluster import hierarchy

from auditdm_jax.audit import rates
from auditdm_jax.audit.slices import AttemptTable, SliceConfig
from auditdm_jax.audit.words import TfIdf

_TERMS = 5


def least(words: Sequence[str]) -> int:
  """How many of a cluster's terms a probe must have."""
  return math.ceil(0.6 * len(words))


def clusters(
  questions: Sequence[str],
  table: AttemptTable,
  *,
  config: SliceConfig,
  max_failures: int = 1500,
  distance: float = 0.7,
) -> list[tuple[tuple[str, ...], np.ndarray, float]]:
  """(terms, rows of the table covered, q-value) of each cluster kept; rows are disjoint.

  Args:
    questions: of the uncovered attempts.
    table: the same attempts, failed or not.
    config: the bound and level that a cluster must pass.
    max_failures: an even sample of the failures is clustered above that.
    distance: cosine distance at which linkage stops.
  """
  failing = np.flatnonzero(table.failed * table.weight > 0)
  if len(failing) < config.min_n:
    return []
  if len(failing) > max_failures:
    failing = failing[np.linspace(0, len(failing) - 1, max_failures).astype(int)]
  texts = [questions[int(i)] for i in failing]
  vectors = TfIdf(texts).rows(texts).toarray()
  tree = hierarchy.linkage(vectors, method="average", metric="cosine")
  labels = hierarchy.fcluster(tree, t=distance, criterion="distance")
  described = _describe(table, failing, labels, config)
  open_rows = np.ones(len(questions), bool)
  passed = []
  for words in described:
    rows = np.flatnonzero(open_rows & _has(table, words))
    k, n = _count(table, rows)
    k_all, n_all = _count(table, np.flatnonzero(open_rows))
    p = rates.fisher_greater(k, n, k_all - k, n_all - n) if n >= config.min_n else 1.0
    q = min(1.0, p * len(described))
    bound = float(rates.lower_bounds(k, max(n, 1), confidence=config.confidence))
    if bound >= config.threshold and q <= config.level:
      open_rows[rows] = False
      passed.append((words, rows, q))
  return passed


def _describe(
  table: AttemptTable, failing: np.ndarray, labels: np.ndarray, config: SliceConfig
) -> list[tuple[str, ...]]:
  """Class-TF-IDF terms of each cluster, largest cluster first."""
  words = np.flatnonzero([name[:2] in ("q:", "a:") for name in table.names])
  everywhere = np.asarray(table.has[:, words].sum(axis=0)).ravel() + 1
  out = []
  for label, size in sorted(zip(*np.unique(labels, return_counts=True)), key=lambda x: -x[1]):
    if size < config.min_n // 2:
      continue
    members = failing[labels == label]
    share = np.asarray(table.has[members][:, words].mean(axis=0)).ravel()
    score = share * np.log(1 + len(table.failed) / everywhere) * (share >= 0.3)
    best = [int(i) for i in np.argsort(-score, kind="stable")[:_TERMS] if score[i] > 0]
    if best:
      out.append(tuple(table.names[words[i]] for i in best))
  return list(dict.fromkeys(out))


def _has(table: AttemptTable, words: Sequence[str]) -> np.ndarray:
  return np.sum([table.column(w).astype(int) for w in words], axis=0) >= least(words)


def _count(table: AttemptTable, rows: np.ndarray) -> tuple[int, int]:
  weight = table.weight[rows]
  return int((weight * table.failed[rows]).sum()), int(weight.sum())
