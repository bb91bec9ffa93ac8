# SPDX-License-Identifier: Apache-2.0
"""What a repair is trained on, as data: the paper's two strategies are shares of one mix.

  strategy 1   augmented labelled data: the target's own labelled set, and the audit's probes around
               its weaknesses                        dict(labelled=0.5, probes=0.5)
  strategy 2   bootstrapped: an unlabelled pool, several auditors, consensus labels that pass a
               filter                                dict(bootstrapped=1.0, probes=0.0)
  the default  the audit's verified failures         dict(probes=1.0)

Shares are of `rectify.curate.size`. The paper gives none; these are ours.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
import dataclasses
from typing import Literal

from auditdm_jax.audit.attempt import GRADES, Failure
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.verdict import ConsensusRule, unsure_of
from auditdm_jax.core.config import UserError, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
  """Which consensus may become a label.

  Attributes:
    grade: the least one, V1, V2 or V3. What an oracle says makes no V2 here.
    stable: least share of stability trials (asked again, in other words, on changed images) in
      which the same conflict came back; `verify.stable_share` is asked for anyway.
    margin: by how much of the references' weight the consensus is ahead of the next answer, 0 to 1.
  """

  grade: Literal["V1", "V2", "V3"] = "V1"
  stable: float = 0.0
  margin: float = 0.0

  def __post_init__(self):
    if self.grade not in GRADES[1:]:
      raise UserError(
        f"config.rectify.strategy.confidence.grade: {self.grade!r} is not {', '.join(GRADES[1:])}"
      )
    check(vars(self), "rectify.strategy.confidence", "stable", "margin", least=0, most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrategyConfig:
  """Shares of what a repair is trained on; they add up to 1.

  Attributes:
    probes: verified failures of the audit.
    labelled: questions of `rectify.labelled`, with their own labels.
    bootstrapped: failures that several auditors find on `rectify.unlabelled`.
    confidence: which consensus may be a label, of failures from either source.
  """

  probes: float = 1.0
  labelled: float = 0.0
  bootstrapped: float = 0.0
  confidence: ConfidenceConfig = ConfidenceConfig()

  def __post_init__(self):
    shares = {name: vars(self)[name] for name in ("probes", "labelled", "bootstrapped")}
    check(shares, "rectify.strategy", *shares, least=0, most=1)
    if abs(sum(shares.values()) - 1) > 1e-6:
      said = ", ".join(f"{name}={share:g}" for name, share in shares.items())
      raise UserError(f"config.rectify.strategy: {said} do not add up to 1")


def margin(failure: Failure, judge: Judge, rule: ConsensusRule) -> float:
  """Returns by how much of all weight the consensus is ahead of the next answer of references."""
  verdict, question = failure.verdict, failure.probe.question
  unsure = unsure_of(verdict.kinds)
  groups: list[tuple[str, float]] = []
  for name in verdict.references:
    answer, weight = verdict.answers[name], rule.weight(name)
    if not answer or name in unsure:
      continue
    for i, (other, total) in enumerate(groups):
      if judge.same(answer, other, question=question):
        groups[i] = other, total + weight
        break
    else:
      groups.append((answer, weight))
  whole = sum(rule.weight(name) for name in verdict.references)
  behind = sum(w for a, w in groups if judge.same(a, failure.consensus, question=question))
  rest = [w for a, w in groups if not judge.same(a, failure.consensus, question=question)]
  return (behind - max(rest, default=0.0)) / whole


def grade_without_oracle(failure: Failure) -> str:
  """Returns the grade as it would be without an oracle, which has no say in labels."""
  by_oracle = failure.opinion is not None and failure.opinion.by == "oracle"
  return "V1" if failure.grade == "V2" and by_oracle else failure.grade


def confident(
  failures: Iterable[Failure], config: ConfidenceConfig, judge: Judge, rule: ConsensusRule
) -> tuple[list[Failure], Mapping[str, int]]:
  """Returns the failures whose consensus may be a label, and why how many others may not.

  Args:
    failures: graded ones.
    config: what is asked for.
    judge: decides sameness.
    rule: weighs the references.
  """
  kept: list[Failure] = []
  left_out: Counter[str] = Counter()
  for failure in failures:
    trials = failure.stability
    if GRADES.index(grade_without_oracle(failure)) < GRADES.index(config.grade):
      left_out[f"below {config.grade}"] += 1
    elif config.stable and (trials is None or trials.share < config.stable):
      left_out["unstable"] += 1
    elif config.margin and margin(failure, judge, rule) < config.margin:
      left_out["margin"] += 1
    else:
      kept.append(failure)
  return kept, dict(left_out)
