# SPDX-License-Identifier: Apache-2.0
"""loop: one round of AuditDM with its controls, then the target is repaired and audited again.

  1. evaluate    what target, references and sibling can do
  2. train       the auditor, by GRPO
  3. discover    arms sweep the pool; the control asks random questions at equal total queries
  4. verify      gates, stability, the oracle; failure modes with fresh rates
  5. rectify     repair from the failures, next to its two controls; not of an endpoint
  6. re-audit    the old modes on fresh probes, and the auditor against the repaired target
  7. report      summary.json, a table, a folder of pages

Every stage leaves a done.json; the same command run again continues where it stopped.
"""

from collections.abc import Callable
import dataclasses
import pathlib
import time
from typing import TypeVar

from ml_collections import ConfigDict
import rich.console
import rich.table

from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.summary import Kinds, Summary
from auditdm_jax.core import paths, runtime
from auditdm_jax.stages import asking, discover, evaluate, reaudit, rectify, report, train, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Controlled, Empty, RepairedModel, Repairs, Searched
from auditdm_jax.stages.run import reading
from auditdm_jax.stages.summarise import Round, summarise

T = TypeVar("T")


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "loop") as ctx:
    summary = run(ctx)
    index = ctx.folder.path / "report" / "index.html"
    with reading():
      there = index.exists()
    if not there and not paths.is_remote(ctx.folder.path):
      report.run(ctx, summary)
    if runtime.is_main():
      show(summary)
      print(f"summary: {ctx.folder.path / 'summary.json'}\nreport:  {index}")
  return 0


def run(ctx: Context) -> Summary:
  """Runs all stages in order."""
  known = ctx.folder.summary()
  if ctx.folder.done("loop", Empty) is not None and known is not None:
    return known
  if not ctx.models.target_is_remote:
    rectify.check_replay(ctx)
  seconds: dict[str, float] = {}

  def stage(name: str, body: Callable[[], T]) -> T:
    """Runs a stage with its name and time on the screen."""
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    result = body()
    seconds.update(ctx.folder.add_seconds(name, time.perf_counter() - start))
    return result

  evaluated = stage("evaluate", lambda: evaluate.run(ctx))
  trained = stage("train", lambda: train.run(ctx))
  searched = stage("search", lambda: search(ctx))
  stage("discover", lambda: discover.run(ctx))
  stage("random control", lambda: random_control(ctx, trained.completions))
  verified = stage("verify", lambda: verify.run(ctx))
  repairs = stage("rectify", lambda: repair(ctx))
  again = ctx.settings.round2.enabled and "repaired" in repairs.models
  second = stage("re-audit", lambda: reaudit.run(ctx)) if again else None
  done = Round(evaluated, searched, verified, repairs, second)
  summary = stage("summary", lambda: summarise(ctx, done))
  total = round(sum(seconds.values()), 1)
  summary = dataclasses.replace(summary, seconds=seconds | {"total": total})
  ctx.folder.write_summary(summary)
  ctx.folder.finish("loop", Empty())
  return summary


# ----------------------------------------------------------------------- stages of this file


def search(ctx: Context) -> Searched:
  """Measures search success before and after training: same images, same draws."""
  if (found := ctx.folder.done("search", Searched)) is not None:
    return found
  asker = asking.search_asker(ctx, ctx.models.bank())
  n = ctx.settings.discover.search_probes

  def measured(arm: str, step: int | None) -> tuple[Rate, Kinds]:
    attempts = asker.ask(step, n, arm=arm, walk=asking.SEARCH)
    cover = ctx.oracle.coverage(attempts)
    kinds = Kinds(cover.effective_modes, cover.effective_skills, cover.per_gap)
    return ctx.oracle.success(attempts), kinds

  before = measured("prompt_only", None)
  after = measured("trained", ctx.settings.optim.steps)
  return ctx.folder.finish("search", Searched(*before, *after))


def random_control(ctx: Context, trained_probes: int) -> Controlled:
  """Asks random questions at the audit's total queries, GRPO's included; keeps them for repair."""
  if (found := ctx.folder.done(asking.CONTROL, Controlled)) is not None:
    return found
  attempts = asking.random_control(ctx, trained_probes + ctx.settings.discover.probes)
  ctx.folder.write_control(attempts)
  return ctx.folder.finish(asking.CONTROL, Controlled(len(attempts)))


def repair(ctx: Context) -> Repairs:
  """Repairs the target from the failures and from the controls; benchmarks each."""
  if (found := ctx.folder.done("rectify", Repairs)) is not None:
    return found
  if ctx.models.target_is_remote:
    print(f"  {ctx.models.target_name} is an endpoint: without its weights it is not repaired")
    return ctx.folder.finish("rectify", Repairs({}))
  repaired = rectify.from_failures(ctx)
  replay = rectify.replay_examples(ctx, len(repaired))
  control = ctx.folder.control()
  arms = {
    "repaired": repaired,
    "control_random": rectify.random_examples(ctx, control, len(repaired)),
    "control_mined": rectify.mined_examples(ctx, control, len(repaired)),
  }
  models = {}
  for name, examples in arms.items():
    if not examples:
      print(f"  {name}: nothing to train on")
      continue
    model = ctx.models.answering(rectify.repair(ctx, name, examples, replay))
    table = evaluate.benchmark(ctx, model)
    models[name] = RepairedModel(table, len(examples))
    print(evaluate.line(name, table), flush=True)
  return ctx.folder.finish("rectify", Repairs(models))


def show(summary: Summary) -> None:
  """Prints the summary as a table."""
  console = rich.console.Console(highlight=False, width=110)
  table = rich.table.Table(title=f"Audit of {summary.target}", show_lines=False)
  table.add_column("what")
  for column in ("rate", "95 % interval", "k / n"):
    table.add_column(column, justify="right")

  def row(name: str, r: Rate | None) -> None:
    if r and r.n:
      low, high = r.ci95
      table.add_row(name, f"{r.value:.3f}", f"{low:.3f} to {high:.3f}", f"{r.k:g} / {r.n}")

  row("search success, prompt-only auditor", summary.search.prompt_only)
  row("search success, trained auditor", summary.search.trained)
  row("precision of verified failures (oracle)", summary.precision)
  row("modes: recall of auditable gaps", summary.modes.recall)
  row("modes: precision", summary.modes.precision)
  for name, arm in summary.arms.items():
    row(f"arm {name}", arm.verified)
  for name, accuracy in summary.rectify.items():
    row(f"{name}: accuracy on gaps", accuracy.gaps)
    row(f"{name}: accuracy on rest", accuracy.rest)
  row("re-audit: success against the repaired target", summary.reaudit)
  console.print(table)
  cover = summary.coverage
  if summary.precision:  # There is an oracle, which counted these.
    console.print(
      f"gaps found {cover.gaps_found} of {cover.gaps_auditable} auditable · effective modes"
      f" {cover.effective_modes} (skills {cover.effective_skills})"
    )
  console.print(f"queries {summary.queries.total} · {summary.seconds['total']:.0f} s")
