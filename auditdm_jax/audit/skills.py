# SPDX-License-Identifier: Apache-2.0
"""Named skills and the assignment of questions to them.

A skill is a seed of the taxonomy: a name, one sentence, examples, and optionally a regular
expression for people who know the form of their questions. Without a pattern a question goes to
the skill with the most similar example or description (TF-IDF over words and word pairs, function
words included), or to none below the threshold. Numbers and words listed in a category stand for
their kind there: which colour a question names does not make its skill.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
import yaml

from auditdm_jax.audit.judging.plurals import singular
from auditdm_jax.audit.words import TermLexicon, TfIdf, tokens

_NUMBERS = frozenset("zero one two three four five six seven eight nine ten eleven twelve".split())


@dataclasses.dataclass(frozen=True)
class Skill:
  """One named skill."""

  name: str
  description: str
  examples: tuple[str, ...] = ()
  pattern: str | None = None


@dataclasses.dataclass(frozen=True)
class Seeds:
  """The skills, and words by category (`colour: [red, …]`) and kind (`vehicle: [bus, …]`).

  Categories are interchangeable words: they are one word to the assignment, and they name
  cross-skill modes ("colour purple"). Kinds do neither. A failure mode may be about all words of a
  category or kind.
  """

  skills: tuple[Skill, ...]
  categories: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  kinds: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  @property
  def lexicon(self) -> TermLexicon:
    """The terms of texts, with categories and kinds among them."""
    return TermLexicon({**self.kinds, **self.categories})

  def to_dict(self) -> dict[str, Any]:
    """JSON- and YAML-able form."""
    return {
      "skills": [dataclasses.asdict(s) for s in self.skills],
      "categories": {k: list(v) for k, v in self.categories.items()},
      "kinds": {k: list(v) for k, v in self.kinds.items()},
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> "Seeds":
    """Reads `{skills: […], categories: {…}, kinds: {…}}` or the bare list of skills."""
    if not isinstance(data, Mapping):
      data = {"skills": data}
    if unknown := set(data) - {"skills", "categories", "kinds"}:
      raise ValueError(f"skills file: unknown key {sorted(unknown)[0]!r}")
    skills = tuple(_skill(entry) for entry in data.get("skills") or ())
    names = [s.name for s in skills]
    if twice := {n for n in names if names.count(n) > 1}:
      raise ValueError(f"skills file: {sorted(twice)[0]!r} is named twice")
    return cls(skills, _lists(data, "categories"), _lists(data, "kinds"))

  def category(self, word: str) -> str | None:
    """The category that lists the word, if any."""
    return next((c for c, words in self.categories.items() if word in words), None)


def load_seeds(path: str | pathlib.Path) -> Seeds:
  """Reads a YAML file of skills."""
  return Seeds.from_dict(yaml.safe_load(pathlib.Path(path).read_text("utf-8")))


def load_kinds(path: str | pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Reads a YAML file `{kind: [word, …]}`."""
  data = yaml.safe_load(pathlib.Path(path).read_text("utf-8"))
  if not isinstance(data, Mapping):
    raise ValueError(f"{path}: expected kinds with their words, as in vehicle: [bus, car]")
  return _lists({"kinds": data}, "kinds")


def _lists(data: Mapping[str, Any], key: str) -> dict[str, tuple[str, ...]]:
  """The lists of words under a key."""
  for name, words in (data.get(key) or {}).items():
    if not isinstance(words, list | tuple):
      raise ValueError(f"{key}: {name!r} needs a list of words, not {words!r}")
  return {str(k): tuple(map(str, v)) for k, v in (data.get(key) or {}).items()}


def _skill(entry: Mapping[str, Any]) -> Skill:
  known = {f.name for f in dataclasses.fields(Skill)}
  if unknown := set(entry) - known:
    raise ValueError(
      f"skill {entry.get('name')!r}: unknown key {sorted(unknown)[0]!r}, valid: {sorted(known)}"
    )
  if not entry.get("name") or not entry.get("description"):
    raise ValueError(f"a skill needs a name and a description: {dict(entry)}")
  try:
    re.compile(entry.get("pattern") or "")
  except re.error as e:
    raise ValueError(f"skill {entry['name']!r}: bad pattern: {e}") from e
  return Skill(
    name=str(entry["name"]),
    description=str(entry["description"]),
    examples=tuple(map(str, entry.get("examples") or ())),
    pattern=entry.get("pattern"),
  )


_OPENING = 2  # Words that tell the kinds of questions without a named skill apart.


class Assigner:
  """Assigns questions to skills; compiled once, remembers what it has seen."""

  def __init__(self, seeds: Seeds, *, threshold: float = 0.35):
    self._threshold = threshold
    self._patterns = [
      (s.name, re.compile(s.pattern, re.IGNORECASE)) for s in seeds.skills if s.pattern
    ]
    self._owners = [s.name for s in seeds.skills for _ in (s.description, *s.examples)]
    corpus = [text for s in seeds.skills for text in (s.description, *s.examples)]
    self._kinds = {singular(w): c for c, words in seeds.categories.items() for w in words}
    masked = [self._mask(text) for text in corpus]
    self._tfidf = TfIdf(masked)
    self._rows = self._tfidf.rows(masked).T.tocsc()
    self._known: dict[str, tuple[str | None, float]] = {}

  def __call__(self, texts: Sequence[str]) -> list[tuple[str | None, float]]:
    """(skill or None, score in [0, 1]) of each text; a matching pattern scores 1."""
    fresh = [t for t in dict.fromkeys(texts) if t not in self._known]
    left = []
    for text in fresh:
      name = next((n for n, p in self._patterns if p.search(text.strip())), None)
      if name is None:
        left.append(text)
      else:
        self._known[text] = name, 1.0
    for start in range(0, len(left), 1024):
      self._compare(left[start : start + 1024])
    return [self._known[t] for t in texts]

  def _compare(self, texts: Sequence[str]) -> None:
    if not self._owners:
      self._known |= dict.fromkeys(texts, (None, 0.0))
      return
    scores = (self._tfidf.rows([self._mask(t) for t in texts]) @ self._rows).toarray()
    best = np.argmax(scores, axis=1)
    for text, i, score in zip(texts, best, scores[np.arange(len(texts)), best]):
      name = self._owners[i] if score >= self._threshold else None
      self._known[text] = name, float(score)

  def _mask(self, text: str) -> str:
    words = [singular(t) for t in tokens(text)]
    numbers = ["number" if w in _NUMBERS or w.isdigit() else w for w in words]
    return " ".join(self._kinds.get(w, n) for w, n in zip(words, numbers))


class Kinds:
  """The kind of a question: its named skill, without one its first words ("what color")."""

  def __init__(self, seeds: Seeds):
    self._assign = Assigner(seeds)

  def __call__(self, question: str) -> str:
    skill = self._assign([question])[0][0]
    return skill or " ".join(question.lower().split()[:_OPENING])
