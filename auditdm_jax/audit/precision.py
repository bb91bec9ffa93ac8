# SPDX-License-Identifier: Apache-2.0
"""What finds are worth: how many are real errors of the target, where somebody knows the truth.

A find is real if the consensus is right and the target is wrong. Consensus is not truth, and by
Bayes' rule even good references are wrong about many finds of a target that is better than they.

Two kinds of knowledge:

  labelled probes    questions that were drawn without a look at the answers, conflicts or not:
                     how often is a wrong target flagged, a right one not, and a find real
  labelled finds     finds of the audit itself, each with the number of finds that it stands for:
                     how many are real, of all, of those that were verified and of those rejected

Rates are by image. From the first kind follow corrected rates (`rates.corrected`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Attempt, Failure, Find, Side
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.outside import Outside
from auditdm_jax.audit.rates import Corrected, Labelled, Rate

# Whose answer the truth shares → (the target is wrong, the consensus is right).
_MEANS: dict[Side, tuple[bool, bool]] = {
  "consensus": (True, True),
  "target": (False, False),
  "both": (False, True),
  "neither": (True, False),
}


@dataclasses.dataclass(frozen=True)
class KnownProbe:
  """A probe with a consensus, of which the truth is known.

  Attributes:
    image: its image, or the one that its image was made from.
    flagged: it is a find.
    target_wrong: the target's answer is wrong.
    consensus_right: the answer of the consensus is right.
  """

  image: str
  flagged: bool
  target_wrong: bool
  consensus_right: bool


_FEW = 20  # Probes below which a share of them says next to nothing.


@dataclasses.dataclass(frozen=True)
class FindPrecision:
  """What a conflict with the consensus says about the target.

  Attributes:
    by: who knows the truth: "labels", "people" or "oracle".
    real: share of finds that are real.
    missed: share of probes without conflict on which the target is wrong; None if only finds were
      looked at.
    sensitivity: share of finds where the target is wrong; None as above.
    specificity: share without conflict where the target is right; None as above.
    unknown: probes with a consensus of which the truth is not known; they are left out.
  """

  by: str
  real: Rate
  missed: Rate | None = None
  sensitivity: Rate | None = None
  specificity: Rate | None = None
  unknown: int = 0

  @property
  def mostly_wrong(self) -> bool:
    """Whether a find is surely more often wrong than right: the interval ends below a half."""
    return bool(self.real.n) and self.real.ci95[1] < 0.5

  @property
  def youden(self) -> float | None:
    """Sensitivity + specificity - 1 as `rates.corrected` takes it; None if it is not measured."""
    found = self.correct(rates.NOTHING)
    return found and found.youden

  @property
  def cannot_judge(self) -> bool:
    """Whether a conflict says next to nothing about the target."""
    return self.youden is not None and self.youden < rates.LEAST_YOUDEN

  def correct(self, flagged: Rate) -> Corrected | None:
    """Returns the share of probes on which the target is wrong; None if that was not measured.

    It holds as far as the references err on those probes as often as on the labelled ones.

    Args:
      flagged: share of finds among probes with a consensus.
    """
    if self.sensitivity is None or self.specificity is None:
      return None
    labelled = Labelled.of(self.sensitivity), Labelled.of(self.specificity)
    return rates.corrected(flagged, *labelled)

  @property
  def verdict(self) -> str:
    """Why there is no corrected rate, in a clause; "" if there may be one."""
    if not self.cannot_judge or self.sensitivity is None or self.specificity is None:
      return ""
    wrong, right = self.sensitivity.n, self.specificity.n
    if min(wrong, right) < _FEW:
      return (
        f"the target is wrong on {wrong:,} and right on {right:,} labelled probes, too few to say"
        f" whether this ensemble can judge (at least {_FEW} of each)"
      )
    return "this ensemble cannot judge: it flags a right target nearly as often as a wrong one"

  @property
  def sentence(self) -> str:
    """What it amounts to, in one sentence."""
    real = self.real
    if not real.n:
      return f"no find has a truth by {self.by}: how many finds are real is not known"
    low, high = real.ci95
    text = f"{real.value:.1%} [{low:.1%}, {high:.1%}] of {real.n:,} finds are real, by {self.by}"
    if self.mostly_wrong:
      text += ": the references are mostly wrong where the target disagrees with them"
    return f"{text}; {self.verdict}" if self.verdict else text


def known_probes(
  attempts: Iterable[Attempt], who: Outside, judge: Judge
) -> tuple[list[KnownProbe], int]:
  """Returns the probes whose truth is known, and how many with a consensus are left out.

  Args:
    attempts: probes that all models were asked about.
    who: knows the truth: `outside.Labels` or `outside.TrueAnswers`.
    judge: decides sameness.
  """
  compared = [c for c in map(_compared, attempts) if c]
  found = []
  for find, opinion in zip(compared, who.opinions(compared, judge), strict=True):
    if opinion.side in _MEANS:
      flagged = find.verdict.disagreement
      found.append(KnownProbe(find.probe.origin_id, flagged, *_MEANS[opinion.side]))
  return found, len(compared) - len(found)


def _compared(attempt: Attempt) -> Find | None:
  """The two answers of a probe with a consensus, whether they conflict or not."""
  verdict = attempt.verdict
  if verdict is None or not verdict.agree or verdict.consensus is None:
    return None
  said = verdict.answers[verdict.target]
  if not said:
    return None
  return Find(probe=attempt.probe, verdict=verdict, consensus=verdict.consensus, said=said)


def of_probes(probes: Sequence[KnownProbe], *, by: str, unknown: int = 0) -> FindPrecision | None:
  """Measures an ensemble on labelled probes; None if there are none."""
  if not probes:
    return None

  def share(of: Callable[[KnownProbe], bool], among: Callable[[KnownProbe], bool]) -> Rate:
    own = [p for p in probes if among(p)]
    return rates.rate_by_image([of(p) for p in own], [p.image for p in own])

  return FindPrecision(
    by=by,
    real=share(lambda p: p.target_wrong and p.consensus_right, lambda p: p.flagged),
    missed=share(lambda p: p.target_wrong, lambda p: not p.flagged),
    sensitivity=share(lambda p: p.flagged, lambda p: p.target_wrong),
    specificity=share(lambda p: not p.flagged, lambda p: not p.target_wrong),
    unknown=unknown,
  )


@dataclasses.dataclass(frozen=True)
class GradePrecision:
  """How many finds of the audit are real, grade by grade.

  Each find counts as many times as it stands for finds that were not looked at.

  Attributes:
    by: who knows the truth: "labels", "people" or "oracle".
    finds: share of all finds that are real (V0).
    verified: share of verified ones (V1 and above).
    outside: the same of those with V2, by who decided, unless that is who knows the truth.
    rejected: share of those that are not verified.
    lost: share of real finds that verification rejects.
    caught: share of other finds that it rejects.
    gates: share of real ones among the finds that a required gate stops; "stability" is one too.
  """

  by: str
  finds: Rate
  verified: Rate
  outside: Mapping[str, Rate]
  rejected: Rate
  lost: Rate
  caught: Rate
  gates: Mapping[str, Rate]


def of_finds(
  failures: Iterable[Failure],
  real: Callable[[Failure], bool | None],
  *,
  by: str,
  required: Sequence[str] = (),
) -> GradePrecision | None:
  """Measures verification on finds whose truth is known; None if there are none.

  Args:
    failures: graded finds, verified or not.
    real: whether a find is real; None where nobody knows, and the find is left out.
    by: who says so.
    required: gates that V1 needs.
  """
  known = [(f, said) for f in failures if (said := real(f)) is not None]
  if not known:
    return None

  def share(
    of: Callable[[Failure, bool], bool], among: Callable[[Failure, bool], bool] = lambda f, x: True
  ) -> Rate:
    own = [(f, said) for f, said in known if among(f, said)]
    return rates.rate_by_image(
      [of(f, said) for f, said in own],
      [f.probe.origin_id for f, _ in own],
      weights=[f.weight for f, _ in own],
    )

  deciders = sorted({f.opinion.by for f, _ in known if f.grade == "V2" and f.opinion} - {by})
  stopped = {name: share(_is_real, _stopped_by(name)) for name in (*required, "stability")}
  return GradePrecision(
    by=by,
    finds=share(_is_real),
    verified=share(_is_real, lambda f, _: f.verified),
    outside={who: share(_is_real, _decided_by(who)) for who in deciders},
    rejected=share(_is_real, lambda f, _: not f.verified),
    lost=share(lambda f, _: not f.verified, _is_real),
    caught=share(lambda f, _: not f.verified, lambda _, said: not said),
    gates={name: rate for name, rate in stopped.items() if rate.n},
  )


def _is_real(_: Failure, said: bool) -> bool:
  return said


def _decided_by(who: str) -> Callable[[Failure, bool], bool]:
  return lambda f, _: f.grade == "V2" and f.opinion is not None and f.opinion.by == who


def _stopped_by(name: str) -> Callable[[Failure, bool], bool]:
  """Whether a gate stops a find; stability is what stops those that no gate does."""

  def stops(f: Failure, _: bool) -> bool:
    failed = {gate.name for gate in f.gates if gate.passed is False}
    return not f.verified if name == "stability" and not failed else name in failed

  return stops


def by_labels(failure: Failure) -> bool | None:
  """Whether a find is real by the data set's own labels; None where they do not say."""
  opinion = failure.opinion
  if opinion is None or opinion.by != "labels" or opinion.side not in _MEANS:
    return None
  return opinion.side == "consensus"


def by_people(failure: Failure) -> bool | None:
  """Whether a find is real by a person's label; None where there is none, or it is unclear."""
  return {"right": True, "wrong": False}.get(failure.label or "")


@dataclasses.dataclass(frozen=True)
class LabelPrecision:
  """How many training labels are right, by who knows: "people", "oracle" or "labels"."""

  by: str
  right: Rate


def best(labelled: FindPrecision | None, grades: Sequence[GradePrecision]) -> FindPrecision | None:
  """Returns what is known best of finds: by people, then by labelled questions, then by an oracle.

  People and oracles look at the audit's own finds.

  Args:
    labelled: measured on questions with labels.
    grades: measured on the audit's finds.
  """
  own = {g.by: FindPrecision(by=g.by, real=g.finds) for g in grades}
  return own.get("people") or labelled or own.get("oracle")
