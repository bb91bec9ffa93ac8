# SPDX-License-Identifier: Apache-2.0
"""The summary of an audit, from the results of the stages that are done and the attempts.

A stage that did not run, and what only an oracle could tell, is None: not measured.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import sys

from auditdm_jax.audit import diversity, labels, precision, rates, summary
from auditdm_jax.audit.attempt import Attempt, Failure
from auditdm_jax.audit.figures import CONTROL_ARM, FEWER_ARM
from auditdm_jax.audit.ranking import RANKED
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import searched as searched_lib
from auditdm_jax.stages.asking import CONTROL as CONTROL_STAGE
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import (
  REPAIRED,
  Bootstrapped,
  Controlled,
  Evaluated,
  ModeRow,
  Repairs,
  Searched,
  Verified,
  accuracy_of,
)
from auditdm_jax.stages.rows import AttemptRow, RowReader, confirmed_of, queries_of, rate_of
from auditdm_jax.stages.run import BOOTSTRAP, RunFolder
from auditdm_jax.stages.truth import LEAST_FINDS, coverage, modes_of

_BINS = 15  # Points of the learning curve.


@dataclasses.dataclass(frozen=True)
class Round:
  """The results of the stages; None where one did not run."""

  verified: Verified
  evaluated: Evaluated | None = None
  searched: Searched | None = None
  controlled: Controlled | None = None
  repairs: Repairs | None = None
  reaudited: summary.Reaudited | None = None
  traced: summary.LaterRound | None = None  # None in the first round.
  bootstrapped: Bootstrapped | None = None

  @classmethod
  def of(cls, folder: RunFolder) -> "Round":
    """Returns what the folder of a round holds.

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
      folder.done("reaudit", summary.Reaudited),
      folder.done("trace", summary.LaterRound),
      folder.done(BOOTSTRAP, Bootstrapped),
    )


def later_rounds(ctx: Context) -> list[Round]:
  """Returns what the rounds after the first one hold, as far as they are traced."""
  done = [Round.of(f) for f in ctx.later().values() if f.done("trace", summary.LaterRound)]
  return done if ctx.round.is_first else []


def summarise(ctx: Context, done: Round) -> summary.Summary:
  """Returns what summary.json holds."""
  later = later_rounds(ctx)
  ctx.pool("images")  # So that their images are found by id.
  auditable = done.evaluated.auditable if done.evaluated else ()
  failures = ctx.folder.graded()  # So that the share of verified ones is the same with labels.
  people = labels.score(failures, ctx.folder.sample(), ctx.folder.labels())
  reader = RowReader(ctx, {f.probe.probe_id for f in failures if f.verified})
  trained = reader.rows(ctx.folder.completions())
  swept = reader.rows(ctx.folder.swept())
  found = [*trained, *swept]
  random = RowReader(ctx, reader.verified).rows(ctx.folder.control()) if done.controlled else None
  searched, oracle = done.searched, ctx.oracle.exists
  parts = searched_lib.Parts(trained, swept, random)
  checked = searched_lib.Checked.of(failures, done.verified.modes)
  cover = coverage(confirmed_of(found), auditable) if oracle else None
  grades, labelled = _grades(ctx, failures, people), done.verified.labelled
  seconds = ctx.folder.seconds()
  asked = compared(ctx.folder.attempts(), failures)
  return summary.Summary(
    target=ctx.models.target_name,
    compared=asked,
    search=searched and summary.Search(searched.prompt_only, searched.trained),
    search_modes=searched
    and summary.SearchModes(searched.prompt_only_modes, searched.trained_modes),
    precision=next((g.verified for g in grades if g.by == "oracle"), None),
    coverage=cover,
    gaps=_gaps(ctx, done.evaluated, cover) if done.evaluated and cover else {},
    modes=mode_scores(
      done.verified.modes,
      auditable,
      oracle=oracle,
    ),
    rectify=_accuracies(ctx, done.evaluated, done.repairs) if done.evaluated else {},
    reaudit=done.reaudited.success if done.reaudited else None,
    reaudits=tuple(r.reaudited for r in (done, *later) if r.reaudited),
    later=tuple(r.traced for r in later if r.traced),
    arms=_arms(trained, found, random, auditable, labelled, oracle=oracle),
    strategies=_strategies(ctx, found, reader.made),
    curve=_curve(trained, oracle=oracle),
    queries=summary.Queries(
      grpo=queries_of(trained),
      # A question that the group repeats is put to the models once.
      grpo_distinct=len({(r.step, r.probe_id) for r in trained}),
      discover=queries_of(swept),
      total=queries_of(found),
      control_random=None if random is None else queries_of(random),
      verify_looked_at=done.verified.funnel["looked_at"],
      bootstrap=done.bootstrapped.probes if done.bootstrapped else 0,
    ),
    find_precision=precision.best(labelled, grades),
    corrected=_corrected(labelled, found),
    grades=grades,
    seconds=seconds | {"total": round(sum(seconds.values()), 1)} if seconds else {},
    labels=people,
    right_failures=people and labels.product(asked.failures, people.verified),
    rounds=(first_row(done, found, cover, oracle=oracle), *later_rows(done, later)),
    stopped=_stopped(ctx, done, later),
    sweep=_sweep(ctx.folder, swept),
    calibration=searched_lib.calibrations(trained, swept),
    hacks=searched_lib.hacks(ctx, failures, parts.control_name if random is not None else None),
    yields=searched_lib.yields(ctx, parts, checked, auditable),
  )


def _sweep(folder: RunFolder, rows: Sequence[AttemptRow]) -> summary.Sweep | None:
  """Returns what the sweep found, with what it was chosen from; None if it chose nothing."""
  batches = folder.ranked()
  if not rows or not batches:
    return None
  picked = [
    (a.probe.score or 0.0, a.find is not None, a.probe.origin_id)
    for a in folder.swept()
    if a.probe.way in RANKED
  ]
  flops: Counter[str] = Counter()
  for batch in batches:
    flops.update(batch.flops)
  return summary.Sweep(
    success=rate_of(rows),
    proposals=sum(sum(batch.proposals.values()) for batch in batches),
    images=sum(batch.images for batch in batches) / len(batches),
    predicted=sum(score for score, _, _ in picked) / len(picked) if picked else None,
    found=rates.rate_by_image([find for _, find, _ in picked], [image for _, _, image in picked]),
    flops=dict(flops),
    returned=_returned(folder.swept()),
  )


def _returned(swept: Iterable[Attempt]) -> rates.Rate | None:
  """Returns the share of disagreements that returned in other words; None if none was tried."""
  again = [
    (a.again.returned, a.probe.origin_id) for a in swept if a.again and a.again.returned is not None
  ]
  return rates.rate_by_image([r for r, _ in again], [i for _, i in again]) if again else None


def nothing_new(number: int) -> str:
  """Returns why a round is the last one."""
  return f"round {number} found no mode at its budget that no earlier round had: it is the last one"


def _stopped(ctx: Context, done: Round, later: Sequence[Round]) -> str:
  """Returns why there are fewer rounds than the config wants; "" if there are not."""
  wanted, rounds = ctx.settings.rounds.count, [done, *later]
  last = rounds[-1].traced
  if last and not last.new:
    return nothing_new(last.number)
  if wanted > 1 and not ctx.settings.rectify.enabled:
    return "config.rectify.enabled is False: without a repair there is no target for another round"
  if done.repairs is not None and len(rounds) < wanted and not rounds[-1].reaudited:
    return f"round {len(rounds)} repaired nothing, so there is no target for another one"
  return ""


def compared(attempts: Iterable[Attempt], failures: Iterable[Failure]) -> summary.Compared:
  """Counts the distinct questions: those that can tell, and those that say nothing."""
  finds: set[str] = set()
  last: dict[str, tuple[str, str | None]] = {}  # Image and, if nothing can be told, the reason.
  for a in attempts:
    if a.verdict is not None:
      reason = None if a.consensus is not None else sys.intern(a.verdict.reason)
      last[a.probe.probe_id] = sys.intern(a.probe.origin_id), reason
      if a.find:
        finds.add(a.probe.probe_id)
  verified: set[str] = set()
  looked_at: set[str] = set()
  for f in failures:
    looked_at.add(f.probe.probe_id)
    if f.verified:
      verified.add(f.probe.probe_id)
  agreed = [p for p, (_, reason) in last.items() if reason is None or p in finds]
  left_out = Counter(r for p, (_, r) in last.items() if r is not None and p not in finds)
  return summary.Compared(
    asked=len(last),
    failures=rates.rate_by_image([p in verified for p in agreed], [last[p][0] for p in agreed]),
    left_out=dict(sorted(left_out.items())),
    not_looked_at=len(finds - looked_at),
  )


def _grades(
  ctx: Context, failures: Iterable[Failure], people: labels.LabelScores | None
) -> tuple[precision.GradePrecision, ...]:
  """Returns how many finds are real: by people, by the oracle and by labels, where they know."""
  knows: dict[str, Callable[[Failure], bool | None]] = {"labels": precision.by_labels}
  if ctx.oracle.exists:
    knows["oracle"] = lambda f: ctx.oracle.truth(f).confirmed
  required = ctx.settings.verify.required
  rows = [precision.of_finds(failures, own, by=by, required=required) for by, own in knows.items()]
  if people:
    drawn = labels.labelled(failures, ctx.folder.sample(), ctx.folder.labels())
    row = precision.of_finds(drawn, precision.by_people, by="people", required=required)
    corrected = dict(finds=people.finds, verified=people.verified, rejected=people.rejected)
    rows.insert(0, row and dataclasses.replace(row, **corrected))
  return tuple(row for row in rows if row)


def _corrected(
  labelled: precision.FindPrecision | None, rows: Iterable[AttemptRow]
) -> rates.Corrected | None:
  """Returns on how many of the distinct questions with a consensus the target is wrong.

  As on labelled questions, what counts is the verdict on one wording.
  """
  if labelled is None:
    return None
  last = {r.probe_id: r for r in rows if r.asked}
  own = [r for r in last.values() if r.agreed]
  flagged = [r.disagreed for r in own]
  return labelled.correct(rates.rate_by_image(flagged, [r.origin_id for r in own]))


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
    rows[name] = accuracy_of(model.table, of=model)
  return rows


def _arms(
  trained: Sequence[AttemptRow],
  found: Sequence[AttemptRow],
  random: Sequence[AttemptRow] | None,
  auditable: Sequence[str],
  labelled: precision.FindPrecision | None,
  *,
  oracle: bool,
) -> dict[str, summary.Arm]:
  """Returns a row for each source of probes, for their sum and for the control."""
  groups: dict[str, Sequence[AttemptRow]] = {"grpo": trained} if trained else {}
  swept: dict[str, list[AttemptRow]] = {}
  for row in found[len(trained) :]:
    swept.setdefault(row.arm, []).append(row)
  groups |= swept | {summary.ALL_ARMS: found}
  if random is not None:
    few = queries_of(random) < queries_of(found)
    groups[FEWER_ARM if few else CONTROL_ARM] = random
  reached = {name: confirmed_of(own) for name, own in groups.items()} if oracle else {}
  varied = diversity.compared({name: modes_of(own) for name, own in reached.items()})
  arms = {}
  for name, own in groups.items():
    cover = coverage(reached[name], auditable) if oracle else None
    arms[name] = summary.Arm(
      queries=queries_of(own),
      # Without an oracle nobody verified the finds of the control.
      verified=None if name in (CONTROL_ARM, FEWER_ARM) and not oracle else rate_of(own),
      confirmed_unique=cover and cover.confirmed,
      gaps_found=cover and cover.gaps_found,
      queries_to_gaps=cover and cover.queries_to_gaps,
      modes=varied.get(name),
      corrected=_corrected(labelled, own),
    )
  return arms


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


def first_row(
  done: Round, found: Sequence[AttemptRow], cover: summary.Coverage | None, *, oracle: bool
) -> summary.RoundRow:
  """Returns the row of the first round.

  Args:
    done: its results.
    found: its attempts.
    cover: how far its confirmed finds reach.
    oracle: whether the world has one.
  """
  fresh = done.verified.fresh
  held = [m for m in done.verified.modes if m.status == "confirmed"]
  finds = list({r.probe_id: r for r in reversed(found) if r.find}.values())
  labelled = done.verified.labelled
  false = rates.rate_by_image([not r.truth.confirmed for r in finds], [r.origin_id for r in finds])
  row = summary.RoundRow(
    round=done.traced.number if done.traced else 1,
    confirmed=len(held),
    new=len(held),
    gaps_found=cover and sum(n >= LEAST_FINDS for n in cover.per_gap.values()),
    false_positive=false if oracle else labelled and labelled.real.complement,
    queries=queries_of(found) + (fresh.for_all + fresh.for_modes if fresh else 0),
  )
  return _with_repair(row, done, [])


def later_rows(first: Round, later: Sequence[Round]) -> list[summary.RoundRow]:
  """Returns the rows of the rounds after the first one."""
  rows, before = [], [first]
  for done in later:
    if (traced := done.traced) is None:
      continue
    labelled, right = done.verified.labelled, traced.finds
    gaps = [n for gap, n in traced.finds_by_gap.items() if gap != "not planted"]
    row = summary.RoundRow(
      round=traced.number,
      confirmed=traced.confirmed,
      new=len(traced.new),
      gaps_found=sum(n >= LEAST_FINDS for n in gaps) if right else None,
      false_positive=right.complement if right else labelled and labelled.real.complement,
      queries=traced.queries,
    )
    rows.append(_with_repair(row, done, before))
    before.append(done)
  return rows


def _with_repair(row: summary.RoundRow, done: Round, before: Sequence[Round]) -> summary.RoundRow:
  """Adds what the repair of a round changed; `before` are the rounds before it."""
  model = done.repairs.models.get(REPAIRED) if done.repairs else None
  if model:
    accuracy = accuracy_of(model.table, of=model)
    labels = next((x.right for x in model.labels), None)
    row = dataclasses.replace(row, accuracy=accuracy, examples=model.examples, labels=labels)
  if (after := done.reaudited) is None:
    return row
  held = {m.mode_id for m in done.verified.modes if m.status == "confirmed"}
  own = [_is_mended(m) for m in after.modes if m.round == row.round and m.mode_id in held]
  once = {m.mode_id for r in before if r.reaudited for m in r.reaudited.modes if _is_mended(m)}
  still = [_is_mended(m) for m in after.modes if m.round < row.round and m.mode_id in once]
  return dataclasses.replace(
    row,
    repaired=rates.rate(sum(own), len(own)),
    kept=rates.rate(sum(still), len(still)) if before else None,
    rest=after.rest,
    queries=row.queries + after.queries,
  )


def _is_mended(mode: summary.ModeChange) -> bool:
  return mode.status in ("fixed", "improved")


def _strategies(
  ctx: Context, rows: Sequence[AttemptRow], made: Mapping[str, Sequence[Attempt]]
) -> dict[str, summary.StrategyRow]:
  """Returns, by strategy, real failures, faithful images, and kinds of failure it alone found."""
  by: dict[str, list[AttemptRow]] = {}
  for row in rows:
    by.setdefault(row.strategy, []).append(row)
  modes = {name: {r.truth.mode for r in own if r.truth.confirmed} for name, own in by.items()}
  return {
    name: summary.StrategyRow(
      verified=rate_of(own),
      only_here=len(modes[name] - set().union(*(m for s, m in modes.items() if s != name)))
      if ctx.oracle.exists
      else None,
      exposed_by_image=dict(Counter(r.exposed for r in own if r.exposed)) if name in made else None,
      faithful=_faithful_share(ctx, made[name]) if name in made and ctx.world.faithful else None,
    )
    for name, own in by.items()
  }


def _faithful_share(ctx: Context, made: Sequence[Attempt]) -> rates.Rate:
  judged = [(_faithful(ctx, a), a.probe.origin_id) for a in made]
  told = [(faithful, origin) for faithful, origin in judged if faithful is not None]
  return rates.rate_by_image([f for f, _ in told], [origin for _, origin in told])


def _faithful(ctx: Context, a: Attempt) -> bool | None:
  probe = a.probe
  source = None if probe.caption or not probe.source_image_id else ctx.images(probe.source_image_id)
  text = probe.caption or probe.instruction
  if ctx.world.faithful is None or text is None:
    return None
  return ctx.world.faithful(source, text, ctx.images(probe.image_id))


def _curve(rows: Sequence[AttemptRow], *, oracle: bool) -> tuple[summary.CurvePoint, ...]:
  """Returns search success and effective modes over the steps of GRPO."""
  if not rows:
    return ()
  last = max(r.step for r in rows) + 1
  width = max(last // _BINS, 1)
  bins: list[list[AttemptRow]] = [[] for _ in range(0, last, width)]
  for row in rows:
    bins[row.step // width].append(row)
  samples = [modes_of(confirmed_of(own)) if oracle else None for own in bins]
  sizes = [s.total for s in samples if s and s.total >= diversity.LEAST]
  points = []
  for i, (own, sample) in enumerate(zip(bins, samples, strict=True)):
    r, common = rate_of(own), None
    if sizes and sample and sample.total >= min(sizes):
      _, common, _ = diversity.hill(sample.counts, min(sizes))
    points.append(
      summary.CurvePoint(
        step=(i + 1) * width, success=r.rate, n=r.n, ci95=r.ci95, effective_modes=common
      )
    )
  return tuple(points)
