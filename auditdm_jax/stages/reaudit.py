# SPDX-License-Identifier: Apache-2.0
"""reaudit: what a round's repair changed.

1. All modes that are known so far, those of earlier rounds too: the fresh probes that they were
   measured on, to the repaired target. Each is compared with the target of the round that found it.
2. The same probes outside all modes: what the repair made worse.
3. The auditor of the round against the repaired target.
"""

import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import compare
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.summary import ModeChange, Reaudited, RestChange
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import asking, grading
from auditdm_jax.stages import fresh as fresh_lib
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Verified
from auditdm_jax.stages.run import RunFolder

_REST = ""  # The id of no mode: probes outside all of them.


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "reaudit") as ctx:
    for mode in run(ctx).modes:
      print(f"round {mode.round}", mode.name, mode.status, mode.before, "->", mode.after)
  return 0


def run(ctx: Context) -> Reaudited:
  """Audits the target that this round repaired.

  Raises:
    UserError: there is none.
  """
  if (found := ctx.folder.done("reaudit", Reaudited)) is not None:
    return found
  verified = ctx.folder.done("verify", Verified)
  if verified is None or not (ctx.folder.repaired() / "config.json").exists():
    raise UserError(
      f"{ctx.folder.path} holds no repaired target; run the loop, or verify and rectify, first"
    )
  ctx.pool("fresh")  # So that their images are found by id.
  repaired = ctx.models.load(ctx.folder.repaired())
  bank, trained = ctx.models.bank(repaired), ctx.settings.optim.steps or None
  again = asking.search_asker(ctx, bank).ask(
    trained, ctx.settings.discover.search_probes, arm="reaudit", walk=asking.SEARCH
  )
  changes, rest, queries = [], None, len(again)
  for number, folder in enumerate([*ctx.earlier(), ctx.folder], 1):
    if (done := folder.done("verify", Verified)) is not None:
      own, rest, asked = ledger(ctx, folder, done, bank, number=number)
      changes, queries = [*changes, *own], queries + asked
  return ctx.folder.finish(
    "reaudit",
    Reaudited(
      number=ctx.round.number,
      success=grading.success(ctx, again, bank=bank),
      modes=tuple(changes),
      rest=rest,
      queries=queries,
    ),
  )


def ledger(
  ctx: Context, folder: RunFolder, verified: Verified, bank: ModelBank, *, number: int
) -> tuple[list[ModeChange], RestChange | None, int]:
  """Compares failure rates on the fresh probes of a round before and after repairs.

  Args:
    ctx: the run's images and judge.
    folder: of the round that found the modes.
    verified: its modes.
    bank: the repaired target and the references.
    number: of that round.

  Returns:
    The modes, what is outside them, and how many probes were asked.
  """
  known = verified.taxonomy
  before = fresh_lib.kept(ctx, folder, known)
  if not known.modes or not before.attempts:
    return [], None, 0
  attempts = before.attempts
  questions = [a.probe.question for a in attempts]
  answers = bank.answers(
    ctx.images, questions, image_ids=[a.probe.image_id for a in attempts], models=[bank.target]
  )[bank.target]
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
  config, names = ctx.settings.rounds.compare, {m.mode_id: m.name for m in known.modes}
  entries = compare.compare([p for p in pairs if p.mode_id != _REST], config=config).entries
  changes = [
    ModeChange(
      e.mode_id, names.get(e.mode_id, e.mode_id), e.status, e.old, e.new, e.change_ci95, e.q, number
    )
    for e in entries
  ]
  rest = compare.compare([p for p in pairs if p.mode_id == _REST], config=config).entries
  outside = RestChange(rest[0].old, rest[0].new, rest[0].change_ci95) if rest else None
  return changes, outside, len(attempts)
