# SPDX-License-Identifier: Apache-2.0
"""Health of the ensemble: consensus is not truth, so how often do the references err together?"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.outside import count_votes
from auditdm_jax.audit.rates import Rate, rate_by_image


@dataclasses.dataclass(frozen=True)
class Health:
  """What the ensemble is worth on questions whose truth is known.

  Attributes:
    error: error rate per model.
    co_error: share of questions on which both of a pair of models err, target included; the
      diagonal is `error`.
    phi: correlation of the errors of each pair; 1 on the diagonal of a model that sometimes errs,
      None where one of them never or always errs, which says nothing.
    all_wrong: share of questions on which every reference errs.
    same_wrong: share of those on which they also agree: false consensus.
    effective_references: R / (1 + (R - 1)·mean phi): how many independent references they equal;
      None where no pair's phi is known.
    warnings: sentences for the report.
  """

  error: dict[str, Rate]
  co_error: dict[str, dict[str, Rate]]
  phi: dict[str, dict[str, float | None]]
  all_wrong: Rate
  same_wrong: Rate
  effective_references: float | None
  warnings: tuple[str, ...]


def health(
  answers: Mapping[str, Sequence[str]],
  truth: Sequence[Sequence[str]],
  judge: Judge,
  *,
  target: str,
  references: Sequence[str],
  questions: Sequence[str] = (),
  images: Sequence[str] = (),
  unsure: Sequence[Collection[str]] = (),
  twin: float = 0.6,
) -> Health:
  """Measures the ensemble, on the questions of which it is known of each model whether it is right.

  Args:
    answers: complete answers per model.
    truth: the labels of each question, see `outside.by_votes`; an oracle's answer is one. Never
      used to choose or to train.
    judge: decides sameness.
    target: name of the target.
    references: names of the references.
    questions: what was asked, for a judge that asks a model.
    images: what each question is about; by default each is about another one.
    unsure: of each question, the references that are not sure: they agree with none.
    twin: error correlation from which two models count as one.
  """
  names = (target, *references)
  asked = questions or [""] * len(truth)
  judge.prepare(
    (question, answers[n][i], label)
    for n in names
    for i, (question, labels) in enumerate(zip(asked, truth, strict=True))
    for label in labels
  )
  right = {
    n: [
      count_votes(labels, answer, judge, question=question).right
      for question, answer, labels in zip(asked, answers[n], truth, strict=True)
    ]
    for n in names
  }
  decided = [i for i in range(len(truth)) if all(told[i] is not None for told in right.values())]
  shown = [images[i] if images else str(i) for i in decided]
  wrong = {n: np.array([not told[i] for i in decided], bool) for n, told in right.items()}
  phi = {a: {b: _phi(wrong[a], wrong[b]) for b in names} for a in names}
  together = np.logical_and.reduce([wrong[n] for n in references])
  shared = [decided[k] for k in np.flatnonzero(together)]
  first, *others = (answers[name] for name in references)
  judge.prepare((asked[i], first[i], other[i]) for i in shared for other in others)
  alike = [
    not (unsure and unsure[i])
    and all(judge.same(first[i], other[i], question=asked[i]) for other in others)
    for i in shared
  ]
  both = [phi[a][b] for i, a in enumerate(references) for b in references[:i]]
  pairs = [x for x in both if x is not None]
  mean_phi = max(0.0, float(np.mean(pairs))) if pairs else 0.0
  warnings = [
    f"{a} and {b} err together (phi {x:.2f}): they count as one opinion"
    for i, a in enumerate(names)
    for b in names[i + 1 :]
    if (x := phi[a][b]) is not None and x >= twin
  ]
  return Health(
    error={n: rate_by_image(w, shown) for n, w in wrong.items()},
    co_error={a: {b: rate_by_image(wrong[a] & wrong[b], shown) for b in names} for a in names},
    phi=phi,
    all_wrong=rate_by_image(together, shown),
    same_wrong=rate_by_image(alike, [shown[k] for k in np.flatnonzero(together)]),
    effective_references=len(references) / (1 + (len(references) - 1) * mean_phi)
    if pairs or len(references) == 1
    else None,
    warnings=tuple(warnings),
  )


def _phi(a: np.ndarray, b: np.ndarray) -> float | None:
  """Correlation of two error vectors; None where one of them never or always errs."""
  if len(a) == 0 or a.std() == 0 or b.std() == 0:
    return None
  return float(np.corrcoef(a, b)[0, 1])
