# SPDX-License-Identifier: Apache-2.0
"""verify: grades the finds of discovery, names their failure modes, measures the modes afresh.

1. Finds pass the gates and the stability trials (V1); the oracle, where there is one, is the judge
   outside the ensemble (V2).
2. The taxonomy is found on all attempted probes, failures or not, and then frozen.
3. A mode's rate comes from fresh questions about fresh images, never from its discovery set.
"""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import taxonomy as taxonomy_lib
from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.probe import Failure
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.core import metrics, streams
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import attempts as attempts_lib
from auditdm_jax.stages import discover, edits
from auditdm_jax.stages.attempts import Attempt
from auditdm_jax.stages.context import Context


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "verify") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> dict:
  """Verified failures and modes of the discovery of this workdir."""
  if (found := ctx.done("verify")) is not None:
    return found
  if ctx.done("discover") is None:
    raise UserError(f"{ctx.workdir}: nothing to verify; run the stage discover first")
  attempts = discover.load(ctx)
  failures, funnel, tax = audit(ctx, attempts)
  records = ctx.records("verify")
  known = records.keys("failures", "key")
  rows = [{"key": f.probe.probe_id, **f.to_dict()} for f in failures]
  records.append("failures", [r for r in rows if r["key"] not in known])
  precision = verify_lib.precision(failures) if ctx.world.oracle else None
  result = {
    "funnel": {
      "attempted": len(attempts),
      "unique": len({a.probe.probe_id for a in attempts}),
      **funnel,
    },
    "precision": precision,
    "taxonomy": tax.to_dict(),
    "modes": fresh_modes(ctx, tax),
  }
  return ctx.finish("verify", result)


def audit(ctx: Context, attempts: list[Attempt]):
  """Grades (a bounded, seeded choice of) the unique finds and names their modes.

  Returns:
    Failures with mode ids, the funnel, the taxonomy.
  """
  section, bank = ctx.settings.verify, ctx.bank()
  finds = attempts_lib.unique_finds(attempts)
  tax = taxonomy_lib.discover_modes(
    attempts_lib.outcomes(attempts), ctx.seeds, config=ctx.settings.taxonomy.modes
  )
  chosen = choose(finds, tax, limit=section.limit, seed=ctx.settings.seed)
  progress = metrics.Progress(len(chosen), "verify")
  local = ctx.settings.images.client.local_edits
  probes = [a.probe for a in chosen]
  measured = edits.measure(ctx, bank, probes) if local else [()] * len(chosen)
  verification = verify_lib.verify(
    [verify_lib.Find(a.probe, a.verdict, g) for a, g in zip(chosen, measured)], bank,
    images=ctx.images,
    paraphrase=ctx.world.paraphrase, independent=ctx.world.oracle, config=section,
    progress=lambda done, _: progress.update(done),
  )  # fmt: skip
  progress.close()
  funnel = {"finds": len(finds), **verification.funnel}
  return _with_modes(verification.failures, tax), funnel, tax


def choose(finds: list[Attempt], tax: Taxonomy, *, limit: int, seed: int) -> list[Attempt]:
  """At most `limit` finds, evenly over families of modes: one with few keeps them all."""
  if len(finds) <= limit:
    return finds
  modes = tax.match([a.probe.question for a in finds], [a.verdict.consensus for a in finds])
  groups: dict[str, list[int]] = {}
  for i in streams.rng(seed, "verify").permutation(len(finds)):
    mode = modes[int(i)]
    groups.setdefault(tax.families[mode.mode_id] if mode else "", []).append(int(i))
  taken: list[int] = []
  turn = 0
  while len(taken) < limit:
    taken += [g[turn] for g in groups.values() if turn < len(g)]
    turn += 1
  return [finds[i] for i in sorted(taken[:limit])]


def _with_modes(failures: tuple[Failure, ...], tax: Taxonomy) -> list[Failure]:
  modes = tax.match([f.probe.question for f in failures], [f.verdict.consensus for f in failures])
  return [
    dataclasses.replace(f, mode_id=m.mode_id if m else None)
    for f, m in zip(failures, modes, strict=True)
  ]


def load_failures(ctx: Context) -> list[Failure]:
  return [Failure.from_dict(r) for r in ctx.records("verify").read("failures")]


def fresh_attempts(ctx: Context) -> list[Attempt]:
  """All questions about the fresh split, put to the audited target and all references."""
  pool = ctx.pool("fresh")
  asked = [(i, q) for i in range(len(pool)) for q in pool.questions(i)]
  return discover.ask_questions(
    ctx, ctx.bank(), pool, asked, arm="fresh", label="fresh probes", cascade=False
  )


def fresh_modes(ctx: Context, tax: Taxonomy) -> list[dict]:
  """Each mode with its failure rate on fresh probes, and how many of those the oracle confirms."""
  attempts = fresh_attempts(ctx)
  matched = tax.match([a.probe.question for a in attempts], [a.verdict.consensus for a in attempts])
  rates = {
    r.mode_id: r for r in tax.fresh_rates(attempts_lib.outcomes(attempts), model=ctx.target.name)
  }
  rows = []
  for mode in tax.modes:
    members = [a for a, m in zip(attempts, matched, strict=True) if m and m.mode_id == mode.mode_id]
    truths = [attempts_lib.truth_of(ctx, a) for a in members]
    gaps: dict[str, int] = {}
    for t in truths:
      if t.confirmed and t.gap:
        gaps[t.gap] = gaps.get(t.gap, 0) + 1
    rate = rates.get(mode.mode_id)
    rows.append({
      "mode_id": mode.mode_id, "name": mode.name, "definition": mode.definition,
      "skills": list(mode.skills), "found": {"k": mode.k, "n": mode.n},
      "fresh": {
        "k": rate.k, "n": rate.n, "rate": rate.rate, "ci95": list(rate.ci95),
      } if rate and rate.n else None,
      "confirmed": sum(t.confirmed for t in truths),
      "gap": max(gaps, key=gaps.get) if gaps else None,
      "gap_share": max(gaps.values()) / sum(t.confirmed for t in truths) if gaps else 0.0,
    })  # fmt: skip
  return rows
