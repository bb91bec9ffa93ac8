# SPDX-License-Identifier: Apache-2.0
"""A failure mode: rules over the terms of a probe, with a name and a definition in words."""

from collections.abc import Sequence
import dataclasses

from auditdm_jax.audit import looks
from auditdm_jax.audit.probe import Record
from auditdm_jax.audit.skills import Seeds
from auditdm_jax.core.jsonio import canonical_hash

_PHRASES = {"q": "the question says “{}”", "a": "the answer is “{}”", "any": "“{}” is in it"}


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

  def possible(self, skill: str | None, have: frozenset[str]) -> bool:
    """The same before there is an answer: whatever the rule says of answers may still hold."""
    if self.skill and self.skill != skill:
      return False
    open_ = sum(t.startswith(("a:", "any:")) and t not in have for t in self.terms)
    return sum(t in have for t in self.terms) + open_ >= (self.least or len(self.terms))


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


def mode_id(name: str, rules: Sequence[ModeRule]) -> str:
  """The id of a name and rules, whatever the counts."""
  identity = sorted([r.skill, *r.terms, str(r.least)] for r in rules)
  return "m-" + canonical_hash([name, identity])[:10]


def words(terms: Sequence[str]) -> str:
  """`q:row one`, `a:red` → `red + row one`."""
  return " + ".join(sorted({t.split(":", 1)[1] for t in terms}))


def title(rules: Sequence[ModeRule], *, seeds: Seeds, later: bool = False) -> str:
  """The name of a mode.

  Args:
    rules: its rules, the first found first.
    seeds: name the words of one category.
    later: it is a whole skill of which other modes took their part.
  """
  skills = sorted({r.skill for r in rules if r.skill})
  parts = list(dict.fromkeys(words(r.terms) for r in rules))
  if len(skills) == 1 and all(r.skill for r in rules):
    if not all(parts):
      return f"{skills[0]}: other" if later else skills[0]
    shown = list(dict.fromkeys(" + ".join(short(t) for t in r.terms) for r in rules))
    return f"{skills[0]}: {_several(shown)}"
  if not skills and len(rules) == 1 and rules[0].least:
    return "other: " + ", ".join(short(t) for t in rules[0].terms[:3])
  category = seeds.category(parts[0]) if len(parts) == 1 else None
  if category:
    return f"{category} {parts[0]}"
  return f"{_several([plain(p) for p in parts if p])} (across skills)"


def _several(names: Sequence[str]) -> str:
  """Names that are one mode's; long lists are cut short."""
  more = f" and {len(names) - 4} more" if len(names) > 4 else ""
  return " / ".join(names[:4]) + more


def short(term: str) -> str:
  """A term as it stands in a name."""
  role, word = term.split(":", 1)
  return f"answer={plain(word)}" if role == "a" else plain(word)


def plain(word: str) -> str:
  """`[vehicle] + red` → `any vehicle + red`."""
  parts = word.split(" + ")
  return " + ".join(f"any {p[1:-1]}" if p.startswith("[") else p for p in parts)


def define(rules: Sequence[ModeRule]) -> str:
  """The rules in words; those that differ only in the skill are told together."""
  return " Or: ".join(dict.fromkeys(_define(r, rules) for r in rules))


def _define(rule: ModeRule, siblings: Sequence[ModeRule]) -> str:
  skills = sorted({r.skill for r in siblings if r.terms == rule.terms and r.skill})
  where = "skill " + ", ".join(skills) if skills else "any skill"
  if not rule.terms:
    return f"questions of {where} that no earlier mode covers"
  parts = [_phrase(*t.split(":", 1)) for t in rule.terms]
  if rule.least:
    return f"{where}, at least {rule.least} of: " + "; ".join(parts)
  return f"{where}, {' and '.join(parts)}"


def _phrase(role: str, word: str) -> str:
  return looks.describe(word) if role == "img" else _PHRASES[role].format(plain(word))
