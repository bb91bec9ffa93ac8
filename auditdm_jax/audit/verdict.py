# SPDX-License-Identifier: Apache-2.0
"""From answers to a verdict: the references' consensus, and whether the target conflicts."""

from collections.abc import Mapping, Sequence
import dataclasses

from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Verdict


@dataclasses.dataclass(frozen=True)
class Decision:
  """What a set of answers amounts to.

  Attributes:
    consensus: the first reference's wording if all references agree, else None.
    agree: the references agree on something that is not an abstention.
    disagreement: the signal s of the paper: agree, and the target means something else.
    reason: disagreement | agreement | no consensus | abstention | no answer | skipped | undecided,
      where the judge could not say whether two answers mean the same: it counts as neither.
  """

  consensus: str | None
  agree: bool
  disagreement: bool
  reason: str


def decide(
  target_answer: str | None,
  reference_answers: Mapping[str, str | None],
  judge: Judge,
  *,
  abstentions: Sequence[str] = (),
  question: str = "",
) -> Decision:
  """Consensus = unanimous references, in the order given; agreement is with the first of them.

  Args:
    target_answer: the target's answer; None if a cascade did not ask for it, "" if it gave none.
    reference_answers: answers by reference name; None where not asked, "" where none was given.
    judge: decides sameness.
    abstentions: answers such as "unanswerable" that are no consensus even when unanimous.
    question: passed on to a judge that wants it.

  Returns:
    The decision. What was not asked or not answered never makes a disagreement, and never a
    consensus; a target that abstains conflicts with references that agree.
  """
  if not reference_answers:
    raise ValueError("a verdict needs at least one reference")
  known = [a for a in reference_answers.values() if a is not None]
  silent = target_answer is not None and not target_answer.strip()
  if silent or any(not judge.normalize(a) for a in known):
    return Decision(None, False, False, "no answer")
  if any(_abstains(a, judge, abstentions) for a in known):
    return Decision(None, False, False, "abstention")
  outcomes = [judge.compare(known[0], a, question=question) for a in known[1:]]
  if Same.DIFFERENT in outcomes:
    return Decision(None, False, False, "no consensus")
  if Same.UNDECIDED in outcomes:
    return Decision(None, False, False, "undecided")
  if target_answer is None or len(known) < len(reference_answers):
    return Decision(None, False, False, "skipped")
  outcome = judge.compare(target_answer, known[0], question=question)
  if outcome is Same.UNDECIDED:
    return Decision(None, False, False, "undecided")
  differs = outcome is Same.DIFFERENT
  reason = "disagreement" if differs else "agreement"
  return Decision(known[0].strip(), True, differs, reason)


def _abstains(answer: str, judge: Judge, abstentions: Sequence[str]) -> bool:
  """Whether an answer is one of the abstentions; by the rules, a model has no say here."""
  return any(judge.by_rules(answer, other) is Same.SAME for other in abstentions)


def prepare(
  judge: Judge,
  answers: Mapping[str, Sequence[str | None]],
  questions: Sequence[str],
  *,
  target: str,
  references: Sequence[str],
  abstentions: Sequence[str] = (),
) -> None:
  """Lets a judge's model compare the answers to many probes in two calls, before `decide`.

  The first call is about the references, the second about the target where they agree.

  Args:
    judge: the judge; without a model there is nothing to do.
    answers: by model, one per probe; None where not asked.
    questions: of the probes.
    target: name of the target.
    references: names of the references.
    abstentions: as in `decide`.
  """
  if judge.model is None:
    return
  rows = []
  for i, question in enumerate(questions):
    known = [a for name in references if (a := answers[name][i]) is not None]
    if known and not any(_abstains(a, judge, abstentions) for a in known):
      rows.append((question, known, answers[target][i]))
  judge.prepare((q, known[0], other) for q, known, _ in rows for other in known[1:])
  judge.prepare(
    (q, said, known[0])
    for q, known, said in rows
    if said is not None and all(judge.same(known[0], other, question=q) for other in known[1:])
  )


def is_fixed(
  target_answer: str | None,
  reference_answers: Mapping[str, str | None],
  judge: Judge,
  *,
  abstentions: Sequence[str] = (),
  question: str = "",
) -> bool:
  """Whether no further answer can turn this into a disagreement (the cascade's stop rule)."""
  partial = decide(
    target_answer, reference_answers, judge, abstentions=abstentions, question=question
  )
  if partial.reason != "skipped":
    return True
  first = next(iter(reference_answers.values()))
  if target_answer is None or first is None:
    return False
  return judge.compare(target_answer, first, question=question) is not Same.DIFFERENT


def verdict(
  probe_id: str,
  answers: Mapping[str, str | None],
  judge: Judge,
  *,
  target: str,
  references: Sequence[str],
  abstentions: Sequence[str] = (),
  question: str = "",
  raw: Mapping[str, str] = {},  # noqa: B006  Never changed.
  kinds: Mapping[str, str] = {},  # noqa: B006
) -> Verdict:
  """The record of a decision, with all answers; see `Verdict` for `raw` and `kinds`."""
  decision = decide(
    answers[target],
    {name: answers[name] for name in references},
    judge,
    abstentions=abstentions,
    question=question,
  )
  return Verdict(
    probe_id=probe_id,
    answers=dict(answers),
    target=target,
    references=tuple(references),
    raw=dict(raw),
    kinds=dict(kinds),
    **dataclasses.asdict(decision),
  )
