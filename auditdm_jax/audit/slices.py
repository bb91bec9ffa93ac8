# SPDX-License-Identifier: Apache-2.0
"""Slice discovery: which terms of a group of attempted probes have an enriched failure rate?

A greedy decision list. Candidates are the whole group, single terms, and pairs of terms. In each
round the candidate with the best lower Clopper-Pearson bound among those that pass wins, and what
it covers is removed. To pass, a candidate needs n >= min_n, a lower bound above the threshold, and
a failure rate above that of the rest of its group (Fisher); a pair must also beat either of its
terms alone, and the whole group must beat the other groups. One Benjamini-Hochberg level holds for
the tests of all groups (`cut`). A winner that is shown to be no worse by the margin than the rest
of a wider candidate around it gives way to the wider one, so that one gap is not many slices.

What is found here was chosen for its failures. Whether it holds is for fresh probes (`confirm`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import numpy as np
from scipy import sparse

from auditdm_jax.audit import rates
from auditdm_jax.audit.words import TermLexicon, number_terms

NOWHERE: frozenset[str] = frozenset()  # The terms of an image of which nothing is known.
_ROLE_ORDER = {"q": 0, "a": 1, "any": 2, "img": 3}


@dataclasses.dataclass(frozen=True)
class SliceConfig:
  """When a slice is a failure mode.

  Attributes:
    threshold: least lower bound of the failure rate.
    min_n: least number of attempted probes in the slice.
    level: false discovery rate of the enrichment tests, over all groups.
    confidence: of the one-sided lower bound.
    whole_rate: a group failing at least this often is one mode, without looking for terms.
    margin: slices are one if their rates are shown to differ by less than this.
    beam: terms from which pairs are made.
    max_rules: rounds per group.
  """

  threshold: float = 0.25
  min_n: int = 8
  level: float = 0.05
  confidence: float = 0.95
  whole_rate: float = 0.8
  margin: float = 0.25
  beam: int = 40
  max_rules: int = 40


def alike(k: float, n: float, other_k: float, other_n: float, *, margin: float) -> bool:
  """Whether k/n is shown (one-sided, 95 %) to be above the other rate by less than the margin.

  The limit of the difference is Newcombe's (1998, Statistics in Medicine 17:873, method 10).
  """
  if n < 1 or other_n < 1:
    return False
  p, other = k / n, other_k / other_n
  high = rates.wilson(int(k), int(n), confidence=0.9)[1]
  low = rates.wilson(int(min(other_k, other_n)), int(other_n), confidence=0.9)[0]
  return p - other + math.hypot(high - p, other - low) < margin


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
    names: the T terms, `q:` in the question, `a:` in the answer, `any:` in either, `img:` of the
      image.
    failed: f64[N], 1 where the target failed.
    weight: f64[N], 1, or the multiplicity in a bootstrap sample.
    design: design effect of failures by image. Tests of terms about images are made at the
      effective numbers, since such a term holds for all probes of an image or for none.
  """

  has: sparse.csr_matrix
  names: tuple[str, ...]
  failed: np.ndarray
  weight: np.ndarray
  design: float = 1.0

  def take(self, rows: np.ndarray) -> "AttemptTable":
    """The attempts of a group, with the terms that occur in it."""
    has = self.has[rows]
    used = np.flatnonzero(np.asarray(has.sum(axis=0)).ravel())
    names = tuple(self.names[i] for i in used)
    return AttemptTable(has[:, used], names, self.failed[rows], self.weight[rows], self.design)

  def weighted(self, weight: np.ndarray) -> "AttemptTable":
    """The same attempts with other multiplicities."""
    return dataclasses.replace(self, weight=weight)

  def column(self, name: str) -> np.ndarray:
    """bool[N]: the attempts that have the term."""
    found = np.zeros(len(self.failed), bool)
    at = self.place.get(name)
    if at is not None:
      rows, starts = self._columns
      found[rows[starts[at] : starts[at + 1]]] = True
    return found

  @functools.cached_property
  def place(self) -> dict[str, int]:
    """Of each term, its column."""
    return {name: i for i, name in enumerate(self.names)}

  @functools.cached_property
  def _columns(self) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have each term, one term after the other, and where each one's begin."""
    columns = self.has.tocsc()
    return columns.indices, columns.indptr


def term_set(
  question: str, answer: str | None, lexicon: TermLexicon, image: frozenset[str] = NOWHERE
) -> frozenset[str]:
  """The terms of one attempt, by role; what rules are matched against.

  Args:
    question: its question.
    answer: its consensus.
    lexicon: the terms of texts.
    image: the terms of its image, see `audit.looks`.
  """
  in_question, in_answer = lexicon.terms(question), lexicon.terms(answer or "")
  return frozenset(
    [f"q:{t}" for t in in_question]
    + [f"a:{t}" for t in in_answer]
    + [f"any:{t}" for t in in_question | in_answer]
    + [f"a:{t}" for t in number_terms(answer or "")]
  ).union(image)


def make_table(
  questions: Sequence[str],
  answers: Sequence[str | None],
  failed: Sequence[bool],
  *,
  lexicon: TermLexicon,
  images: Sequence[frozenset[str]] = (),
) -> AttemptTable:
  """The matrix of all attempts; `any:` only for terms that occur in both roles."""
  seen_on = images or [NOWHERE] * len(questions)
  sets = [
    term_set(q, a, lexicon, image) for q, a, image in zip(questions, answers, seen_on, strict=True)
  ]
  common = Counter(t for row in sets for t in row)
  keep = [t for t in common if not t.startswith("any:") or _in_both_roles(t, common)]
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


def _in_both_roles(any_term: str, seen: Counter[str]) -> bool:
  word = any_term.removeprefix("any:")
  return f"q:{word}" in seen and f"a:{word}" in seen


def _simplicity(name: str, count: int) -> tuple[int, int, int, str]:
  """Among equal candidates: words, pairs, kinds and numbers; question before answer before either.

  Then the more common: of `row four column two`, people mean `row four`, not `four column`.
  """
  role, word = name.split(":", 1)
  made = role == "img" or word.startswith(("[", "number "))
  return 2 if made else word.count(" "), _ROLE_ORDER[role], -count, word


class SearchGroup:
  """Attempts in which terms are looked for, with the candidates of the first round.

  Attributes:
    table: the attempts.
    first: single terms and pairs of all attempts.
    whole_p: of the whole group against the others; None if it may not be a mode.
  """

  def __init__(
    self,
    table: AttemptTable,
    *,
    others: tuple[float, float] | None = None,
    config: SliceConfig,
  ):
    """Takes (failures, attempts) of the other groups; None: the whole group may not be a mode."""
    self.table, self.others, self.config = table, others, config
    n, k = table.weight.sum(), (table.weight * table.failed).sum()
    self.first = _candidates(table, table.weight, n, k, config) if k else None
    self.whole_p = None if others is None else rates.fisher_greater(*_whole(k, n, others))

  @property
  def p_values(self) -> list[float]:
    """Of the candidates that reach the bound."""
    whole = [] if self.whole_p is None else [self.whole_p]
    return whole + (list(self.first.p) if self.first else [])

  @property
  def tests(self) -> int:
    """How many candidates there were."""
    return (self.first.tests if self.first else 0) + (self.whole_p is not None)


def _whole(k: float, n: float, others: tuple[float, float]) -> tuple[int, int, int, int]:
  return int(k), int(n), int(others[0]), int(others[1])


def cut(groups: Sequence[SearchGroup], *, level: float) -> float:
  """The largest p that passes: one Benjamini-Hochberg level over the first tests of all groups."""
  p = np.sort(np.concatenate([np.asarray(g.p_values) for g in groups] or [np.zeros(0)]))
  tests = max(sum(g.tests for g in groups), 1)
  passing = np.flatnonzero(p <= level * np.arange(1, len(p) + 1) / tests)
  return level * (passing[-1] + 1 if len(passing) else 1) / tests


def decision_list(
  group: SearchGroup, *, cut: float, accept: Callable[[FoundRule], bool] = lambda found: True
) -> list[FoundRule]:
  """The rules of one group.

  Args:
    group: the attempts.
    cut: the largest p that passes.
    accept: last word on a slice.
  """
  open_rows, found, banned = np.ones(len(group.table.failed), bool), [], set()
  candidates = group.first
  while len(found) < group.config.max_rules and candidates is not None:
    best = _best(group, candidates, open_rows, banned, cut)
    if best is None:
      break
    if accept(best):
      found.append(best)
      open_rows[best.rows] = False
      candidates = _next(group, open_rows)
    else:
      banned.add(best.terms)
    if not best.terms:
      break
  return found


def _next(group: SearchGroup, open_rows: np.ndarray) -> "_Candidates | None":
  weight = group.table.weight * open_rows
  n, k = weight.sum(), (weight * group.table.failed).sum()
  return _candidates(group.table, weight, n, k, group.config) if k else None


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
  group: SearchGroup,
  found: _Candidates,
  open_rows: np.ndarray,
  banned: set[tuple[str, ...]],
  cut: float,
) -> FoundRule | None:
  table, config = group.table, group.config
  weight = table.weight * open_rows
  n, k = weight.sum(), (weight * table.failed).sum()
  if n < config.min_n or k == 0:
    return None
  whole = _whole_rule(group, open_rows, k, n, cut)
  if whole and open_rows.all() and k / n >= config.whole_rate:
    return whole
  passing = [int(i) for i in np.flatnonzero(found.p <= cut) if found.terms[i] not in banned]
  if not passing:
    return whole
  i = _widen(table, open_rows, found, passing, config)
  rest = k - found.k[i], n - found.n[i]
  if whole and (
    whole.lower > found.lower[i]
    or alike(float(found.k[i]), float(found.n[i]), *rest, margin=config.margin)
  ):
    return whole
  q = min(1.0, float(found.p[i]) * config.level / cut)
  rows = np.flatnonzero(open_rows & _covers(table, found.terms[i]))
  lower = float(found.lower[i])
  return FoundRule(found.terms[i], int(found.n[i]), int(found.k[i]), lower, q, rows)


def _whole_rule(
  group: SearchGroup, open_rows: np.ndarray, k: float, n: float, cut: float
) -> FoundRule | None:
  """What is left of the group as one slice, if it fails more often than the other groups."""
  if group.others is None:
    return None
  config = group.config
  p = rates.fisher_greater(*_whole(k, n, group.others))
  lower = float(rates.lower_bounds(k, n, confidence=config.confidence))
  if p > cut or lower < config.threshold:
    return None
  q = min(1.0, p * config.level / cut)
  return FoundRule((), int(n), int(k), lower, q, np.flatnonzero(open_rows))


def _candidates(
  table: AttemptTable, weight: np.ndarray, n_all: float, k_all: float, config: SliceConfig
) -> _Candidates:
  """Single terms and pairs that reach the bound, with the p-value of their enrichment."""
  n = table.has.T @ weight
  k = table.has.T @ (weight * table.failed)
  lower = rates.lower_bounds(k, np.maximum(n, 1), confidence=config.confidence)
  usable = np.flatnonzero((n >= config.min_n) & (n < n_all))
  picked = usable[(lower >= config.threshold)[usable] & _worth(k, n, k_all, n_all)[usable]]
  terms_ = [(table.names[i],) for i in picked]
  p = [_fisher(k[i], n[i], k_all, n_all, design=_design(table, i)) for i in picked]
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
  around = [(k[first], n[first]), (k[second], n[second]), (k_all, n_all)]
  worth = np.logical_and.reduce([_worth(k2, n2, *other) for other in around])
  picked = np.flatnonzero(usable & (lower >= config.threshold) & worth)
  p = []
  for i in picked:
    design = _design(table, first[i], second[i])
    others = [(float(k[j]), float(n[j])) for j in (first[i], second[i])] + [(k_all, n_all)]
    p.append(max(_fisher(k2[i], n2[i], *other, design=design) for other in others))
  names = [(table.names[first[i]], table.names[second[i]]) for i in picked]
  return names, n2[picked], k2[picked], p, int(usable.sum())


def _worth(
  k: np.ndarray, n: np.ndarray, k_around: np.ndarray | float, n_around: np.ndarray | float
) -> np.ndarray:
  """Whether an exact test can pass at all: the rate is a standard error above what is around it."""
  rest = np.maximum(n_around - n, 1)
  share = k_around / np.maximum(n_around, 1)
  error = np.sqrt(share * (1 - share) * (1 / np.maximum(n, 1) + 1 / rest))
  return k / np.maximum(n, 1) - (k_around - k) / rest >= error


def _design(table: AttemptTable, *terms: int) -> float:
  """The design effect that a test of terms is to allow for."""
  about_image = any(table.names[i].startswith("img:") for i in terms)
  return table.design if about_image else 1.0


def _fisher(k: float, n: float, k_around: float, n_around: float, *, design: float = 1.0) -> float:
  """Is the slice worse than what is around it, itself taken out?"""
  return rates.fisher_greater(
    int(k / design), int(n / design), int((k_around - k) / design), int((n_around - n) / design)
  )


def _covers(table: AttemptTable, names: tuple[str, ...]) -> np.ndarray:
  return np.logical_and.reduce([table.column(name) for name in names])


def _widen(
  table: AttemptTable,
  open_rows: np.ndarray,
  found: _Candidates,
  passing: Sequence[int],
  config: SliceConfig,
) -> int:
  """Index of the winner: the best bound, widened as long as the rest of the wider is alike."""
  place = table.place  # simplest first

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
      and found.k[i] >= found.k[winner]
      and alike(
        float(found.k[winner]),
        float(found.n[winner]),
        float(found.k[i] - found.k[winner]),
        float(found.n[i] - found.n[winner]),
        margin=config.margin,
      )
      and (weight * mine * _covers(table, found.terms[i])).sum() >= 0.95 * found.n[winner]
    ]
    if not wider:
      return winner
    winner = wider[0]
