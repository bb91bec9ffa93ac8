# SPDX-License-Identifier: Apache-2.0
"""trace: what a later round found, and what its modes are to those of the rounds before.

Its modes come from its own attempts alone. They are traced to the earlier ones by their members,
and their fresh probes go to the target of the round before as well, see `audit.rounds`. A round
that finds no mode that is new to the audit is the last one.

Reads:  WORKDIR/rounds/N, whose failures are verified, and the rounds before.
Writes: WORKDIR/rounds/N/trace.
Costs:  the fresh probes of the round's modes, put to the target of the round before.
"""

from collections import Counter
from collections.abc import Iterable
import dataclasses
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import confirm, rates, rounds
from auditdm_jax.audit.attempt import Attempt, unique_attempts, unique_finds
from auditdm_jax.audit.confirm import FreshProbe
from auditdm_jax.audit.judge import Same
from auditdm_jax.audit.mode import Mode
from auditdm_jax.audit.summary import LaterRound, TracedMode
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import fresh as fresh_lib
from auditdm_jax.stages import grading
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.fresh import Fresh
from auditdm_jax.stages.results import Verified

_EDGE = 15  # Steps at either end of the training, whose success is told apart.


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "trace") as ctx:
    for mode in run(ctx).found:
      print(mode.name, mode.relation, *mode.parents)
  return 0


def run(ctx: Context) -> LaterRound:
  """Traces the modes of this round.

  Raises:
    UserError: it is the first one, or its failures are not verified yet.
  """
  if (found := ctx.folder.done("trace", LaterRound)) is not None:
    return found
  verified = ctx.folder.done("verify", Verified)
  if ctx.round.is_first or verified is None:
    why = "is the first round" if ctx.round.is_first else "has no verified failures"
    raise UserError(f"{ctx.folder.path} {why}; a later round is traced, after the stage verify")
  ctx.pool("images")  # So that their images are found by id.
  bank, steps = ctx.models.bank(), ctx.settings.optim.steps
  # GRPO's steps tell how the search went.
  asked = list(ctx.folder.completions())
  finds = unique_finds(ctx.folder.attempts())
  truths = [ctx.oracle.truth(find) for find in finds]
  probes = verified.fresh
  return ctx.folder.finish(
    "trace",
    LaterRound(
      number=ctx.round.number,
      first_steps=grading.success(ctx, [a for a in asked if a.probe.step < _EDGE], bank=bank),
      last_steps=grading.success(
        ctx, [a for a in asked if a.probe.step >= steps - _EDGE], bank=bank
      ),
      finds_by_gap=dict(Counter(t.gap or "not planted" for t in truths if t.confirmed)),
      finds=rates.rate_by_image([t.confirmed for t in truths], [f.probe.origin_id for f in finds])
      if ctx.oracle.exists
      else None,
      found=traced(ctx, verified),
      queries=sum(a.queries for a in ctx.folder.attempts())
      + (probes.for_all + probes.for_modes if probes else 0),
    ),
  )


def traced(ctx: Context, verified: Verified) -> tuple[TracedMode, ...]:
  """Traces the modes of this round to those of all rounds before."""
  modes = verified.taxonomy.modes
  if not modes:
    return ()
  unique = unique_attempts(ctx.folder.attempts())
  earlier, was = _earlier(ctx, unique)
  now = verified.taxonomy.match_attempts(unique, ctx.gallery)
  descents = rounds.descent(list(earlier.values()), modes, was, now)
  drawn = fresh_lib.kept(ctx, ctx.folder, verified.taxonomy)
  after = drawn.tests(ctx, verified.taxonomy)
  before = confirm.confirm(modes, _before(ctx, drawn), config=ctx.settings.taxonomy.fresh)
  return tuple(
    TracedMode(
      mode_id=mode.mode_id,
      name=mode.name,
      definition=mode.definition,
      relation=rounds.relation(origin, now, before=was),
      status=now.status,
      parents=tuple(earlier[i].name for i in origin.parents),
      covered=origin.covered,
      before=was.fresh if was.fresh.n else None,
      after=now.fresh if now.fresh.n else None,
      k=mode.k,
      n=mode.n,
    )
    for mode, origin, now, was in zip(modes, descents, after, before, strict=True)
  )


def _earlier(
  ctx: Context, attempts: Iterable[Attempt]
) -> tuple[dict[str, Mode], list[Mode | None]]:
  """Returns the modes of all rounds before by id, and which of them each attempt falls under."""
  modes: dict[str, Mode] = {}
  under: list[Mode | None] = [None for _ in attempts]
  for folder in ctx.earlier():
    if (done := folder.done("verify", Verified)) is None:
      continue
    modes = {m.mode_id: m for m in done.taxonomy.modes} | modes
    own = done.taxonomy.match_attempts(attempts, ctx.gallery)
    under = [a or b for a, b in zip(under, own, strict=True)]
  return modes, under


def _before(ctx: Context, drawn: Fresh) -> list[FreshProbe]:
  """The same fresh probes, put to the target of the round before."""
  told = [(a, p) for a, p in zip(drawn.attempts, drawn.probes, strict=True) if p.failed is not None]
  target = ctx.models.load(ctx.round.before.target(ctx.written))
  answers = ctx.models.bank(target).answers(
    ctx.images,
    [a.probe.question for a, _ in told],
    image_ids=[a.probe.image_id for a, _ in told],
    models=[target.name],
  )[target.name]
  rows = [
    (a.probe.question, said, a.consensus or "") for (a, _), said in zip(told, answers, strict=True)
  ]
  same = ctx.judge.compare_all(rows)
  return [
    dataclasses.replace(
      p, failed=None if not said or how is Same.UNDECIDED else how is Same.DIFFERENT
    )
    for (_, p), said, how in zip(told, answers, same, strict=True)
  ]
