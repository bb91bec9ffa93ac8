# SPDX-License-Identifier: Apache-2.0
"""reaudit: the repaired target is audited again.

1. The known modes: the same fresh probes to the target before and after its repair, paired.
2. The same trained auditor against the repaired target.
3. GRPO goes on from the trained auditor against the repaired target; what it finds is named again,
   and modes that the first round did not have are listed.
"""

from collections import Counter
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import compare
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import unique_attempts, unique_finds
from auditdm_jax.audit.summary import ModeChange, NewMode, SecondRound
from auditdm_jax.audit.taxonomy import Taxonomy, discover_modes
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import asking, grading
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Verified
from auditdm_jax.vlm import Vlm

NAME = "round2"
_EDGE = 15  # Steps at either end of the second training, whose success is told apart.


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "reaudit") as ctx:
    for mode in run(ctx).modes:
      print(mode.name, mode.status, mode.before, "->", mode.after)
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
  modes = ledger(ctx, known, repaired)
  start = ctx.models.auditor_params(ctx.folder.auditors()[trained] if trained else None)
  asking.train_auditor(ctx, bank, name=NAME, steps=steps, start=start)
  attempts = ctx.folder.completions(NAME)
  found_now = discover_modes(
    unique_attempts(attempts), ctx.seeds, config=ctx.settings.taxonomy.modes
  )
  old = {m.name for m in known.modes}
  truths = [ctx.oracle.truth(find) for find in unique_finds(attempts)]
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
      new_modes=tuple(
        NewMode(m.name, m.definition, m.k, m.n) for m in found_now.modes if m.name not in old
      ),
    ),
  )


def ledger(ctx: Context, known: Taxonomy, repaired: Vlm) -> tuple[ModeChange, ...]:
  """Compares each known mode's failure rate on fresh probes before and after the repair."""
  before = asking.fresh_attempts(ctx)
  if not before:
    return ()
  bank: ModelBank = ctx.models.bank(repaired)
  questions = [a.probe.question for a in before]
  consensus = [a.consensus for a in before]
  answers = bank.answers(
    ctx.images, questions, image_ids=[a.probe.image_id for a in before], models=[repaired.name]
  )[repaired.name]
  modes = known.match(questions, consensus)
  pairs = compare.pairs(
    [m.mode_id if m else None for m in modes],
    [a.probe.probe_id for a in before],
    [a.probe.image_id for a in before],
    consensus,
    [a.verdict.answers[a.verdict.target] or "" for a in before if a.verdict],
    answers,
    judge=ctx.judge,
    questions=questions,
  )
  names = {m.mode_id: m.name for m in known.modes}
  return tuple(
    ModeChange(
      e.mode_id, names.get(e.mode_id, e.mode_id), e.status, e.old, e.new, e.change_ci95, e.q
    )
    for e in compare.compare(pairs, config=ctx.settings.round2.compare).entries
  )
