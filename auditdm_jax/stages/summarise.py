# SPDX-License-Identifier: Apache-2.0
"""The summary of a loop, from the results of its stages and the attempts in its folder."""

from collections import Counter
from collections.abc import Sequence
import dataclasses

from auditdm_jax.audit import rates, summary
from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import (
  Evaluated,
  ModeRow,
  Repairs,
  Searched,
  Verified,
  accuracy_of,
)
from auditdm_jax.stages.truth import ModeKey

CONTROL = "control: random, equal queries"
ALL_ARMS = "all of the above"
_FAITHFUL = 500  # Made images per strategy whose content is checked.
_BINS = 15  # Points of the learning curve.


@dataclasses.dataclass(frozen=True)
class Round:
  """The results of the stages; `second` is None where the target was not audited again."""

  evaluated: Evaluated
  searched: Searched
  verified: Verified
  repairs: Repairs
  second: summary.SecondRound | None


def summarise(ctx: Context, done: Round) -> summary.Summary:
  """Returns what summary.json holds, except for the seconds."""
  ctx.pool("images")  # So that their images are found by id.
  auditable, evaluated, found = done.evaluated.auditable, done.evaluated, ctx.folder.attempts()
  trained, random = ctx.folder.completions(), ctx.folder.control()
  cover = ctx.oracle.coverage(found, auditable)
  target = evaluated.tables[ctx.models.target_name]
  return summary.Summary(
    target=ctx.models.target_name,
    search=summary.Search(done.searched.prompt_only, done.searched.trained),
    search_modes=summary.SearchModes(done.searched.prompt_only_modes, done.searched.trained_modes),
    precision=done.verified.precision,
    coverage=cover,
    gaps={
      gap: summary.Gap(target.get(f"gap: {gap}"), gap in auditable, cover.per_gap.get(gap, 0))
      for gap in ctx.world.gaps
    },
    modes=mode_scores(
      done.verified.modes,
      auditable,
      threshold=ctx.settings.taxonomy.modes.threshold,
      oracle=ctx.oracle.exists,
    ),
    rectify=_accuracies(ctx, evaluated, done.repairs),
    reaudit=done.second.success if done.second else None,
    second_round=done.second,
    arms=_arms(ctx, trained, found, random, auditable),
    strategies=strategies(ctx, found),
    curve=curve(ctx, trained),
    queries=summary.Queries(
      grpo=len(trained),
      # A question that the group repeats is put to the models once.
      grpo_distinct=len({(a.probe.step, a.probe.probe_id) for a in trained}),
      discover=len(found) - len(trained),
      total=len(found),
      control_random=len(random),
      verify_looked_at=done.verified.funnel["looked_at"],
    ),
  )


def _accuracies(
  ctx: Context, evaluated: Evaluated, repairs: Repairs
) -> dict[str, summary.Accuracy]:
  """Returns held-out accuracy of the target, of its larger sibling and of the repaired models."""
  rows = {"baseline": accuracy_of(evaluated.tables[ctx.models.target_name])}
  if ctx.models.sibling_name:
    rows["larger_sibling"] = accuracy_of(evaluated.tables[ctx.models.sibling_name])
  for name, model in repairs.models.items():
    rows[name] = accuracy_of(model.table, examples=model.examples)
  return rows


def _arms(
  ctx: Context,
  trained: Sequence[Attempt],
  found: Sequence[Attempt],
  random: Sequence[Attempt],
  auditable: Sequence[str],
) -> dict[str, summary.Arm]:
  """Returns a row for each source of probes, for their sum and for the control."""
  groups: dict[str, list[Attempt]] = {"grpo": list(trained)}
  for a in found[len(trained) :]:
    groups.setdefault(a.probe.arm, []).append(a)
  groups |= {ALL_ARMS: list(found), CONTROL: list(random)}
  key = ModeKey(ctx.seeds)
  return {name: _arm(ctx, own, key, auditable) for name, own in groups.items()}


def _arm(
  ctx: Context, attempts: Sequence[Attempt], key: ModeKey, auditable: Sequence[str]
) -> summary.Arm:
  kinds = Counter(k for k in map(key, attempts) if k)
  cover = ctx.oracle.coverage(attempts, auditable)
  return summary.Arm(
    queries=len(attempts),
    verified=ctx.oracle.success(attempts),
    confirmed_unique=cover.confirmed,
    gaps_found=cover.gaps_found,
    effective_modes=cover.effective_modes,
    effective_skills=cover.effective_skills,
    unseen_mass=rates.good_turing(kinds.values()) if kinds else None,
  )


def mode_scores(
  modes: Sequence[ModeRow], auditable: Sequence[str], *, threshold: float, oracle: bool
) -> summary.ModeScores:
  """Scores modes by the oracle.

  Recall: auditable gaps that some mode is about. Precision: modes the oracle bears out. A mode is
  about a gap if most of its oracle-confirmed fresh failures lie in it. It is borne out if the
  oracle confirms failures on at least the taxonomy's `threshold` of its fresh probes. Without an
  oracle neither can be measured: both have n = 0.
  """
  measured = [(m, m.fresh) for m in modes if oracle and m.fresh and m.fresh.n > 0]
  right = [m for m, fresh in measured if m.confirmed / fresh.n >= threshold]
  hit = {m.gap for m in right if m.gap and m.gap_share >= 0.5}
  return summary.ModeScores(
    recall=rates.rate(sum(g in hit for g in auditable), len(auditable)),
    precision=rates.rate(len(right), len(measured)),
    found=len(modes),
  )


def strategies(ctx: Context, attempts: Sequence[Attempt]) -> dict[str, summary.StrategyRow]:
  """Returns, by strategy, confirmed share, faithful images, and kinds of failure it alone found."""
  by: dict[str, list[Attempt]] = {}
  for a in attempts:
    by.setdefault(a.probe.strategy, []).append(a)
  modes = {
    name: {t.mode for t in (ctx.oracle.truth(a.find) for a in own) if t.confirmed}
    for name, own in by.items()
  }
  return {
    name: summary.StrategyRow(
      verified=ctx.oracle.success(own),
      only_here=len(modes[name] - set().union(*(m for s, m in modes.items() if s != name))),
      **_images(ctx, [a for a in own if _is_made(a)]),
    )
    for name, own in by.items()
  }


def _is_made(a: Attempt) -> bool:
  probe = a.probe
  return probe.image_id != probe.source_image_id and bool(probe.caption or probe.instruction)


def _images(ctx: Context, made: Sequence[Attempt]) -> dict[str, object]:
  """Returns what a strategy's row says of the images that it made, if it made any."""
  if not made:
    return {}
  exposed = Counter()
  for a in made:
    truth = ctx.oracle.truth(a.find)
    if a.find and truth.gap and _exposed(ctx, a.find):
      exposed[truth.gap] += 1
  row: dict[str, object] = {"exposed_by_image": dict(exposed)}
  if ctx.world.faithful:
    judged = [f for f in (_faithful(ctx, a) for a in made[:_FAITHFUL]) if f is not None]
    row["faithful"] = rates.rate(sum(judged), len(judged))
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


def curve(ctx: Context, attempts: Sequence[Attempt]) -> tuple[summary.CurvePoint, ...]:
  """Returns search success and effective modes over the steps of GRPO."""
  if not attempts:
    return ()
  last = max(a.probe.step for a in attempts) + 1
  width = max(last // _BINS, 1)
  points = []
  for start in range(0, last, width):
    own = [a for a in attempts if start <= a.probe.step < start + width]
    cover, r = ctx.oracle.coverage(own), ctx.oracle.success(own)
    points.append(
      summary.CurvePoint(
        step=start + width,
        success=r.rate,
        n=r.n,
        ci95=r.ci95,
        effective_modes=cover.effective_modes,
        effective_skills=cover.effective_skills,
      )
    )
  return tuple(points)
