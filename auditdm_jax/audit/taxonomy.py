# SPDX-License-Identifier: Apache-2.0
"""Failure modes from attempted probes.

  1. Assign every attempted question to a named skill (skills.py).
  2. In each skill, find the terms whose failure rate is enriched (slices.py). Terms are words of
     question and consensus, kinds of things, numbers, and what the image looks like (looks.py).
  3. Merge rules that share a term over three or more skills into one cross-skill mode; look for
     more such terms among what is left of all skills.
  4. Merge siblings whose failure rates are shown to differ by less than a margin.
  5. Cluster the failures that no rule covers; keep a cluster only if its terms, used as a rule,
     pass the same bound on attempted probes.

The result is a `Taxonomy`: a frozen predicate that sorts fresh probes into modes. Whether a mode
holds is decided on these (confirm.py).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
import dataclasses
import functools

import numpy as np

from auditdm_jax.audit import by_image, rates, residual
from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.audit.looks import Gallery, Looks
from auditdm_jax.audit.mode import Mode, ModeRule, define, mode_id, title, words
from auditdm_jax.audit.skills import Assigner, Seeds
from auditdm_jax.audit.slices import (
  NOWHERE,
  AttemptTable,
  FoundRule,
  SearchGroup,
  SliceConfig,
  alike,
  cut,
  decision_list,
  make_table,
  term_set,
)
from auditdm_jax.audit.words import TermLexicon, number_terms


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
class Taxonomy:
  """Skills and modes, applied as one decision list: a probe belongs to the first rule it meets.

  Attributes:
    looks: what terms about images mean; None if no mode is about images.
  """

  seeds: Seeds
  modes: tuple[Mode, ...]
  config: TaxonomyConfig = TaxonomyConfig()
  looks: Looks | None = None

  @functools.cached_property
  def _assigner(self) -> Assigner:
    return Assigner(self.seeds, threshold=self.config.assign_threshold)

  @functools.cached_property
  def _lexicon(self) -> TermLexicon:
    return self.seeds.lexicon

  @functools.cached_property
  def rules(self) -> list[tuple[ModeRule, Mode]]:
    """The decision list."""
    listed = [(rule, mode) for mode in self.modes for rule in mode.rules]
    return sorted(listed, key=lambda pair: pair[0].rank)

  def match(
    self,
    questions: Sequence[str],
    consensus: Sequence[str | None],
    images: Sequence[frozenset[str]] = (),
  ) -> list[Mode | None]:
    """The mode of each probe, or None.

    Args:
      questions: of the probes.
      consensus: of the references.
      images: terms of their images (`Gallery.terms`); without them no mode about images matches.
    """
    found = []
    for skill, have, rules in self._read(questions, consensus, images):
      found.append(next((m for r, m in rules if r.matches(skill, have)), None))
    return found

  def match_attempts(
    self, attempts: Iterable[Attempt | Find], gallery: Gallery | None = None
  ) -> list[Mode | None]:
    """The mode of each attempt or find, whose image the gallery looks at."""
    images = gallery.terms(self.looks, [a.probe for a in attempts]) if gallery else ()
    return self.match([a.probe.question for a in attempts], [a.consensus for a in attempts], images)

  def possible(
    self, questions: Sequence[str], images: Sequence[frozenset[str]] = ()
  ) -> list[frozenset[str]]:
    """Ids of the modes that each question may fall under, whatever the answer."""
    rows = self._read(questions, [None] * len(questions), images)
    return [
      frozenset(m.mode_id for r, m in rules if r.possible(skill, have))
      for skill, have, rules in rows
    ]

  def _read(self, questions, consensus, images):
    """(skill, terms, rules that its skill allows) of each probe."""
    skills = [s for s, _ in self._assigner(questions)]
    by_skill: dict[str | None, list[tuple[ModeRule, Mode]]] = {
      s: [(r, m) for r, m in self.rules if r.skill in ("", s)] for s in set(skills)
    }
    looks = images or [NOWHERE] * len(questions)
    rows = zip(questions, consensus, skills, looks, strict=True)
    return (
      (skill, term_set(question, answer, self._lexicon, look), by_skill[skill])
      for question, answer, skill, look in rows
    )

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
      several = [w for w in failures if shared[w] > 1]
      if not several:
        break
      word = max(several, key=lambda w: (failures[w], w))
      found |= {i: word for i, mode in left.items() if word in mode.words}
      left = {i: mode for i, mode in left.items() if i not in found}
    return found | {i: mode.name for i, mode in left.items()}


# -------------------------------------------------------------------------------------- evidence


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Attempts with a consensus: one without says nothing about the target.

  Attributes:
    questions: N texts.
    images: i64[N], which image each goes back to.
    skills: str[N], "" for none.
    table: their terms and outcomes.
  """

  seeds: Seeds
  config: TaxonomyConfig
  looks: Looks | None
  questions: tuple[str, ...]
  images: np.ndarray
  skills: np.ndarray
  table: AttemptTable

  @functools.cached_property
  def lexicon(self) -> TermLexicon:
    """The terms of texts."""
    return self.seeds.lexicon


def gather(
  attempts: Iterable[Attempt],
  seeds: Seeds,
  *,
  config: TaxonomyConfig = TaxonomyConfig(),
  gallery: Gallery | None = None,
) -> Evidence:
  """Reads attempts into a table.

  Args:
    attempts: every attempted probe, not only failures; each question about an image once.
    seeds: the named skills.
    config: thresholds.
    gallery: looks at the images; None: modes are about questions and answers alone.
  """
  judged = [(a.probe, a.consensus, a.find is not None) for a in attempts if a.consensus is not None]
  probes = [probe for probe, _, _ in judged]
  questions = [p.question for p in probes]
  looks = gallery.fit(probes) if gallery else None
  assigner = Assigner(seeds, threshold=config.assign_threshold)
  return Evidence(
    seeds,
    config,
    looks,
    tuple(questions),
    np.unique([p.origin_id for p in probes], return_inverse=True)[1],
    np.array([s or "" for s, _ in assigner(questions)]),
    make_table(
      questions,
      [consensus for _, consensus, _ in judged],
      [failed for _, _, failed in judged],
      lexicon=seeds.lexicon,
      images=gallery.terms(looks, probes) if gallery else (),
    ),
  )


def discover_modes(
  attempts: Iterable[Attempt],
  seeds: Seeds,
  *,
  config: TaxonomyConfig = TaxonomyConfig(),
  gallery: Gallery | None = None,
) -> Taxonomy:
  """Failure modes of attempted probes, most failures first; see `gather`."""
  return name_modes(gather(attempts, seeds, config=config, gallery=gallery))


def name_modes(evidence: Evidence) -> Taxonomy:
  """Failure modes of evidence, most failures first."""
  modes: tuple[Mode, ...] = ()
  if evidence.questions:
    design = by_image.design_effect(*by_image.sums(evidence.table.failed, evidence.images.tolist()))
    table = dataclasses.replace(evidence.table, design=design)
    modes = _modes(dataclasses.replace(evidence, table=table))
  about_images = any(t.startswith("img:") for m in modes for t in m.terms)
  looks = evidence.looks if about_images else None
  return Taxonomy(evidence.seeds, modes, evidence.config, looks)


def members(taxonomy: Taxonomy, evidence: Evidence) -> np.ndarray:
  """i64[N]: the place in `taxonomy.modes` of each attempt's mode, -1 for none; as `match`."""
  place = {m.mode_id: i for i, m in enumerate(taxonomy.modes)}
  found = np.full(len(evidence.questions), -1)
  for rule, mode in taxonomy.rules:
    have = np.zeros(len(found), np.int64)
    for term in rule.terms:
      have += evidence.table.column(term)
    rows = (found < 0) & (have >= (rule.least or len(rule.terms)))
    if rule.skill:
      rows &= evidence.skills == rule.skill
    found[rows] = place[mode.mode_id]
  return found


# ------------------------------------------------------------------------------------- discovery


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
    return words(self.found.terms)


def _modes(evidence: Evidence) -> tuple[Mode, ...]:
  table, config = evidence.table, evidence.config
  slices = _within_skills(evidence)
  open_rows = np.ones(len(evidence.questions), bool)
  for piece in slices:
    open_rows[piece.rows] = False
  slices += _across_skills(evidence, open_rows, _shared_words(slices, config))
  groups: dict[str, list[_Slice]] = defaultdict(list)
  shared = _shared_words(slices, config)
  for i, piece in enumerate(slices):
    groups[piece.words if piece.words in shared else f"slice {i}"].append(piece)
  rank = {id(piece): i for i, piece in enumerate(slices)}
  modes = [_mode(group, rank, evidence) for group in _merge(list(groups.values()), evidence)]
  left = np.flatnonzero(open_rows)
  clusters = residual.clusters(
    [evidence.questions[int(i)] for i in left],
    table.take(left),
    config=config,
    max_failures=config.max_residual,
    distance=config.cluster_distance,
  )
  for i, (terms, rows, q_value) in enumerate(clusters):
    least = residual.least(terms)
    rule = ModeRule(skill="", terms=terms, least=least, rank=len(slices) + i)
    name = title([rule], seeds=evidence.seeds)
    modes.append(_finish(name, "residual", (rule,), left[rows], q_value, evidence))
  return tuple(sorted(modes, key=lambda m: (-m.k, m.mode_id)))


def _within_skills(evidence: Evidence) -> list[_Slice]:
  table, config = evidence.table, evidence.config
  failed, total = (table.weight * table.failed).sum(), table.weight.sum()
  groups = []
  for skill in np.unique(evidence.skills):
    rows = np.flatnonzero(evidence.skills == skill)
    own = table.take(rows)
    others = failed - (own.weight * own.failed).sum(), total - own.weight.sum()
    group = SearchGroup(own, others=others if skill else None, config=config)
    groups.append((str(skill), rows, group))
  limit = cut([g for *_, g in groups], level=config.level)
  return [
    _Slice(skill, found, rows[found.rows], i > 0 and not found.terms)
    for skill, rows, group in groups
    for i, found in enumerate(decision_list(group, cut=limit))
  ]


def _across_skills(
  evidence: Evidence, open_rows: np.ndarray, shared: frozenset[str]
) -> list[_Slice]:
  """Terms too thin in any one skill, new ones or those that are `shared` already.

  Updates `open_rows`.
  """
  rows, config = np.flatnonzero(open_rows), evidence.config
  if not len(rows):
    return []
  own, skills = evidence.table.take(rows), evidence.skills[rows]

  def in_several_skills(found: FoundRule) -> bool:
    failing = found.rows[own.failed[found.rows] > 0]
    several = len(np.unique(skills[failing])) >= config.cross_skills
    return several or words(found.terms) in shared

  group = SearchGroup(own, config=config)
  limit = cut([group], level=config.level)
  rules = decision_list(group, cut=limit, accept=in_several_skills)
  for found in rules:
    open_rows[rows[found.rows]] = False
  return [_Slice("", found, rows[found.rows], False) for found in rules]


def _shared_words(slices: Sequence[_Slice], config: TaxonomyConfig) -> frozenset[str]:
  """Words that are a rule in several skills, or over all of them."""
  skills: dict[str, set[str]] = defaultdict(set)
  for piece in slices:
    if piece.words:
      skills[piece.words].add(piece.skill)
  return frozenset(w for w, s in skills.items() if "" in s or len(s) >= config.cross_skills)


# --------------------------------------------------------------------------------------- merging


def _merge(groups: list[list[_Slice]], evidence: Evidence) -> list[list[_Slice]]:
  """Merges siblings whose failure rates are shown to differ by less than the margin, both ways."""
  done: list[tuple[list[_Slice], float, float]] = []
  for group, k, n in sorted(((g, *_count(g, evidence.table)) for g in groups), key=lambda x: -x[1]):
    for i, (other, other_k, other_n) in enumerate(done):
      margin = evidence.config.margin
      if (
        any(_siblings(a, b, evidence.lexicon) for a in group for b in other)
        and alike(k, n, other_k, other_n, margin=margin)
        and alike(other_k, other_n, k, n, margin=margin)
      ):
        done[i] = other + group, other_k + k, other_n + n
        break
    else:
      done.append((group, k, n))
  return [group for group, *_ in done]


def _count(group: Sequence[_Slice], table: AttemptTable) -> tuple[float, float]:
  rows = np.concatenate([p.rows for p in group])
  return float((table.weight * table.failed)[rows].sum()), float(table.weight[rows].sum())


def _siblings(a: _Slice, b: _Slice, lexicon: TermLexicon) -> bool:
  """One says what the other says and more, or they tell apart words of one kind in one skill."""
  mine, other = set(a.found.terms), set(b.found.terms)
  if not mine or not other:
    return a.skill == b.skill
  words_a, words_b = ({t.split(":", 1)[1] for t in terms} for terms in (mine, other))
  if words_a <= words_b or words_b <= words_a:
    return True
  only = sorted(mine - other), sorted(other - mine)
  if a.skill != b.skill or not a.skill or len(only[0]) != 1 or len(only[1]) != 1:
    return False
  (role, word), (other_role, other_word) = (x[0].split(":", 1) for x in only)
  return role == other_role and bool(_kinds(word, lexicon) & _kinds(other_word, lexicon))


def _kinds(word: str, lexicon: TermLexicon) -> frozenset[str]:
  """What a word is one of: numbers, categories, measures of an image."""
  own = lexicon.kinds(word) | ({word} if word.startswith("[") else set())
  if word.startswith("number ") or number_terms(word):
    return own | {"number"}
  return own | ({word.split(" ")[0]} if " < " in word or " > " in word else set())


# ---------------------------------------------------------------------------------------- naming


def _mode(group: Sequence[_Slice], rank: dict[int, int], evidence: Evidence) -> Mode:
  rules = tuple(ModeRule(skill=p.skill, terms=p.found.terms, rank=rank[id(p)]) for p in group)
  skills = {p.skill for p in group}
  cross = len(skills) > 1 or "" in skills
  name = title(rules, seeds=evidence.seeds, later=group[0].later)
  kind = "cross" if cross else "term" if any(r.terms for r in rules) else "skill"
  rows = np.concatenate([p.rows for p in group])
  return _finish(name, kind, rules, rows, max(p.found.q_value for p in group), evidence)


def _finish(
  name: str,
  kind: str,
  rules: tuple[ModeRule, ...],
  rows: np.ndarray,
  q_value: float,
  evidence: Evidence,
) -> Mode:
  table = evidence.table
  failing = rows[table.failed[rows] > 0]
  n, k = int(table.weight[rows].sum()), int(table.weight[failing].sum())
  return Mode(
    mode_id=mode_id(name, rules),
    name=name,
    kind=kind,
    skills=tuple(sorted({r.skill for r in rules if r.skill})),
    terms=tuple(sorted({t for r in rules for t in r.terms})),
    definition=define(rules),
    rules=rules,
    n=n,
    k=k,
    lower=float(rates.lower_bounds(k, n)),
    q_value=q_value,
    examples=tuple(dict.fromkeys(evidence.questions[i] for i in failing))[:5],
  )
