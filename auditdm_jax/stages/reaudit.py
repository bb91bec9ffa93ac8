# SPDX-License-Identifier: Apache-2.0
"""reaudit: the repaired target is audited again.

1. The known modes: the same fresh probes to the target before and after its repair, paired.
2. The same trained auditor against the repaired target.
3. GRPO goes on from the trained auditor against the repaired target. What it finds is named again,
   confirmed on fresh probes, and traced to the modes of the first round.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import compare, confirm, rates, rounds
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt, unique_attempts, unique_finds
from auditdm_jax.audit.confirm import FreshProbe
from auditdm_jax.audit.judge import Same
from auditdm_jax.audit.summary import ModeChange, RestChange, SecondRound, TracedMode
from auditdm_jax.audit.taxonomy import Taxonomy, discover_modes
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import asking, grading
from auditdm_jax.stages import fresh as fresh_lib
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.fresh import Fresh
from auditdm_jax.stages.results import Verified
from auditdm_jax.vlm import Vlm

NAME = "round2"
_EDGE = 15  # Steps at either end of the second training, whose success is told apart.


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "reaudit") as ctx:
    done = run(ctx)
    for mode in done.modes:
      print(mode.name, mode.status, mode.before, "->", mode.after)
    for mode in done.found:
      print(mode.name, mode.relation, *mode.parents)
  return 0


def run(ctx: Context) -> SecondRound:
  """Audits the repaired target.

  Raises:
    UserError: there is none.
  """
  if (found := ctx.folder.done("reaudit", SecondRound)) is not None:
    return found
  verified = ctx.folder.done("verify", Verified)
  if verified is None or not (ctx.folder.repaired() / "config.json").exists():
    raise UserError(
      f"{ctx.folder.path} holds no repaired target; run the loop, or verify and rectify, first"
    )
  with paths.reading(ctx.folder.repaired()) as folder:
    repaired = ctx.models.load(folder)
  known, bank = verified.taxonomy, ctx.models.bank(repaired)
  trained, n = ctx.settings.optim.steps or None, ctx.settings.discover.search_probes
  again = asking.search_asker(ctx, bank).ask(trained, n, arm=NAME, walk=asking.SEARCH)
  steps = ctx.settings.round2.steps
  modes, rest = ledger(ctx, verified, repaired)
  start = ctx.models.auditor_params(ctx.folder.auditors()[trained] if trained else None)
  asking.train_auditor(ctx, bank, name=NAME, steps=steps, start=start)
  attempts = list(ctx.folder.completions(NAME))
  found, asked = traced(ctx, known, attempts, bank)
  finds = unique_finds(attempts)
  truths = [ctx.oracle.truth(find) for find in finds]
  return ctx.folder.finish(
    "reaudit",
    SecondRound(
      success=grading.success(ctx, again, bank=bank),
      modes=modes,
      first_steps=grading.success(ctx, [a for a in attempts if a.probe.step < _EDGE], bank=bank),
      last_steps=grading.success(
        ctx, [a for a in attempts if a.probe.step >= steps - _EDGE], bank=bank
      ),
      finds_by_gap=dict(Counter(t.gap or "not planted" for t in truths if t.confirmed)),
      found=found,
      rest=rest,
      queries=len(again) + len(attempts) + asked,
      finds=rates.rate_by_image([t.confirmed for t in truths], [f.probe.origin_id for f in finds])
      if ctx.oracle.exists
      else None,
    ),
  )


def traced(
  ctx: Context, known: Taxonomy, attempts: Sequence[Attempt], bank: ModelBank
) -> tuple[tuple[TracedMode, ...], int]:
  """Names the modes of the second round, confirms them, and traces them to the first one's.

  Args:
    ctx: the run's config and models.
    known: the modes of the first round.
    attempts: of the second round.
    bank: the repaired target and the references.

  Returns:
    The modes, and how many fresh probes were asked.
  """
  unique = unique_attempts(attempts)
  config = ctx.settings.taxonomy.modes
  second = discover_modes(unique, ctx.seeds, config=config, gallery=ctx.gallery)
  drawn = fresh_lib.draw(ctx, second, bank=bank, name=f"fresh-{NAME}")
  descents = rounds.descent(
    known,
    second,
    known.match_attempts(unique, ctx.gallery),
    second.match_attempts(unique, ctx.gallery),
  )
  after = drawn.tests(ctx, second)
  before = confirm.confirm(second.modes, _before(ctx, drawn), config=ctx.settings.taxonomy.fresh)
  names = {m.mode_id: m.name for m in known.modes}
  found = tuple(
    TracedMode(
      mode_id=mode.mode_id,
      name=mode.name,
      definition=mode.definition,
      relation=rounds.relation(origin, now, before=was),
      status=now.status,
      parents=tuple(names[i] for i in origin.parents),
      covered=origin.covered,
      before=was.fresh if was.fresh.n else None,
      after=now.fresh if now.fresh.n else None,
      k=mode.k,
      n=mode.n,
    )
    for mode, origin, now, was in zip(second.modes, descents, after, before, strict=True)
  )
  return found, len(drawn.attempts)


def _before(ctx: Context, drawn: Fresh) -> list[FreshProbe]:
  """The same fresh probes, put to the target as it was audited."""
  told = [(a, p) for a, p in zip(drawn.attempts, drawn.probes, strict=True) if p.failed is not None]
  target = ctx.models.target
  answers = ctx.models.bank().answers(
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


_REST = ""  # The id of no mode: probes outside all of them.


def ledger(
  ctx: Context, verified: Verified, repaired: Vlm
) -> tuple[tuple[ModeChange, ...], RestChange | None]:
  """Compares failure rates on fresh probes before and after the repair.

  Returns:
    The known modes, and what is outside them.
  """
  known = verified.taxonomy
  before = fresh_lib.draw(ctx, known, bank=ctx.models.bank())
  if not before.attempts:
    return (), None
  bank: ModelBank = ctx.models.bank(repaired)
  attempts = before.attempts
  questions = [a.probe.question for a in attempts]
  answers = bank.answers(
    ctx.images, questions, image_ids=[a.probe.image_id for a in attempts], models=[repaired.name]
  )[repaired.name]
  # Probes outside all modes tell of the rest if they were asked whatever they are.
  ids = [
    m.mode_id if m else _REST if p.for_all else None
    for m, p in zip(before.matched, before.probes, strict=True)
  ]
  pairs = compare.pairs(
    ids,
    [a.probe.probe_id for a in attempts],
    [a.probe.image_id for a in attempts],
    [a.consensus for a in attempts],
    [a.verdict.answers[a.verdict.target] or "" for a in attempts if a.verdict],
    answers,
    judge=ctx.judge,
    questions=questions,
  )
  config, names = ctx.settings.round2.compare, {m.mode_id: m.name for m in known.modes}
  changes = tuple(
    ModeChange(
      e.mode_id, names.get(e.mode_id, e.mode_id), e.status, e.old, e.new, e.change_ci95, e.q
    )
    for e in compare.compare([p for p in pairs if p.mode_id != _REST], config=config).entries
  )
  rest = compare.compare([p for p in pairs if p.mode_id == _REST], config=config).entries
  return changes, RestChange(rest[0].old, rest[0].new, rest[0].change_ci95) if rest else None
