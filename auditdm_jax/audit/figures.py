# SPDX-License-Identifier: Apache-2.0
"""The figures of a run by which runs are compared, each a number read from its summary."""

from collections.abc import Callable
import dataclasses
import math

from auditdm_jax.audit.hacks import KINDS
from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.summary import ALL_ARMS, Summary

Read = Callable[[Summary], float | None]

REPAIRED, RANDOM, MINED = "repaired", "control_random", "control_mined"
CONTROL_ARM = "control: random, equal queries"
FEWER_ARM = "control: random, fewer queries"  # The data set has no more questions.


@dataclasses.dataclass(frozen=True)
class Figure:
  """One number of a run.

  Attributes:
    name: as tables have it, with the unit.
    read: the number; None where it was not measured.
    drawn: whether plots have it too.
  """

  name: str
  read: Read
  drawn: bool = False


def percent(rate: Rate | None) -> float | None:
  """A rate in percent; None if it was not measured."""
  return None if rate is None or not rate.n else 100 * rate.value


def accuracy(role: str, group: str) -> Read:
  """Accuracy of a model on everything held out, on the gaps, or on the rest."""

  def figure(run: Summary) -> float | None:
    found = run.rectify.get(role)
    if found is None:
      return None
    return percent({"all": found.all, "gaps": found.gaps, "rest": found.rest}[group])

  return figure


def less(a: Read, b: Read) -> Read:
  """The difference within a run."""

  def figure(run: Summary) -> float | None:
    x, y = a(run), b(run)
    return None if x is None or y is None else x - y

  return figure


def _times_control(run: Summary) -> float | None:
  """Confirmed unique finds of the audit for each of the random questions'."""
  if CONTROL_ARM not in run.arms:
    return None
  ours, control = run.arms[ALL_ARMS].confirmed_unique, run.arms[CONTROL_ARM].confirmed_unique
  return ours / control if ours and control else None


def _effective_modes(run: Summary) -> float | None:
  spread = run.coverage.modes if run.coverage else None
  return spread.common.value if spread else None


def _queries_to_gaps(arm: str, share: float = 1.0) -> Read:
  """Queries to so many of the auditable gaps, if these were found."""

  def figure(run: Summary) -> float | None:
    to_gaps = run.arms[arm].queries_to_gaps if arm in run.arms else None
    needed = math.ceil(share * run.coverage.gaps_auditable - 1e-9) if run.coverage else 0
    return to_gaps[needed - 1] if to_gaps and 0 < needed <= len(to_gaps) else None

  return figure


def _worst_hack(run: Summary) -> float | None:
  """Of verified finds, the share of what most of those that are no failures come from."""
  verified = run.hacks[ALL_ARMS].verified if ALL_ARMS in run.hacks else None
  shares = [percent(vars(verified)[kind]) for kind in KINDS] if verified else []
  return max((share for share in shares if share is not None), default=None)


def _calibration_error(run: Summary) -> float | None:
  told = [c for c in run.calibration if (c.where, c.chosen) == ("sweep", "all")]
  return 100 * told[0].error if told else None


def gaps(role: str) -> Read:
  """Accuracy on the planted gaps."""
  return accuracy(role, "gaps")


def rest(role: str) -> Read:
  """Accuracy on everything else."""
  return accuracy(role, "rest")


FIGURES = (
  Figure(
    "search success, prompt-only, %", lambda run: percent(run.search and run.search.prompt_only)
  ),
  Figure(
    "search success, trained, %",
    lambda run: percent(run.search and run.search.trained),
    drawn=True,
  ),
  Figure(
    "verified failures, % of questions",
    lambda run: percent(run.compared.failures),
    drawn=True,
  ),
  Figure("precision of verified failures, %", lambda run: percent(run.precision), drawn=True),
  Figure("confirmed unique finds", lambda run: run.coverage and run.coverage.confirmed),
  Figure("confirmed unique finds, times those of random questions", _times_control),
  Figure("effective modes of confirmed finds", _effective_modes, drawn=True),
  Figure("auditable gaps", lambda run: run.coverage and run.coverage.gaps_auditable),
  Figure("auditable gaps found", lambda run: run.coverage and run.coverage.gaps_found),
  Figure("queries to 80 % of the gaps", _queries_to_gaps(ALL_ARMS, 0.8), drawn=True),
  Figure("queries to 80 % of the gaps, random questions", _queries_to_gaps(CONTROL_ARM, 0.8)),
  Figure("queries to the last gap", _queries_to_gaps(ALL_ARMS)),
  Figure("queries to the last gap, random questions", _queries_to_gaps(CONTROL_ARM)),
  Figure("verified finds that are no failures, worst kind, %", _worst_hack),
  Figure("calibration error of the sweep, %", _calibration_error),
  Figure("confirmed modes", lambda run: run.modes.confirmed, drawn=True),
  Figure("confirmed modes borne out by the oracle, %", lambda run: percent(run.modes.precision)),
  Figure("gaps with a confirmed mode, %", lambda run: percent(run.modes.recall)),
  Figure("accuracy: target, %", accuracy("baseline", "all")),
  Figure("accuracy: repaired, %", accuracy(REPAIRED, "all"), drawn=True),
  Figure("accuracy on the gaps: target, %", gaps("baseline")),
  Figure("accuracy on the gaps: repaired, %", gaps(REPAIRED), drawn=True),
  Figure("accuracy on the gaps: control of random questions, %", gaps(RANDOM)),
  Figure("accuracy on the gaps: control of mined failures, %", gaps(MINED)),
  Figure("accuracy on the gaps: larger sibling, %", gaps("larger_sibling")),
  Figure(
    "accuracy on the gaps: repaired less random questions", less(gaps(REPAIRED), gaps(RANDOM))
  ),
  Figure("accuracy on the gaps: repaired less mined failures", less(gaps(REPAIRED), gaps(MINED))),
  Figure("accuracy on the rest: target, %", rest("baseline")),
  Figure(
    "accuracy on the rest: repaired less target",
    less(rest(REPAIRED), rest("baseline")),
    drawn=True,
  ),
  Figure("accuracy on the rest: repaired less mined failures", less(rest(REPAIRED), rest(MINED))),
  Figure("same auditor against the repaired target, %", lambda run: percent(run.reaudit)),
)
