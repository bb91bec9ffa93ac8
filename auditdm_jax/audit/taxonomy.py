# SPDX-License-Identifier: Apache-2.0
"""Failure modes from attempted probes.

  1. Assign every attempted question to a named skill (skills.py).
  2. In each skill, find the terms whose failure rate is enriched (slices.py).
  3. Merge rules that share a term over three or more skills into one cross-skill mode; look for
     more such terms among what is left of all skills.
  4. Cluster the failures that no rule covers; keep a cluster only if its terms, used as a rule,
     pass the same bound on attempted probes.

The result is a `Taxonomy`: a frozen predicate that sorts fresh probes into modes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools

import numpy as np

from auditdm_jax.audit import rates, residual
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.probe import Record
from auditdm_jax.audit.skills import Assigner, Seeds
from auditdm_jax.audit.slices import (
  AttemptTable,
  FoundRule,
  SliceConfig,
  decision_list,
  make_table,
  term_set,
)
from auditdm_jax.core.jsonio import canonical_hash


@dataclasses.dataclass(frozen=True)
class TaxonomyConfig(SliceConfig):
  """When a slice is a mode, and how skills and clusters are formed.

  Attributes:
    assign_threshold: least similarity of a question to its skill.
    cross_skills: skills that must share a term before it is a mode of its own.
    max_residual: failures that are clustered (an even sample above that).
    cluster_distance: cosine distance at which average linkage stops.
  """

  assign_threshold: float = 0.35
  cross_skills: int = 3
  max_residual: int = 1500
  cluster_distance: float = 0.7


@dataclasses.dataclass(frozen=True)
class _Judged:
  """An attempt with a consensus: one without says nothing about the target."""

  question: str
  consensus: str
  failed: bool


def _judged(attempts: Iterable[Attempt]) -> list[_Judged]:
  return [
    _Judged(a.probe.question, a.consensus, a.find is not None)
    for a in attempts
    if a.consensus is not None
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModeRule(Record):
  """Matches attempts of `skill` ("" = any) that have at least `least` of `terms` (0 = all)."""

  skill: str
  terms: tuple[str, ...]
  least: int = 0
  rank: int = 0

  def matches(self, skill: str | None, have: frozenset[str]) -> bool:
    """Whether an attempt with these terms falls under the rule."""
    if self.skill and self.skill != skill:
      return False
    return sum(t in have for t in self.terms) >= (self.least or len(self.terms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode(Record):
  """A failure mode: its rules, and its counts on the attempts it was discovered on.

  The counts are biased upwards, since the mode was chosen for them: rates to be reported come
  from fresh probes.
  """

  mode_id: str
  name: str
  kind: str  # skill | term | cross | residual
  skills: tuple[str, ...]
  terms: tuple[str, ...]
  definition: str
  rules: tuple[ModeRule, ...]
  n: int
  k: int
  lower: float
  q_value: float
  examples: tuple[str, ...] = ()

  @property
  def words(self) -> frozenset[str]:
    """Its terms without their roles."""
    return frozenset(t.split(":", 1)[1] for t in self.terms)


@dataclasses.dataclass(frozen=True)
class Taxonomy:
  """Skills and modes, applied as one decision list: a probe belongs to the first rule it meets."""

  seeds: Seeds
  modes: tuple[Mode, ...]
  config: TaxonomyConfig = TaxonomyConfig()

  @functools.cached_property
  def _assigner(self) -> Assigner:
    return Assigner(self.seeds, threshold=self.config.assign_threshold)

  @functools.cached_property
  def _rules(self) -> list[tuple[ModeRule, Mode]]:
    listed = [(rule, mode) for mode in self.modes for rule in mode.rules]
    return sorted(listed, key=lambda pair: pair[0].rank)

  def match(self, questions: Sequence[str], consensus: Sequence[str | None]) -> list[Mode | None]:
    """The mode of each probe, or None."""
    skills = [s for s, _ in self._assigner(questions)]
    by_skill: dict[str | None, list[tuple[ModeRule, Mode]]] = {
      s: [(r, m) for r, m in self._rules if r.skill in ("", s)] for s in set(skills)
    }
    found = []
    for question, answer, skill in zip(questions, consensus, skills, strict=True):
      have = term_set(question, answer)
      rules = by_skill[skill]
      found.append(next((m for r, m in rules if r.matches(skill, have)), None))
    return found

  def fresh_rates(self, attempts: Iterable[Attempt]) -> dict[str, rates.Rate]:
    """Returns the failure rate of every mode, by id, on probes it was not discovered on."""
    judged = _judged(attempts)
    matched = self.match([a.question for a in judged], [a.consensus for a in judged])
    n = Counter(m.mode_id for m in matched if m)
    k = Counter(m.mode_id for m, a in zip(matched, judged) if m and a.failed)
    return {m.mode_id: rates.rate(k[m.mode_id], n[m.mode_id]) for m in self.modes}

  @functools.cached_property
  def families(self) -> dict[str, str]:
    """Mode id -> family: modes that share a word are one weakness, seen in several skills.

    The word with the most failures takes all modes that have it, then the next one among those that
    are left. A mode that shares no word is a family of its own.
    """
    left = {m.mode_id: m for m in self.modes}
    found: dict[str, str] = {}
    while left:
      failures: Counter[str] = Counter()
      shared: Counter[str] = Counter()
      for mode in left.values():
        failures.update(dict.fromkeys(mode.words, mode.k))
        shared.update(mode.words)
      words = [w for w in failures if shared[w] > 1]
      if not words:
        break
      word = max(words, key=lambda w: (failures[w], w))
      found |= {i: word for i, mode in left.items() if word in mode.words}
      left = {i: mode for i, mode in left.items() if i not in found}
    return found | {i: mode.name for i, mode in left.items()}


@dataclasses.dataclass(frozen=True)
class _Slice:
  """A rule found in a skill ("" = over all), with the rows of the whole table it covers."""

  skill: str
  found: FoundRule
  rows: np.ndarray
  later: bool  # the whole skill, after other rules took their part

  @property
  def words(self) -> str:
    """Its terms without their roles; empty for a whole skill."""
    return _words(self.found.terms)


def discover_modes(
  attempts: Iterable[Attempt], seeds: Seeds, *, config: TaxonomyConfig = TaxonomyConfig()
) -> Taxonomy:
  """Failure modes of attempted probes, most failures first.

  Args:
    attempts: every attempted probe, not only failures; each question about an image once.
    seeds: the named skills.
    config: thresholds.
  """
  judged = _judged(attempts)
  if not judged:
    return Taxonomy(seeds, (), config)
  assigner = Assigner(seeds, threshold=config.assign_threshold)
  skills = np.array([s or "" for s, _ in assigner([a.question for a in judged])])
  table = make_table(
    [a.question for a in judged], [a.consensus for a in judged], [a.failed for a in judged]
  )
  return Taxonomy(seeds, _modes(judged, skills, table, seeds, config), config)


def _modes(
  judged: Sequence[_Judged],
  skills: np.ndarray,
  table: AttemptTable,
  seeds: Seeds,
  config: TaxonomyConfig,
) -> tuple[Mode, ...]:
  slices = _within_skills(skills, table, config)
  open_rows = np.ones(len(judged), bool)
  for piece in slices:
    open_rows[piece.rows] = False
  slices += _across_skills(skills, table, open_rows, _shared_words(slices, config), config)
  groups: dict[str, list[_Slice]] = defaultdict(list)
  shared = _shared_words(slices, config)
  for i, piece in enumerate(slices):
    groups[piece.words if piece.words in shared else f"slice {i}"].append(piece)
  rank = {id(piece): i for i, piece in enumerate(slices)}
  modes = [_mode(group, rank, judged, table, seeds) for group in groups.values()]
  left = np.flatnonzero(open_rows)
  clusters = residual.clusters(
    [judged[int(i)].question for i in left],
    table.take(left),
    config=config,
    max_failures=config.max_residual,
    distance=config.cluster_distance,
  )
  for i, (words, rows, q_value) in enumerate(clusters):
    modes.append(_residual_mode(words, left[rows], q_value, len(slices) + i, judged, table))
  return tuple(sorted(modes, key=lambda m: (-m.k, m.mode_id)))


def _within_skills(skills: np.ndarray, table: AttemptTable, config: TaxonomyConfig) -> list[_Slice]:
  failed, total = (table.weight * table.failed).sum(), table.weight.sum()
  slices, names = [], np.unique(skills)
  for skill in names:
    rows = np.flatnonzero(skills == skill)
    group = table.take(rows)
    k, n = (group.weight * group.failed).sum(), group.weight.sum()
    rules = decision_list(
      group,
      outside=(failed - k, total - n),
      whole_tests=len(names) if skill else 0,
      config=config,
    )
    for i, found in enumerate(rules):
      slices.append(_Slice(str(skill), found, rows[found.rows], i > 0 and not found.terms))
  return slices


def _across_skills(
  skills: np.ndarray,
  table: AttemptTable,
  open_rows: np.ndarray,
  shared: frozenset[str],
  config: TaxonomyConfig,
) -> list[_Slice]:
  """Terms too thin in any one skill, new ones or those that are `shared` already.

  Updates `open_rows`.
  """
  rows = np.flatnonzero(open_rows)
  if not len(rows):
    return []
  group = table.take(rows)

  def in_several_skills(found: FoundRule) -> bool:
    failing = found.rows[group.failed[found.rows] > 0]
    several = len(np.unique(skills[rows[failing]])) >= config.cross_skills
    return several or _words(found.terms) in shared

  rules = decision_list(group, config=config, accept=in_several_skills)
  for found in rules:
    open_rows[rows[found.rows]] = False
  return [_Slice("", found, rows[found.rows], False) for found in rules]


def _words(terms: Sequence[str]) -> str:
  """`q:row one`, `a:red` → `red + row one`."""
  return " + ".join(sorted({t.split(":", 1)[1] for t in terms}))


def _shared_words(slices: Sequence[_Slice], config: TaxonomyConfig) -> frozenset[str]:
  """Words that are a rule in several skills, or over all of them."""
  skills: dict[str, set[str]] = defaultdict(set)
  for piece in slices:
    if piece.words:
      skills[piece.words].add(piece.skill)
  return frozenset(w for w, s in skills.items() if "" in s or len(s) >= config.cross_skills)


def _mode(
  group: Sequence[_Slice],
  rank: Mapping[int, int],
  judged: Sequence[_Judged],
  table: AttemptTable,
  seeds: Seeds,
) -> Mode:
  rules = tuple(ModeRule(skill=p.skill, terms=p.found.terms, rank=rank[id(p)]) for p in group)
  skills = tuple(sorted({p.skill for p in group if p.skill}))
  first = group[0]
  cross = len(group) > 1 or not first.skill
  if cross:
    category = seeds.category(first.words)
    name = f"{category} {first.words}" if category else f"{first.words} (across skills)"
  elif first.found.terms:
    name = f"{first.skill or 'other'}: {' + '.join(_short(t) for t in first.found.terms)}"
  else:
    name = f"{first.skill}: other" if first.later else first.skill
  kind = "cross" if cross else "term" if first.found.terms else "skill"
  rows = np.concatenate([p.rows for p in group])
  return _finish(
    name, kind, skills, rules, rows, max(p.found.q_value for p in group), judged, table
  )


def _residual_mode(
  words: tuple[str, ...],
  rows: np.ndarray,
  q_value: float,
  rank: int,
  judged: Sequence[_Judged],
  table: AttemptTable,
) -> Mode:
  rule = ModeRule(skill="", terms=words, least=residual.least(words), rank=rank)
  name = "other: " + ", ".join(_short(w) for w in words[:3])
  return _finish(name, "residual", (), (rule,), rows, q_value, judged, table)


def _finish(
  name: str,
  kind: str,
  skills: tuple[str, ...],
  rules: tuple[ModeRule, ...],
  rows: np.ndarray,
  q_value: float,
  judged: Sequence[_Judged],
  table: AttemptTable,
) -> Mode:
  failing = rows[table.failed[rows] > 0]
  n, k = int(table.weight[rows].sum()), int(table.weight[failing].sum())
  identity = sorted([r.skill, *r.terms, str(r.least)] for r in rules)
  return Mode(
    mode_id="m-" + canonical_hash([name, identity])[:10],
    name=name,
    kind=kind,
    skills=skills,
    terms=tuple(sorted({t for r in rules for t in r.terms})),
    definition=" Or: ".join(dict.fromkeys(_define(r, rules) for r in rules)),
    rules=rules,
    n=n,
    k=k,
    lower=float(rates.lower_bounds(k, n)),
    q_value=q_value,
    examples=tuple(dict.fromkeys(judged[i].question for i in failing))[:5],
  )


def _short(term: str) -> str:
  role, word = term.split(":", 1)
  return f"answer={word}" if role == "a" else word


def _define(rule: ModeRule, siblings: Sequence[ModeRule]) -> str:
  """The rule in words; rules that differ only in the skill are told together."""
  skills = sorted({r.skill for r in siblings if r.terms == rule.terms and r.skill})
  where = "skill " + ", ".join(skills) if skills else "any skill"
  if not rule.terms:
    return f"questions of {where} that no earlier mode covers"
  phrase = {"q": "the question says “{}”", "a": "the answer is “{}”", "any": "“{}” is in it"}
  parts = [phrase[t.split(":", 1)[0]].format(t.split(":", 1)[1]) for t in rule.terms]
  joined = " and ".join(parts)
  if rule.least:
    return f"{where}, at least {rule.least} of: " + "; ".join(parts)
  return f"{where}, {joined}"
