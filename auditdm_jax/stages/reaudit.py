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

from auditdm_jax.audit import compare, taxonomy
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import attempts as attempts_lib
from auditdm_jax.stages import train, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.vlm import Vlm

NAME = "round2"
_EDGE = 15  # Steps at either end of the second training, whose success is told apart.


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "reaudit") as ctx:
    if (
      ctx.done("verify") is None or not (workdir / "rectify" / "repaired" / "config.json").exists()
    ):
      raise UserError(
        f"{workdir} holds no repaired target; run the loop, or verify and rectify, first"
      )
    result = run(ctx)
    for mode in result["modes"]:
      print(mode["name"], mode["status"], mode["before"], "->", mode["after"])
  return 0


def run(ctx: Context) -> dict:
  """Ledger of the old modes, success of the old auditor, finds and new modes of round two."""
  if (found := ctx.done("reaudit")) is not None:
    return found
  with paths.reading(ctx.workdir / "rectify" / "repaired") as folder:
    repaired = ctx.load(folder)
  known = taxonomy.Taxonomy.from_dict(ctx.done("verify")["taxonomy"])
  bank = ctx.bank(repaired)
  again = train.search_asker(ctx, bank).ask(
    ctx.settings.optim.steps, ctx.settings.discover.search_probes, arm=NAME, walk=train.SEARCH
  )
  result = {
    "success": attempts_lib.success(ctx, again),
    "modes": ledger(ctx, known, repaired),
    **second_round(ctx, bank, known),
  }
  return ctx.finish("reaudit", result)


def ledger(ctx: Context, known: taxonomy.Taxonomy, repaired: Vlm) -> list[dict]:
  """Each known mode's failure rate on fresh probes before and after, and its status."""
  before = verify.fresh_attempts(ctx)
  if not before:
    return []
  questions = [a.probe.question for a in before]
  consensus = [a.verdict.consensus for a in before]
  target = before[0].verdict.target
  answers = ctx.bank(repaired).answers(
    ctx.images, questions, image_ids=[a.probe.image_id for a in before], models=[repaired.name]
  )[repaired.name]
  modes = known.match(questions, consensus)
  pairs = compare.pairs(
    [m.mode_id if m else None for m in modes], [a.probe.probe_id for a in before], consensus,
    [a.verdict.answers[target] for a in before], answers, judge=ctx.judge,
  )  # fmt: skip
  entries = compare.compare(pairs, config=ctx.settings.round2.compare).entries
  names = {m.mode_id: m.name for m in known.modes}
  return [
    {"mode_id": e.mode_id, "name": names.get(e.mode_id, e.mode_id), "status": e.status,
     "before": e.old, "after": e.new, "change_ci95": list(e.change_ci95), "q": e.q}
    for e in entries
  ]  # fmt: skip


def second_round(ctx: Context, bank, known: taxonomy.Taxonomy) -> dict:
  """GRPO against the repaired target, from the trained auditor; new modes by name."""
  steps = ctx.settings.round2.steps
  start = train.stored(ctx, ctx.settings.optim.steps)
  train.train_auditor(ctx, bank, name=NAME, steps=steps, start=start)
  attempts = train.load_attempts(ctx, NAME)
  late = [a for a in attempts if a.probe.step >= steps - _EDGE]
  found = taxonomy.discover_modes(
    attempts_lib.outcomes(attempts), ctx.seeds, config=ctx.settings.taxonomy.modes
  )
  old = {m.name for m in known.modes}
  truths = [attempts_lib.truth_of(ctx, a) for a in attempts_lib.unique_finds(attempts)]
  return {
    "first_steps": attempts_lib.success(ctx, [a for a in attempts if a.probe.step < _EDGE]),
    "last_steps": attempts_lib.success(ctx, late),
    "finds_by_gap": dict(Counter(t.gap or "not planted" for t in truths if t.confirmed)),
    "new_modes": [
      {"name": m.name, "definition": m.definition, "k": m.k, "n": m.n}
      for m in found.modes if m.name not in old
    ],
  }  # fmt: skip
