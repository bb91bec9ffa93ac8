# SPDX-License-Identifier: Apache-2.0
"""loop: one round of AuditDM with its controls, then the target is repaired and audited again.

  1. evaluate    what target, references and sibling can do
  2. train       the auditor, by GRPO
  3. discover    arms sweep the pool; the control asks random questions at equal total queries
  4. verify      gates, stability, the oracle; failure modes with fresh rates
  5. rectify     repair from the failures, beside its two controls
  6. re-audit    the old modes on fresh probes, and the auditor against the repaired target
  7. report      summary.json, a table, a folder of pages

Every stage leaves a done.json; the same command run again continues where it stopped.
"""

from collections.abc import Callable, Sequence
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict
import rich.console
import rich.table

from auditdm_jax.audit import rates
from auditdm_jax.core import paths, runtime
from auditdm_jax.stages import attempts as attempts_lib
from auditdm_jax.stages import (
  discover,
  evaluate,
  reaudit,
  rectify,
  report,
  shared,
  train,
  verify,
)
from auditdm_jax.stages.attempts import Attempt, ModeKey
from auditdm_jax.stages.context import Context


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "loop") as ctx:
    summary = run(ctx)
    index = ctx.workdir / "report" / "index.html"
    with shared.reading():
      there = index.exists()
    if not there and not paths.is_remote(ctx.workdir):
      report.run(ctx, summary)
    if runtime.is_main():
      show(summary)
      print(f"summary: {ctx.workdir / 'summary.json'}\nreport:  {index}")
  return 0


def run(ctx: Context) -> dict[str, Any]:
  """All stages in order; returns what summary.json holds."""
  path = ctx.workdir / "summary.json"
  summary = shared.read_json(path)
  if ctx.done("loop") is not None and summary is not None:
    return summary
  rectify.check_replay(ctx)
  seconds: dict[str, float] = {}

  def stage(name: str, body: Callable[[], Any]) -> Any:
    """Runs a stage with its name and time on the screen."""
    print(f"\n== {name}", flush=True)
    clock = shared.read_json(ctx.workdir / "seconds.json") or {}
    start = time.perf_counter()
    result = body()
    clock[name] = round(clock.get(name, 0.0) + time.perf_counter() - start, 1)
    shared.write_json(ctx.workdir / "seconds.json", clock)
    seconds.update(clock)
    return result

  evaluated = stage("evaluate", lambda: evaluate.run(ctx))
  trained = stage("train", lambda: train.run(ctx))
  searched = stage("search", lambda: search(ctx))
  stage("discover", lambda: discover.run(ctx))
  control = stage("random control", lambda: random_control(ctx, trained["completions"]))
  verified = stage("verify", lambda: verify.run(ctx))
  repaired = stage("rectify", lambda: repair(ctx, evaluated))
  again = ctx.settings.round2.enabled and "repaired" in repaired
  second = stage("re-audit", lambda: reaudit.run(ctx)) if again else {}
  summary = stage(
    "summary", lambda: summarise(ctx, evaluated, searched, control, verified, repaired, second)
  )
  summary["seconds"] = seconds | {"total": round(sum(seconds.values()), 1)}
  shared.write_json(path, summary)
  ctx.finish("loop", {})
  return summary


# ----------------------------------------------------------------------- stages of this file


def search(ctx: Context) -> dict:
  """Search success before and after training: same images, same draws, one probe per image."""
  if (found := ctx.done("search")) is not None:
    return found
  asker = train.search_asker(ctx, ctx.bank())
  n, result = ctx.settings.discover.search_probes, {}
  for name, step in (("prompt_only", None), ("trained", ctx.settings.optim.steps)):
    attempts = asker.ask(step, n, arm=name, walk=train.SEARCH)
    cover = attempts_lib.coverage(ctx, attempts, [])
    result[name] = attempts_lib.success(ctx, attempts)
    result[f"{name}_modes"] = {
      k: cover[k] for k in ("effective_modes", "effective_skills", "per_gap")
    }
  return ctx.finish("search", result)


def random_control(ctx: Context, trained_probes: int) -> dict:
  """Random questions at the audit's total queries, GRPO's included; finds are kept for repair."""
  if (found := ctx.done("control")) is not None:
    return found
  attempts = discover.random_control(ctx, trained_probes + ctx.settings.discover.probes)
  records = ctx.records("control")
  records.rewind("attempts", -1, field="row")
  records.append(
    "attempts", [{"row": i, **a.to_dict()} for i, a in enumerate(attempts) if a.verdict]
  )
  return ctx.finish("control", {"probes": len(attempts)})


def load_control(ctx: Context) -> list[Attempt]:
  ctx.pool("images")
  return [Attempt.from_dict(r) for r in ctx.records("control").read("attempts")]


def repair(ctx: Context, evaluated: dict) -> dict:
  """Repairs the target from the failures and from the controls; benchmarks each."""
  if (found := ctx.done("rectify")) is not None:
    return found
  ctx.pool("images")
  repaired = rectify.from_failures(ctx, verify.load_failures(ctx))
  replay = rectify.replay_examples(ctx, len(repaired))
  control = load_control(ctx)
  arms = {
    "repaired": repaired,
    "control_random": rectify.random_examples(ctx, control, len(repaired)),
    "control_mined": rectify.mined_examples(ctx, control, len(repaired)),
  }
  result = {}
  for name, examples in arms.items():
    if not examples:
      print(f"  {name}: nothing to train on")
      continue
    model = rectify.repair(ctx, name, examples, replay)
    table = evaluate.benchmark(ctx, model)
    result[name] = {"table": evaluate.by_group(table), "examples": len(examples)}
    print(evaluate.line(name, result[name]["table"]), flush=True)
  return ctx.finish("rectify", result)


# ------------------------------------------------------------------------------------ summary


def summarise(ctx, evaluated, searched, control, verified, repaired, second) -> dict[str, Any]:
  """summary.json: R = {"k", "n", "rate", "ci95"}, A = {"all": R, "gaps": R, "rest": R}."""
  auditable = evaluated["auditable"]
  trained, found = train.load_attempts(ctx), discover.load(ctx)
  random = load_control(ctx)
  cover = attempts_lib.coverage(ctx, found, auditable)
  key = ModeKey(ctx.seeds)
  groups: dict[str, list[Attempt]] = {"grpo": trained}
  for a in found[len(trained) :]:
    groups.setdefault(a.probe.arm, []).append(a)
  groups["all of the above"] = found
  groups["control: random, equal queries"] = random
  arms = {}
  for name, own in groups.items():
    keys = [k for k in map(key, own) if k]
    arms[name] = discover.arm_row(
      own, attempts_lib.success(ctx, own), attempts_lib.coverage(ctx, own, auditable), keys
    )
  tables = {n: evaluate.accuracy_of(t) for n, t in evaluated["tables"].items()}
  names = {"baseline": ctx.target.name, "larger_sibling": ctx.sibling.name if ctx.sibling else None}
  rows = {k: tables[v] for k, v in names.items() if v}
  rows |= {
    name: evaluate.accuracy_of(r["table"]) | {"examples": r["examples"]}
    for name, r in repaired.items()
  }
  return {
    "target": ctx.target.name,
    "search": {k: searched[k] for k in ("prompt_only", "trained")},
    "search_modes": {k: searched[k] for k in ("prompt_only_modes", "trained_modes")},
    "precision": verified["precision"],
    "coverage": cover,
    "gaps": {
      g: {
        "target": evaluated["tables"][ctx.target.name].get(f"gap: {g}"),
        "auditable": g in auditable,
        "finds": cover["per_gap"].get(g, 0),
      }
      for g in ctx.world.gaps
    },
    "modes": mode_scores(
      verified["modes"], auditable, threshold=ctx.settings.taxonomy.modes.threshold,
      oracle=ctx.world.oracle is not None,
    ),
    "rectify": rows,
    "reaudit": second.get("success"),
    "second_round": second,
    "arms": arms,
    "strategies": strategies(ctx, found),
    "curve": curve(ctx, trained),
    "queries": {
      "grpo": len(trained),
      # A question that the group repeats is put to the models once.
      "grpo_distinct": len({(a.probe.step, a.probe.probe_id) for a in trained}),
      "discover": len(found) - len(trained), "total": len(found),
      "control_random": len(random), "verify_looked_at": verified["funnel"]["looked_at"],
    },
  }  # fmt: skip


def mode_scores(
  modes: Sequence[dict], auditable: Sequence[str], *, threshold: float, oracle: bool
) -> dict:
  """Recall: auditable gaps that some mode is about. Precision: modes the oracle bears out.

  A mode is about a gap if most of its oracle-confirmed fresh failures lie in it; it is borne out if
  the oracle confirms failures on at least the taxonomy's `threshold` of its fresh probes. Without
  an oracle neither can be measured: both have n = 0.
  """
  measured = [m for m in modes if oracle and m["fresh"] and m["fresh"]["n"] > 0]
  right = [m for m in measured if m["confirmed"] / m["fresh"]["n"] >= threshold]
  hit = {m["gap"] for m in right if m["gap"] and m["gap_share"] >= 0.5}
  return {
    "recall": rates.rate(sum(g in hit for g in auditable), len(auditable)),
    "precision": rates.rate(len(right), len(measured)),
    "found": len(modes),
  }


def strategies(ctx: Context, attempts: Sequence[Attempt]) -> dict[str, dict]:
  """Per strategy: confirmed share, faithful images, kinds of failure found by it alone."""
  by: dict[str, list[Attempt]] = {}
  for a in attempts:
    by.setdefault(a.probe.strategy, []).append(a)
  modes = {
    s: {t.mode for t in (attempts_lib.truth_of(ctx, a) for a in own) if t.confirmed}
    for s, own in by.items()
  }
  out = {}
  for name, own in by.items():
    others = set().union(*(m for s, m in modes.items() if s != name))
    row = {"verified": attempts_lib.success(ctx, own), "only_here": len(modes[name] - others)}
    made = [
      a
      for a in own
      if a.probe.image_id != a.probe.source_image_id and (a.probe.caption or a.probe.instruction)
    ]
    if made and ctx.world.faithful:
      judged = [f for f in (_faithful(ctx, a) for a in made[:500]) if f is not None]
      row["faithful"] = rates.rate(sum(judged), len(judged))
    exposed: dict[str, int] = {}
    for a in made:
      truth = attempts_lib.truth_of(ctx, a)
      if truth.confirmed and truth.gap and _exposed(ctx, a):
        exposed[truth.gap] = exposed.get(truth.gap, 0) + 1
    if made:
      row["exposed_by_image"] = exposed
    out[name] = row
  return out


def _faithful(ctx: Context, a: Attempt) -> bool | None:
  source = None if a.probe.caption else ctx.images(a.probe.source_image_id)
  text = a.probe.caption or a.probe.instruction
  return ctx.world.faithful(source, text, ctx.images(a.probe.image_id))


def _exposed(ctx: Context, a: Attempt) -> bool:
  """Whether it took the new image: on the source, the same question has another true answer."""
  before = ctx.true_answer(a.probe.source_image_id, a.probe.question)
  return before is None or not ctx.judge.same(before, a.verdict.consensus)


def curve(ctx: Context, attempts: Sequence[Attempt], *, bins: int = 15) -> list[dict]:
  """Search success and effective modes over the steps of GRPO."""
  if not attempts:
    return []
  last = max(a.probe.step for a in attempts) + 1
  width = max(last // bins, 1)
  out = []
  for start in range(0, last, width):
    own = [a for a in attempts if start <= a.probe.step < start + width]
    cover = attempts_lib.coverage(ctx, own, [])
    r = attempts_lib.success(ctx, own)
    out.append({"step": start + width, "success": r["rate"], "n": r["n"], "ci95": r["ci95"],
                "effective_modes": cover["effective_modes"],
                "effective_skills": cover["effective_skills"]})  # fmt: skip
  return out


def show(summary: dict) -> None:
  """The summary as a table on the terminal."""
  console = rich.console.Console(highlight=False, width=110)
  table = rich.table.Table(title=f"Audit of {summary['target']}", show_lines=False)
  for column, justify in (
    ("what", "left"),
    ("rate", "right"),
    ("95 % interval", "right"),
    ("k / n", "right"),
  ):
    table.add_column(column, justify=justify)

  def row(name, r):
    if r and r.get("n"):
      low, high = r["ci95"]
      table.add_row(name, f"{r['rate']:.3f}", f"{low:.3f} to {high:.3f}", f"{r['k']:g} / {r['n']}")

  row("search success, prompt-only auditor", summary["search"]["prompt_only"])
  row("search success, trained auditor", summary["search"]["trained"])
  row("precision of verified failures (oracle)", summary["precision"])
  row("modes: recall of auditable gaps", summary["modes"]["recall"])
  row("modes: precision", summary["modes"]["precision"])
  for name, r in summary["arms"].items():
    row(f"arm {name}", r["verified"])
  for name, a in summary["rectify"].items():
    for group in ("gaps", "rest"):
      row(f"{name}: accuracy on {group}", a[group])
  row("re-audit: success against the repaired target", summary["reaudit"])
  console.print(table)
  c = summary["coverage"]
  if summary["precision"]:  # There is an oracle, which counted these.
    console.print(
      f"gaps found {c['gaps_found']} of {c['gaps_auditable']} auditable · effective modes"
      f" {c['effective_modes']} (skills {c['effective_skills']})"
    )
  console.print(f"queries {summary['queries']['total']} · {summary['seconds']['total']:.0f} s")
