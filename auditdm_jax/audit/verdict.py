# SPDX-License-Identifier: Apache-2.0
"""From answers to a verdict: the references' consensus, and whether the target conflicts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Final

from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Verdict


@dataclasses.dataclass(frozen=True)
class ConsensusRule:
  """What makes a consensus of the references.

  Attributes:
    share: least share of their weight that must stand behind one answer, above a half; 1 = all.
    weights: rows (reference, weight); 1 for those without one.
    abstentions: answers such as "unanswerable" that stand behind nothing, even when unanimous.
    sure: least probability that a reference must give its own answer; below it the reference
      abstains; 0 = off, as in the paper.
  """

  share: float = 1.0
  weights: tuple[tuple[str, float], ...] = ()
  abstentions: tuple[str, ...] = ()
  sure: float = 0.0

  def weight(self, reference: str) -> float:
    return dict(self.weights).get(reference, 1.0)

  def needs(self, references: Iterable[str]) -> float:
    """The weight that makes a consensus: more than a half of all; 0.67 of three is two of them."""
    share = max(self.share - _ROUNDED, 0.5 + _EXACT) if self.share < 1 else 1 - _EXACT
    return share * sum(self.weight(name) for name in references)

  def is_sure(self, logprob: float | None) -> bool:
    """Whether a reference is sure of a reply with this log-prob; of one without, it is."""
    return not self.sure or logprob is None or math.exp(logprob) >= self.sure


UNANIMOUS = ConsensusRule()
UNSURE: Final = "unsure"  # The kind of a reference's answer that it is not sure of.
_ROUNDED = 0.01  # Shares are written with two digits.
_EXACT = 1e-9  # Sums of weights are not exact.


@dataclasses.dataclass(frozen=True)
class Decision:
  """What a set of answers amounts to.

  Attributes:
    consensus: what the references agree on, in the wording of the first of those that agree, else
      None. Where a cascade stopped early, the reference's answer that the target shares.
    agree: the references agree on something that is not an abstention.
    disagreement: the signal s of the paper: agree, and the target means something else.
    reason: disagreement | agreement | no consensus | abstention | no answer | skipped | undecided,
      where the judge could not say whether two answers mean the same: it counts as neither.
  """

  consensus: str | None
  agree: bool
  disagreement: bool
  reason: str


class _Poll:
  """The references' answers to a question, with what each weighs.

  An answer leads those later ones that mean the same. The heaviest group is the consensus if it
  weighs enough, the earlier one of two. With every reference needed, only the first can lead.
  """

  def __init__(
    self,
    answers: Mapping[str, str | None],
    judge: Judge,
    rule: ConsensusRule,
    question: str,
    unsure: Collection[str],
  ):
    if not answers:
      raise ValueError("a verdict needs at least one reference")
    self._judge, self._question = judge, question
    self.need = rule.needs(answers)
    known = {name: a for name, a in answers.items() if a is not None}
    silent = {name for name, a in known.items() if not judge.normalize(a)}
    abstain = {
      name
      for name, a in known.items()
      if name not in silent and (name in unsure or _abstains(a, judge, rule))
    }
    self.blocked = "no answer" if silent else "abstention" if abstain else ""
    self.unasked = sum(rule.weight(name) for name in answers if name not in known)
    self.said = [
      (a, rule.weight(name)) for name, a in known.items() if name not in silent | abstain
    ]

  def leaders(self) -> list[int]:
    """Rows of the answers that could lead a consensus if all later ones meant the same."""
    rest = [sum(w for _, w in self.said[i:]) + self.unasked for i in range(len(self.said))]
    return [i for i, weight in enumerate(rest) if weight >= self.need]

  def pairs(self) -> list[tuple[str, str, str]]:
    """The (question, answer, answer) that are compared."""
    said, question = self.said, self._question
    return [(question, said[i][0], other) for i in self.leaders() for other, _ in said[i + 1 :]]

  def group(self, leader: int) -> tuple[float, float]:
    """The weight behind an answer, and that of answers about which the judge is undecided."""
    answer, weight = self.said[leader]
    undecided = 0.0
    for other, more in self.said[leader + 1 :]:
      outcome = self._judge.compare(answer, other, question=self._question)
      weight += more * (outcome is Same.SAME)
      undecided += more * (outcome is Same.UNDECIDED)
    return weight, undecided

  def consensus(self) -> tuple[str | None, str]:
    """The consensus, or None and why there is none: "skipped" where it is still open."""
    groups = {i: self.group(i) for i in self.leaders()}
    best = max(groups, key=lambda i: groups[i][0], default=None)
    most = groups[best][0] if best is not None else 0.0
    if best is not None and most >= self.need:
      return self.said[best][0].strip(), ""
    if most + self.unasked >= self.need:
      return None, "skipped"
    if not self.blocked and any(sum(g) + self.unasked >= self.need for g in groups.values()):
      return None, "undecided"
    return None, self.blocked or "no consensus"

  def hopeful(self) -> list[str]:
    """The answers that could still become the consensus."""
    return [self.said[i][0] for i in self.leaders() if self.group(i)[0] + self.unasked >= self.need]


def decide(
  target_answer: str | None,
  reference_answers: Mapping[str, str | None],
  judge: Judge,
  *,
  rule: ConsensusRule = UNANIMOUS,
  question: str = "",
  unsure: Collection[str] = (),
) -> Decision:
  """Decides whether the references agree, and whether the target conflicts with that.

  Args:
    target_answer: the target's answer; None if a cascade did not ask for it, "" if it gave none.
    reference_answers: answers by reference name; None where not asked, "" where none was given.
    judge: decides sameness.
    rule: what makes a consensus.
    question: passed on to a judge that wants it.
    unsure: references that are not sure of their answers, see `ConsensusRule.sure`.

  Returns:
    The decision. A target that was not asked or did not answer makes no disagreement; one that
    abstains conflicts with references that agree.
  """
  poll = _Poll(reference_answers, judge, rule, question, unsure)
  if target_answer is not None and not target_answer.strip():
    return Decision(None, False, False, "no answer")
  consensus, reason = poll.consensus()
  if consensus is None:
    shared = _shared(poll, target_answer, judge, question) if reason == "skipped" else None
    return Decision(shared, False, False, reason)
  if target_answer is None:
    return Decision(None, False, False, "skipped")
  outcome = judge.compare(target_answer, consensus, question=question)
  if outcome is Same.UNDECIDED:
    return Decision(None, False, False, "undecided")
  differs = outcome is Same.DIFFERENT
  return Decision(consensus, True, differs, "disagreement" if differs else "agreement")


def _shared(poll: _Poll, target_answer: str | None, judge: Judge, question: str) -> str | None:
  """The answer that may become the consensus and that the target does not contradict."""
  if target_answer is None:
    return None
  for answer in poll.hopeful():
    if judge.compare(target_answer, answer, question=question) is not Same.DIFFERENT:
      return answer.strip()
  return None


def consensus_of(
  reference_answers: Mapping[str, str],
  judge: Judge,
  *,
  rule: ConsensusRule = UNANIMOUS,
  question: str = "",
  unsure: Collection[str] = (),
) -> str | None:
  """Returns what the references agree on, as `decide` finds it; None if they do not."""
  return _Poll(reference_answers, judge, rule, question, unsure).consensus()[0]


def agreed(
  verdict: Verdict, judge: Judge, *, rule: ConsensusRule = UNANIMOUS, question: str = ""
) -> str | None:
  """Returns what the references of a verdict agree on, whatever the target says of it."""
  answers = {name: verdict.answers[name] for name in verdict.references}
  unsure = unsure_of(verdict.kinds)
  return _Poll(answers, judge, rule, question, unsure).consensus()[0]


def unsure_of(kinds: Mapping[str, str]) -> frozenset[str]:
  """Returns the references that are not sure, by the kinds of a verdict."""
  return frozenset(name for name, kind in kinds.items() if kind == UNSURE)


def _abstains(answer: str, judge: Judge, rule: ConsensusRule) -> bool:
  """Whether an answer is one of the abstentions; by the rules, a model has no say here."""
  return any(judge.by_rules(answer, other) is Same.SAME for other in rule.abstentions)


def prepare(
  judge: Judge,
  answers: Mapping[str, Sequence[str | None]],
  questions: Sequence[str],
  *,
  target: str,
  references: Sequence[str],
  rule: ConsensusRule = UNANIMOUS,
  unsure: Sequence[Collection[str]],
) -> None:
  """Lets a judge's model compare the answers to many probes in two calls, before `decide`.

  The first call is about the references, the second about the target where they agree.

  Args:
    judge: the judge; without a model there is nothing to do.
    answers: by model, one per probe; None where not asked.
    questions: of the probes.
    target: name of the target.
    references: names of the references.
    rule: as in `decide`.
    unsure: as there, for each probe.
  """
  if judge.model is None:
    return
  polls = [
    _Poll({name: answers[name][i] for name in references}, judge, rule, question, unsure[i])
    for i, question in enumerate(questions)
  ]
  judge.prepare(pair for poll in polls for pair in poll.pairs())
  judge.prepare(
    (question, said, answer)
    for question, poll, said in zip(questions, polls, answers[target], strict=True)
    if said is not None
    for answer in poll.hopeful()
  )


def is_fixed(
  target_answer: str | None,
  reference_answers: Mapping[str, str | None],
  judge: Judge,
  *,
  rule: ConsensusRule = UNANIMOUS,
  question: str = "",
  unsure: Collection[str] = (),
) -> bool:
  """Whether no further answer can turn this into a disagreement (the cascade's stop rule)."""
  partial = decide(
    target_answer, reference_answers, judge, rule=rule, question=question, unsure=unsure
  )
  if partial.reason != "skipped":
    return True
  poll = _Poll(reference_answers, judge, rule, question, unsure)
  if target_answer is None or poll.unasked >= poll.need:
    return False
  return all(
    judge.compare(target_answer, answer, question=question) is not Same.DIFFERENT
    for answer in poll.hopeful()
  )


def verdict(
  probe_id: str,
  answers: Mapping[str, str | None],
  judge: Judge,
  *,
  target: str,
  references: Sequence[str],
  rule: ConsensusRule = UNANIMOUS,
  question: str = "",
  raw: Mapping[str, str] = {},  # noqa: B006  Never changed.
  kinds: Mapping[str, str] = {},  # noqa: B006
) -> Verdict:
  """The record of a decision, with all answers; see `Verdict` for `raw` and `kinds`."""
  decision = decide(
    answers[target],
    {name: answers[name] for name in references},
    judge,
    rule=rule,
    question=question,
    unsure=unsure_of(kinds),
  )
  return Verdict(
    probe_id=probe_id,
    answers=dict(answers),
    target=target,
    references=tuple(references),
    raw=dict(raw),
    kinds=dict(kinds),
    **vars(decision),
  )
