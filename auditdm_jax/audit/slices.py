# SPDX-License-Identifier: Apache-2.0
"""Slice discovery: which terms of a group of attempted probes have an enriched failure rate?

A greedy decision list. Candidates are the whole group, single terms, and pairs of terms. In each
round the candidate with the best lower Clopper-Pearson bound among those that pass wins, and what
it covers is removed. To pass, a candidate needs n >= min_n, a lower bound above the threshold, and
a failure rate above that of the rest of its group (Fisher, Benjamini-Hochberg over all candidates
of the round); a pair must also beat either of its terms alone. A winner that is not better than a
wider candidate around it gives way to the wider one, so that one gap does not become many slices.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses

import numpy as np
from scipy import sparse

from auditdm_jax.audit import rates
from auditdm_jax.audit.words import terms

_ROLE_ORDER = {"q": 0, "a": 1, "any": 2}


@dataclasses.dataclass(frozen=True)
class SliceConfig:
  """When a slice is a failure mode.

  Attributes:
    threshold: least lower bound of the failure rate.
    min_n: least number of attempted probes in the slice.
    level: false discovery rate of the enrichment tests.
    confidence: of the one-sided lower bound.
    whole_rate: a group failing at least this often is one mode, without looking for terms.
    beam: terms from which pairs are made.
    max_rules: rounds per group.
  """

  threshold: float = 0.25
  min_n: int = 8
  level: float = 0.05
  confidence: float = 0.95
  whole_rate: float = 0.8
  beam: int = 40
  max_rules: int = 40


@dataclasses.dataclass(frozen=True)
class FoundRule:
  """A rule as found: terms that must all hold (none = whole group), and its counts."""

  terms: tuple[str, ...]
  n: int
  k: int
  lower: float
  q_value: float
  rows: np.ndarray  # i64[n'], rows of the group it removed


@dataclasses.dataclass(frozen=True)
class AttemptTable:
  """N attempts as a matrix.

  Attributes:
    has: f32[N,T] sparse, 1 where attempt i has term t.
    names: the T terms, `q:` in the question, `a:` in the answer, `any:` in either.
    failed: f64[N], 1 where the target failed.
    weight: f64[N], 1, or the multiplicity in a bootstrap sample.
  """

  has: sparse.csr_matrix
  names: tuple[str, ...]
  failed: np.ndarray
  weight: np.ndarray

  def take(self, rows: np.ndarray) -> "AttemptTable":
    """The attempts of a group, with the terms that occur in it."""
    has = self.has[rows]
    used = np.flatnonzero(np.asarray(has.sum(axis=0)).ravel())
    return AttemptTable(
      has[:, used],
      tuple(self.names[i] for i in used),
      self.failed[rows],
      self.weight[rows],
    )

  def column(self, name: str) -> np.ndarray:
    """bool[N]: the attempts that have the term."""
    return np.asarray(self.has[:, [self.names.index(name)]].todense()).ravel() > 0


def term_set(question: str, answer: str | None) -> frozenset[str]:
  """The terms of one attempt, by role; what rules are matched against."""
  in_question, in_answer = terms(question), terms(answer or "")
  return frozenset(
    [f"q:{t}" for t in in_question]
    + [f"a:{t}" for t in in_answer]
    + [f"any:{t}" for t in in_question | in_answer]
  )


def make_table(
  questions: Sequence[str], answers: Sequence[str | None], failed: Sequence[bool]
) -> AttemptTable:
  """The matrix of all attempts; `any:` only for terms that occur in both roles."""
  sets = [term_set(q, a) for q, a in zip(questions, answers)]
  seen = frozenset().union(*sets)
  keep = [t for t in seen if not t.startswith("any:") or _in_both_roles(t, seen)]
  common = Counter(t for row in sets for t in row)
  names = tuple(sorted(keep, key=lambda t: _simplicity(t, common[t])))
  index = {t: i for i, t in enumerate(names)}
  columns, ends = [], [0]
  for row in sets:
    columns.extend(sorted(index[t] for t in row if t in index))
    ends.append(len(columns))
  has = sparse.csr_matrix(
    (np.ones(len(columns), np.float32), columns, ends), shape=(len(sets), len(names))
  )
  return AttemptTable(has, names, np.asarray(failed, np.float64), np.ones(len(sets)))


def _in_both_roles(any_term: str, seen: frozenset[str]) -> bool:
  word = any_term.removeprefix("any:")
  return f"q:{word}" in seen and f"a:{word}" in seen


def _simplicity(name: str, count: int) -> tuple[int, int, int, str]:
  """Among equal candidates: single words before pairs, question before answer before either.

  Then the more common: of `row four column two`, people mean `row four`, not `four column`.
  """
  role, word = name.split(":", 1)
  return word.count(" "), _ROLE_ORDER[role], -count, word


def decision_list(
  table: AttemptTable,
  *,
  outside: tuple[float, float] = (0, 0),
  whole_tests: int = 0,
  config: SliceConfig,
  accept: Callable[[FoundRule], bool] = lambda found: True,
) -> list[FoundRule]:
  """The rules of one group.

  Args:
    table: the group's attempts.
    outside: (failures, attempts) of everything outside the group: what "whole group" must beat.
    whole_tests: number of groups whose "whole group" is tested (0: it may not be a mode).
    config: when a slice counts.
    accept: last word on a slice.
  """
  open_rows, found, banned = np.ones(len(table.failed), bool), [], set()
  while len(found) < config.max_rules:
    best = _best(table, open_rows, outside, whole_tests, banned, config)
    if best is None:
      break
    if accept(best):
      found.append(best)
      open_rows[best.rows] = False
    else:
      banned.add(best.terms)
    if not best.terms:
      break
  return found


@dataclasses.dataclass(frozen=True)
class _Candidates:
  """Candidates of a round: counts, bounds, p-values; `tests` counts all that were tried."""

  terms: list[tuple[str, ...]]
  n: np.ndarray
  k: np.ndarray
  lower: np.ndarray
  p: np.ndarray
  tests: int


def _best(
  table: AttemptTable,
  open_rows: np.ndarray,
  outside: tuple[float, float],
  whole_tests: int,
  banned: set[tuple[str, ...]],
  config: SliceConfig,
) -> FoundRule | None:
  weight = table.weight * open_rows
  n_all, k_all = weight.sum(), (weight * table.failed).sum()
  if n_all < config.min_n or k_all == 0:
    return None
  if whole_tests and open_rows.all() and k_all / n_all >= config.whole_rate:
    return _whole(open_rows, n_all, k_all, 0.0, config)
  found = _candidates(table, weight, n_all, k_all, config)
  q = rates.benjamini_hochberg(found.p, m=found.tests) if found.terms else np.zeros(0)
  passing = [int(i) for i in np.flatnonzero(q <= config.level) if found.terms[i] not in banned]
  winner = None
  if passing:
    i = _widen(table, open_rows, found, passing, config)
    rows = np.flatnonzero(open_rows & _covers(table, found.terms[i]))
    winner = FoundRule(
      found.terms[i], int(found.n[i]), int(found.k[i]), float(found.lower[i]), float(q[i]), rows
    )
  if whole_tests:
    p = min(1.0, whole_tests * _whole_p(k_all, n_all, outside))
    whole = _whole(open_rows, n_all, k_all, p, config)
    passes = whole.lower >= config.threshold and whole.q_value <= config.level
    if passes and (winner is None or whole.lower > winner.lower):
      return whole
  return winner


def _whole(open_rows: np.ndarray, n: float, k: float, p: float, config: SliceConfig) -> FoundRule:
  lower = float(rates.lower_bounds(k, n, confidence=config.confidence))
  return FoundRule((), int(n), int(k), lower, p, np.flatnonzero(open_rows))


def _whole_p(k: float, n: float, outside: tuple[float, float]) -> float:
  """A group that fails more often than not needs no comparison with others."""
  if 2 * k >= n:
    return 0.0
  return rates.fisher_greater(int(k), int(n), int(outside[0]), int(outside[1]))


def _candidates(
  table: AttemptTable, weight: np.ndarray, n_all: float, k_all: float, config: SliceConfig
) -> _Candidates:
  """Single terms and pairs that reach the bound, with the p-value of their enrichment."""
  n = table.has.T @ weight
  k = table.has.T @ (weight * table.failed)
  lower = rates.lower_bounds(k, np.maximum(n, 1), confidence=config.confidence)
  usable = np.flatnonzero((n >= config.min_n) & (n < n_all))
  picked = usable[lower[usable] >= config.threshold]
  terms_ = [(table.names[i],) for i in picked]
  p = [_fisher(k[i], n[i], k_all, n_all) for i in picked]
  beam = usable[np.argsort(-lower[usable], kind="stable")][: config.beam]
  pairs, pair_n, pair_k, pair_p, tests = _pairs(
    table, weight, beam[k[beam] > 0], n, k, n_all, k_all, config
  )
  all_n = np.concatenate([n[picked], pair_n])
  all_k = np.concatenate([k[picked], pair_k])
  bounds = rates.lower_bounds(all_k, np.maximum(all_n, 1), confidence=config.confidence)
  return _Candidates(
    terms_ + pairs, all_n, all_k, bounds, np.array(p + pair_p), len(usable) + tests
  )


def _pairs(
  table: AttemptTable,
  weight: np.ndarray,
  beam: np.ndarray,
  n: np.ndarray,
  k: np.ndarray,
  n_all: float,
  k_all: float,
  config: SliceConfig,
) -> tuple[list[tuple[str, ...]], np.ndarray, np.ndarray, list[float], int]:
  """Pairs of beam terms: a pair's p-value is its worst against either term alone and the rest."""
  if len(beam) < 2:
    return [], np.zeros(0), np.zeros(0), [], 0
  has = table.has[:, beam]
  n2 = (has.T @ has.multiply(weight[:, None])).toarray()
  k2 = (has.T @ has.multiply((weight * table.failed)[:, None])).toarray()
  first, second = np.triu_indices(len(beam), 1)
  n2, k2 = n2[first, second], k2[first, second]
  first, second = beam[first], beam[second]
  usable = (n2 >= config.min_n) & (n2 < np.minimum(n[first], n[second]))
  lower = rates.lower_bounds(k2, np.maximum(n2, 1), confidence=config.confidence)
  picked = np.flatnonzero(usable & (lower >= config.threshold))
  p = [
    max(
      _fisher(k2[i], n2[i], float(k[first[i]]), float(n[first[i]])),
      _fisher(k2[i], n2[i], float(k[second[i]]), float(n[second[i]])),
      _fisher(k2[i], n2[i], k_all, n_all),
    )
    for i in picked
  ]
  names = [(table.names[first[i]], table.names[second[i]]) for i in picked]
  return names, n2[picked], k2[picked], p, int(usable.sum())


def _fisher(k: float, n: float, k_around: float, n_around: float) -> float:
  """Is the slice worse than what is around it, itself taken out?"""
  return rates.fisher_greater(int(k), int(n), int(k_around - k), int(n_around - n))


def _covers(table: AttemptTable, names: tuple[str, ...]) -> np.ndarray:
  return np.logical_and.reduce([table.column(name) for name in names])


def _widen(
  table: AttemptTable,
  open_rows: np.ndarray,
  found: _Candidates,
  passing: Sequence[int],
  config: SliceConfig,
) -> int:
  """Index of the winner: the best bound, widened as long as nothing speaks for the narrower."""
  place = {name: i for i, name in enumerate(table.names)}  # simplest first

  def order(i: int) -> tuple:
    simplicity = sum(place[name] for name in found.terms[i])
    return -round(float(found.lower[i]), 9), len(found.terms[i]), simplicity

  rank = sorted(passing, key=order)
  winner = rank[0]
  weight = table.weight * open_rows
  while True:
    mine = _covers(table, found.terms[winner])
    wider = [
      i
      for i in rank
      if found.n[i] > found.n[winner]
      and _fisher(found.k[winner], found.n[winner], found.k[i], found.n[i]) > config.level
      and (weight * mine * _covers(table, found.terms[i])).sum() >= 0.95 * found.n[winner]
    ]
    if not wider:
      return winner
    winner = wider[0]
