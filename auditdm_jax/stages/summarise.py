# SPDX-License-Identifier: Apache-2.0
"""The summary of an audit, from the results of the stages that are done and the attempts.

A stage that did not run, and what only an oracle could tell, is None: not measured.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from auditdm_jax.audit import labels, precision, rates, summary
from auditdm_jax.audit.attempt import Attempt, Failure, Find, unique_attempts, unique_finds
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.asking import CONTROL as CONTROL_STAGE
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import (
  Controlled,
  Evaluated,
  ModeRow,
  Repairs,
  Searched,
  Verified,
  accuracy_of,
)
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.truth import ModeKey

CONTROL = "control: random, equal queries"
FEWER = "control: random, fewer queries"  # The data set has no more questions.
_FAITHFUL = 500  # Made images per strategy whose content is checked.
_BINS = 15  # Points of the learning curve.


@dataclasses.dataclass(frozen=True)
class Round:
  """The results of the stages; None where one did not run."""

  verified: Verified
  evaluated: Evaluated | None = None
  searched: Searched | None = None
  controlled: Controlled | None = None
  repairs: Repairs | None = None
  second: summary.SecondRound | None = None

  @classmethod
  def of(cls, folder: RunFolder) -> "Round":
    """Returns what a folder holds.

    Raises:
      UserError: nothing is verified yet.
    """
    verified = folder.done("verify", Verified)
    if verified is None:
      raise UserError(f"{folder.path}: nothing to report; run the stage verify first")
    return cls(
      verified,
      folder.done("evaluate", Evaluated),
      folder.done("search", Searched),
      folder.done(CONTROL_STAGE, Controlled),
      folder.done("rectify", Repairs),
      folder.done("reaudit", summary.SecondRound),
    )


@dataclasses.dataclass(frozen=True)
class _Real:
  """Says which attempts are real failures: by the oracle, without one by verification."""

  ctx: Context
  verified: Collection[str]

  @classmethod
  def of(cls, ctx: Context, failures: Sequence[Failure]) -> "_Real":
    return cls(ctx, {f.probe.probe_id for f in failures if f.verified})

  def rate(self, attempts: Sequence[Attempt]) -> rates.Rate:
    return self.ctx.oracle.success(attempts, verified=self.verified)


def summarise(ctx: Context, done: Round) -> summary.Summary:
  """Returns what summary.json holds."""
  ctx.pool("images")  # So that their images are found by id.
  found, trained = ctx.folder.attempts(), ctx.folder.completions()
  random = ctx.folder.control() if done.controlled else None
  auditable = done.evaluated.auditable if done.evaluated else ()
  cover, searched = ctx.oracle.coverage(found, auditable), done.searched
  failures = ctx.folder.failures()
  real = _Real.of(ctx, failures)
  grades, labelled = _grades(ctx, failures), done.verified.labelled
  seconds = ctx.folder.seconds()
  return summary.Summary(
    target=ctx.models.target_name,
    compared=compared(found, failures),
    search=searched and summary.Search(searched.prompt_only, searched.trained),
    search_modes=searched
    and summary.SearchModes(searched.prompt_only_modes, searched.trained_modes),
    precision=next((g.verified for g in grades if g.by == "oracle"), None),
    coverage=cover,
    gaps=_gaps(ctx, done.evaluated, cover) if done.evaluated and cover else {},
    modes=mode_scores(
      done.verified.modes,
      auditable,
      oracle=ctx.oracle.exists,
    ),
    rectify=_accuracies(ctx, done.evaluated, done.repairs) if done.evaluated else {},
    reaudit=done.second.success if done.second else None,
    second_round=done.second,
    arms=_arms(real, trained, found, random, auditable, labelled),
    strategies=strategies(real, found),
    curve=curve(real, trained),
    queries=summary.Queries(
      grpo=len(trained),
      # A question that the group repeats is put to the models once.
      grpo_distinct=len({(a.probe.step, a.probe.probe_id) for a in trained}),
      discover=len(found) - len(trained),
      total=len(found),
      control_random=None if random is None else len(random),
      verify_looked_at=done.verified.funnel["looked_at"],
    ),
    find_precision=precision.best(labelled, grades),
    corrected=_corrected(labelled, found),
    grades=grades,
    seconds=seconds | {"total": round(sum(seconds.values()), 1)} if seconds else {},
    labels=labels.score(ctx.folder.graded(), ctx.folder.sample(), ctx.folder.labels()),
    rounds=round_rows(ctx, done, found, seconds),
  )


def compared(attempts: Sequence[Attempt], failures: Sequence[Failure]) -> summary.Compared:
  """Counts the distinct questions: those that can tell, and those that say nothing."""
  asked = unique_attempts(attempts)
  finds = {a.probe.probe_id: a.probe.origin_id for a in attempts if a.find}
  looked_at = {f.probe.probe_id for f in failures}
  agreed = {a.probe.probe_id: a.probe.origin_id for a in asked if a.consensus is not None} | finds
  left_out = Counter(
    a.verdict.reason for a in asked if a.verdict and a.probe.probe_id not in agreed
  )
  verified = {f.probe.probe_id for f in failures if f.verified}
  return summary.Compared(
    asked=len(asked),
    failures=rates.rate_by_image([p in verified for p in agreed], list(agreed.values())),
    left_out=dict(sorted(left_out.items())),
    not_looked_at=len(finds.keys() - looked_at),
  )


def _grades(ctx: Context, failures: Sequence[Failure]) -> tuple[precision.GradePrecision, ...]:
  """Returns how many finds are real: by people, by the oracle and by labels, where they know."""
  knows: dict[str, Callable[[Failure], bool | None]] = {
    "people": precision.by_people,
    "labels": precision.by_labels,
  }
  if ctx.oracle.exists:
    knows["oracle"] = lambda f: ctx.oracle.truth(f).confirmed
  required = ctx.settings.verify.required
  rows = (precision.of_finds(failures, own, by=by, required=required) for by, own in knows.items())
  return tuple(row for row in rows if row)


def _corrected(
  labelled: precision.FindPrecision | None, attempts: Sequence[Attempt]
) -> rates.Corrected | None:
  """Returns on how many of the distinct questions with a consensus the target is wrong."""
  own = [a for a in unique_attempts(attempts) if a.consensus is not None]
  flagged = [a.find is not None for a in own]
  images = [a.probe.origin_id for a in own]
  return labelled and labelled.correct(rates.rate_by_image(flagged, images))


def _gaps(
  ctx: Context, evaluated: Evaluated, cover: summary.Coverage
) -> dict[str, summary.GapScore]:
  """Returns the planted gaps."""
  target, auditable = evaluated.tables[ctx.models.target_name], evaluated.auditable
  return {
    gap: summary.GapScore(target.get(f"gap: {gap}"), gap in auditable, cover.per_gap.get(gap, 0))
    for gap in ctx.world.gaps
  }


def _accuracies(
  ctx: Context, evaluated: Evaluated, repairs: Repairs | None
) -> dict[str, summary.Accuracy]:
  """Returns held-out accuracy of the target, of its larger sibling and of the repaired models."""
  rows = {"baseline": accuracy_of(evaluated.tables[ctx.models.target_name])}
  if ctx.models.sibling_name:
    rows["larger_sibling"] = accuracy_of(evaluated.tables[ctx.models.sibling_name])
  for name, model in repairs.models.items() if repairs else ():
    rows[name] = accuracy_of(model.table, examples=model.examples)
  return rows


def _arms(
  real: _Real,
  trained: Sequence[Attempt],
  found: Sequence[Attempt],
  random: Sequence[Attempt] | None,
  auditable: Sequence[str],
  labelled: precision.FindPrecision | None,
) -> dict[str, summary.Arm]:
  """Returns a row for each source of probes, for their sum and for the control."""
  groups: dict[str, list[Attempt]] = {"grpo": list(trained)} if trained else {}
  for a in found[len(trained) :]:
    groups.setdefault(a.probe.arm, []).append(a)
  groups[summary.ALL_ARMS] = list(found)
  key = ModeKey(real.ctx.seeds)
  arm = functools.partial(_arm, real, key=key, auditable=auditable, labelled=labelled)
  rows = {name: arm(own) for name, own in groups.items()}
  if random is not None:
    row = arm(random)
    # Without an oracle nobody verified its finds.
    name = CONTROL if len(random) >= len(found) else FEWER
    rows[name] = row if real.ctx.oracle.exists else dataclasses.replace(row, verified=None)
  return rows


def _arm(
  real: _Real,
  attempts: Sequence[Attempt],
  *,
  key: ModeKey,
  auditable: Sequence[str],
  labelled: precision.FindPrecision | None,
) -> summary.Arm:
  kinds = Counter(k for k in map(key, attempts) if k)
  cover = real.ctx.oracle.coverage(attempts, auditable)
  return summary.Arm(
    queries=len(attempts),
    verified=real.rate(attempts),
    confirmed_unique=cover and cover.confirmed,
    gaps_found=cover and cover.gaps_found,
    effective_modes=cover and cover.effective_modes,
    effective_skills=cover and cover.effective_skills,
    unseen_mass=rates.good_turing(kinds.values()) if kinds else None,
    corrected=_corrected(labelled, attempts),
  )


def mode_scores(
  modes: Sequence[ModeRow], auditable: Sequence[str], *, oracle: bool
) -> summary.ModeScores:
  """Counts modes, and scores those that fresh probes confirm by the oracle.

  Recall: auditable gaps that some mode is about. Precision: modes the oracle bears out. A mode is
  about a gap if most of its oracle-confirmed fresh failures lie in it. It is borne out if the rate
  of failures that the oracle confirms is shown to be above the failure rate outside all modes.
  Without an oracle neither can be measured.
  """
  held = [m for m in modes if m.status == "confirmed"]
  counts = summary.ModeScores(
    recall=None,
    precision=None,
    found=len(modes),
    confirmed=len(held),
    families=len({m.family or m.name for m in held}),
  )
  if not oracle:
    return counts
  right = [m for m in held if _borne_out(m)]
  about = Counter(m.gap for m in right if m.gap and m.gap_share >= 0.5)
  return dataclasses.replace(
    counts,
    recall=rates.rate(sum(g in about for g in auditable), len(auditable)),
    precision=rates.rate(len(right), len(held)),
    per_gap=round(about.total() / len(about), 2) if about else None,
  )


def _borne_out(mode: ModeRow) -> bool:
  if not mode.fresh or not mode.base or not mode.base.n:
    return False
  fresh = mode.fresh
  shown = rates.rate(int(mode.confirmed / fresh.design), int(fresh.effective))
  return shown.ci95[0] > mode.base.value


def round_rows(
  ctx: Context, done: Round, found: Sequence[Attempt], seconds: Mapping[str, float]
) -> tuple[summary.RoundRow, ...]:
  """Returns a row for each round.

  Args:
    ctx: the run's oracle.
    done: its results.
    found: attempts of the first round.
    seconds: by stage.
  """
  finds, fresh = unique_finds(found), done.verified.fresh
  held = {m.mode_id for m in done.verified.modes if m.status == "confirmed"}
  wrong = [not ctx.oracle.truth(f).confirmed for f in finds]
  images = [f.probe.image_id for f in finds]
  spent = sum(x for stage, x in seconds.items() if stage != "re-audit")
  first = summary.RoundRow(
    round=1,
    confirmed=len(held),
    new=len(held),
    repaired=None,
    false_positive=rates.rate_by_image(wrong, images) if ctx.oracle.exists else None,
    rest=None,
    queries=len(found) + (fresh.for_all + fresh.for_modes if fresh else 0),
    seconds=round(spent, 1) if seconds else None,
  )
  if (second := done.second) is None:
    return (first,)
  known = [m for m in second.modes if m.mode_id in held]
  mended = sum(m.status in ("fixed", "improved") for m in known)
  right = second.finds
  return first, summary.RoundRow(
    round=2,
    confirmed=sum(m.status == "confirmed" for m in second.found),
    new=len(second.new),
    repaired=rates.rate(mended, len(known)),
    false_positive=right and _complement(right),
    rest=second.rest,
    queries=second.queries,
    seconds=seconds.get("re-audit"),
  )


def _complement(rate: rates.Rate) -> rates.Rate:
  """The rate of what is not counted."""
  low, high = rate.ci95
  share = None if rate.rate is None else 1 - rate.rate
  return dataclasses.replace(rate, k=rate.n - rate.k, rate=share, ci95=(1 - high, 1 - low))


def strategies(real: _Real, attempts: Sequence[Attempt]) -> dict[str, summary.StrategyRow]:
  """Returns, by strategy, real failures, faithful images, and kinds of failure it alone found."""
  ctx = real.ctx
  by: dict[str, list[Attempt]] = {}
  for a in attempts:
    by.setdefault(a.probe.strategy, []).append(a)
  modes = {
    name: {t.mode for t in (ctx.oracle.truth(a.find) for a in own) if t.confirmed}
    for name, own in by.items()
  }
  return {
    name: summary.StrategyRow(
      verified=real.rate(own),
      only_here=len(modes[name] - set().union(*(m for s, m in modes.items() if s != name)))
      if ctx.oracle.exists
      else None,
      **_images(ctx, [a for a in own if _is_made(a)]),
    )
    for name, own in by.items()
  }


def _is_made(a: Attempt) -> bool:
  probe = a.probe
  return probe.image_id != probe.source_image_id and bool(probe.caption or probe.instruction)


def _images(ctx: Context, made: Sequence[Attempt]) -> dict[str, Any]:
  """Returns what a strategy's row says of the images that it made, if it made any."""
  if not made or not ctx.oracle.exists:
    return {}
  exposed = Counter()
  for a in made:
    truth = ctx.oracle.truth(a.find)
    if a.find and truth.gap and _exposed(ctx, a.find):
      exposed[truth.gap] += 1
  row: dict[str, Any] = {"exposed_by_image": dict(exposed)}
  if ctx.world.faithful:
    judged = [(_faithful(ctx, a), a.probe.origin_id) for a in made[:_FAITHFUL]]
    told = [(faithful, origin) for faithful, origin in judged if faithful is not None]
    row["faithful"] = rates.rate_by_image([f for f, _ in told], [origin for _, origin in told])
  return row


def _faithful(ctx: Context, a: Attempt) -> bool | None:
  probe = a.probe
  source = None if probe.caption or not probe.source_image_id else ctx.images(probe.source_image_id)
  text = probe.caption or probe.instruction
  if ctx.world.faithful is None or text is None:
    return None
  return ctx.world.faithful(source, text, ctx.images(probe.image_id))


def _exposed(ctx: Context, find: Find) -> bool:
  """Whether it took the new image: on the source, the same question has another true answer."""
  source = find.probe.source_image_id
  question = find.probe.question
  before = ctx.oracle.answer(source, question) if source else None
  return before is None or not ctx.judge.same(before, find.consensus, question=question)


def curve(real: _Real, attempts: Sequence[Attempt]) -> tuple[summary.CurvePoint, ...]:
  """Returns search success and effective modes over the steps of GRPO."""
  if not attempts:
    return ()
  last = max(a.probe.step for a in attempts) + 1
  width = max(last // _BINS, 1)
  points = []
  for start in range(0, last, width):
    own = [a for a in attempts if start <= a.probe.step < start + width]
    cover, r = real.ctx.oracle.coverage(own), real.rate(own)
    points.append(
      summary.CurvePoint(
        step=start + width,
        success=r.rate,
        n=r.n,
        ci95=r.ci95,
        effective_modes=cover and cover.effective_modes,
        effective_skills=cover and cover.effective_skills,
      )
    )
  return tuple(points)
