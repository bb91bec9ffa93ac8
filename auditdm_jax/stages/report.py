# SPDX-License-Identifier: Apache-2.0
"""report: one folder that opens from a file, with the summary, the modes and their failures.

It tells what is there once the stage verify is done, and names what was not measured. Run again
after more stages, it has theirs too.
"""

from collections.abc import Sequence
import datetime
import importlib.metadata
import pathlib
import shlex
import sys

from ml_collections import ConfigDict

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.report import data as report_data
from auditdm_jax.audit.report.write import write_report
from auditdm_jax.audit.summary import ALL_ARMS, Summary
from auditdm_jax.bench import page
from auditdm_jax.core import paths, runtime
from auditdm_jax.stages import screen, suite
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import ModeRow, Verified
from auditdm_jax.stages.run import TRAIN
from auditdm_jax.stages.summarise import Round, summarise

CARDS = 8  # per mode
FUNNEL_NOTES = {
  "attempted": "probes sent, malformed ones included",
  "unique": "each question about an image once",
  "finds": "the references agree and the target differs",
  "looked_at": "at most as many as the config allows, evenly over kinds of failure",
  "stable": "V1: the conflict shows again",
  "independent_agrees": "V2: somebody outside the ensemble sides with the consensus",
}
REPAIR_NOTES = {
  "baseline": "the target as it was audited",
  "larger_sibling": "as it is",
  "repaired": "with the auditor's verified failures",
  "control_random": "with random questions that have a consensus",
  "control_mined": "with failures among random questions",
}
METHODS = (
  ("Find", "The references agree on an answer that is no abstention, and the target says something "
   "else."),
  ("Verified (V1)", "The find fails no gate that was measured and shows again in at least 4 of 5 "
   "trials: asked again, in another wording, on slightly changed images. What could not be tried "
   "is not measured and counts for no grade."),
  ("Outside the ensemble (V2)", "The data set's own answer, a model that is neither target nor "
   "reference and answers the question itself, or the oracle of a drawn world has the answer of "
   "the consensus and not that of the target. It is used for reporting only, never as reward or "
   "label."),
  ("Confirmed finds", "Finds, before any gate, of which the oracle says that the consensus is true "
   "and the target wrong. Where there is no oracle, verified failures take their place."),
  ("Search success", "Confirmed finds or verified failures among all probes sent, malformed ones "
   "included."),
  ("Modes", "Rules over question and consensus whose failure rate among all attempted probes is "
   "significantly raised; their rates are measured on fresh images and questions."),
  ("Controls", "prompt-only auditor; random questions at equal total queries (GRPO's included); "
   "random questions with consensus at equal training examples; mined random failures at equal "
   "queries."),
)  # fmt: skip


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "report") as ctx:
    screen.show(run(ctx), ctx.folder.path)
  return 0


def run(ctx: Context) -> Summary:
  """Writes summary.json, and the pages in <workdir>/report unless that is on no machine.

  Raises:
    UserError: nothing is verified yet.
  """
  done = Round.of(ctx.folder)
  summary = summarise(ctx, done)
  ctx.folder.write_summary(summary)
  if not paths.is_remote(ctx.folder.path):
    _write(ctx, done, summary)
  return summary


def _write(ctx: Context, done: Round, summary: Summary) -> None:
  failures, verified = ctx.folder.failures(), done.verified
  oracle = ctx.oracle.exists  # Without one, a count of what it confirmed says nothing.
  data = report_data.ReportData(
    title="Audit of " + ctx.models.target_name,
    target=ctx.models.target_name,
    references=list(ctx.models.references),
    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    summary=summary,
    funnel=_funnel(verified),
    gates=_gates(verified),
    outside=_outside(verified),
    modes=_modes(ctx, verified.modes, failures),
    arms=_arms(summary, failures, oracle=oracle),
    curves=_curves(summary, oracle=oracle),
    strategies=_strategies(summary, oracle=oracle),
    rectify=_rectify(summary),
    second_round=_second_round(summary),
    pages=_pages(ctx, done),
    health=done.evaluated.health if done.evaluated else None,
    not_measured=_not_measured(ctx, done, summary, failures),
    methods=[row for row in METHODS if row[0] != "Controls" or done.controlled],
    commands=["python -m auditdm_jax " + shlex.join(sys.argv[1:])],
    versions={
      name: importlib.metadata.version(name)
      for name in ("jax", "flax", "optax", "orbax-checkpoint")
    },
  )
  if runtime.is_main():
    write_report(ctx.folder.path / "report", data)


def _pages(ctx: Context, done: Round) -> list[report_data.ExtraPage]:
  """The table of the benchmark, if models were measured."""
  table = suite.table(ctx) if done.evaluated else None
  return [page.page_of(table, path="benchmarks.html")] if table else []


def _not_measured(
  ctx: Context, done: Round, summary: Summary, failures: Sequence[Failure]
) -> list[tuple[str, str]]:
  """What a reader may look for in vain, each with the reason."""
  steps, modes = ctx.settings.optim.steps, done.verified.modes
  unknown = sum(mode.fresh is None for mode in modes)
  rows = (
    (not steps, "A trained auditor", "config.optim.steps is 0: the auditor asked as it is"),
    (
      not ctx.oracle.exists,
      "Precision, coverage and effective modes",
      "there is no oracle, so that nobody knows which verified failures are real errors",
    ),
    (
      not done.verified.sides,
      "A view from outside the ensemble (V2)",
      "no label of the data set and no model of config.verify.model answered a find's question",
    ),
    (
      not any(f.wordings for f in failures),
      "Stability over other wordings",
      "no question was reworded (config.verify.paraphrases, config.verify.paraphraser)",
    ),
    (
      summary.compared.not_looked_at > 0,
      "Part of the finds",
      f"{summary.compared.not_looked_at:,} are beyond config.verify.limit: shares of verified"
      " failures among probes are lower bounds",
    ),
    (
      unknown > 0,
      "Fresh rates of modes",
      f"no fresh probe falls under {unknown} of {len(modes)} modes",
    ),
    (
      done.searched is None,
      "The auditor before against after training",
      "no search on equal images was done",
    ),
    (done.controlled is None, "A control of random questions at equal queries", "none were asked"),
    (
      done.evaluated is None,
      "Accuracy of the models, and health of the references",
      "the stage evaluate did not run; it needs questions whose answers are known",
    ),
    (done.repairs is None, "A repair of the target", "the stage rectify did not run"),
  )
  return [(what, why) for missing, what, why in rows if missing]


def _funnel(verified: Verified) -> list[report_data.FunnelRow]:
  """The funnel; a gate's row says of how many finds it was not measured."""
  notes = dict(FUNNEL_NOTES)
  for name, gate in verified.gates.items():
    if gate.unmeasured:
      notes[name] = f"not measured of {gate.unmeasured:,} finds"
  return [
    report_data.FunnelRow(name=name.replace("_", " "), count=n, note=notes.get(name, ""))
    for name, n in verified.funnel.items()
  ]


def _gates(verified: Verified) -> list[report_data.GateRow]:
  return [
    report_data.GateRow(
      name=name.replace("_", " "),
      passed=rates.rate(gate.passed, gate.passed + gate.failed),
      failed=gate.failed,
      unmeasured=gate.unmeasured,
      required=gate.required,
    )
    for name, gate in verified.gates.items()
  ]


def _outside(verified: Verified) -> list[report_data.OutsideRow]:
  """Who was asked outside the ensemble, and whose side was taken."""
  rows = []
  for by, counts in verified.sides.items():
    others = {side: n for side, n in counts.items() if side not in ("consensus", "not measured")}
    agrees = counts.get("consensus", 0)
    rows.append(
      report_data.OutsideRow(
        name=by,
        agrees=rates.rate(agrees, agrees + sum(others.values())),
        others=others,
        unmeasured=counts.get("not measured", 0),
      )
    )
  return rows


def _modes(
  ctx: Context, rows: Sequence[ModeRow], failures: Sequence[Failure]
) -> list[report_data.ModeView]:
  by_mode: dict[str, list[Failure]] = {}
  for f in failures:
    if f.verified and f.mode_id:
      by_mode.setdefault(f.mode_id, []).append(f)
  views = []
  for row in sorted(rows, key=lambda r: -len(by_mode.get(r.mode_id, ()))):
    members = by_mode.get(row.mode_id, [])
    notes = (
      {"planted gap (oracle)": f"{row.gap} ({row.gap_share:.0%} of confirmed)"} if row.gap else {}
    )
    views.append(
      report_data.ModeView(
        mode_id=row.mode_id,
        name=row.name,
        skill=", ".join(row.skills),
        definition=row.definition,
        members=len(members),
        rate=row.fresh,
        cards=[_card(ctx, f) for f in _varied(members)],
        notes=notes,
      )
    )
  return views


def _varied(members: Sequence[Failure]) -> list[Failure]:
  """A few members: made images first (they show more), then by probe id."""
  return sorted(members, key=lambda f: (f.probe.source_image_id is None, f.probe.probe_id))[:CARDS]


def _card(ctx: Context, f: Failure) -> report_data.Card:
  source = f.probe.source_image_id or f.probe.image_id
  made = source != f.probe.image_id
  lineage = {
    "arm": _arm(f), "step": str(f.probe.step), "seed": str(f.probe.seed),
    "source image": source[:12], "image": f.probe.image_id[:12],
  }  # fmt: skip
  if f.probe.instruction:
    lineage["instruction"] = f.probe.instruction
  if f.probe.caption:
    lineage["caption"] = f.probe.caption
  by, truth = _opinion(f)
  return report_data.Card(
    probe_id=f.probe.probe_id, question=f.probe.question, target=f.verdict.target,
    answers=f.verdict.answers, consensus=f.consensus, grade=f.grade,
    original=_path(ctx, source), edited=_path(ctx, f.probe.image_id) if made else None,
    strategy=f.probe.strategy, truth=truth, truth_by=by,
    gates=f.gates,
    lineage=lineage,
    command=_reproduce(ctx, f),
  )  # fmt: skip


def _opinion(f: Failure) -> tuple[str, str | None]:
  """Who has an opinion from outside and whose side that takes; and the answer."""
  if f.opinion is None:
    return "", None
  shown = " · ".join(x for x in (f.opinion.answer, f.opinion.note) if x)
  return f"{f.opinion.by}: {f.opinion.side}", shown or f.opinion.side


def _arm(f: Failure) -> str:
  """What loop.summarise calls the arm that found it."""
  return "grpo" if f.probe.arm == TRAIN else f.probe.arm


def _reproduce(ctx: Context, f: Failure) -> str:
  """A shell line that asks the target this question again; "" if it is an endpoint."""
  if ctx.models.target_is_remote:
    return ""
  code = (
    "import numpy, PIL.Image, auditdm_jax; print(auditdm_jax.load_vlm("
    f"{ctx.models.config.target!r}).answer([numpy.array(PIL.Image.open("
    f"{str(ctx.images.made.path(f.probe.image_id))!r}))], [{f.probe.question!r}],"
    f" max_new_tokens={ctx.settings.bank.max_new_tokens}))"
  )
  return f"python -c {shlex.quote(code)}"


def _path(ctx: Context, image_id: str) -> pathlib.Path:
  """The PNG of an image; those of the pool are put into the store on first use."""
  path = ctx.images.made.path(image_id)
  if not path.exists():
    ctx.images.made.put(ctx.images(image_id))
  return path


def _arms(
  summary: Summary, failures: Sequence[Failure], *, oracle: bool
) -> list[report_data.ArmRow]:
  """The arms, with the modes of the failures that each was first to find."""
  modes: dict[str, set[str]] = {}
  for f in failures:
    if f.verified and f.mode_id:
      for name in (_arm(f), ALL_ARMS):
        modes.setdefault(name, set()).add(f.mode_id)
  return [
    report_data.ArmRow(
      name=name,
      queries=row.queries,
      confirmed=row.verified,
      # Finds of the control are not verified.
      modes_found=None if name.startswith("control") else len(modes.get(name, ())),
      gaps_found=row.gaps_found if oracle else None,
      effective_modes=row.effective_modes if oracle else None,
      unseen_mass=row.unseen_mass,
    )
    for name, row in summary.arms.items()
  ]


def _curves(summary: Summary, *, oracle: bool) -> list[report_data.Curve]:
  rows = summary.curve
  if not rows:
    return []
  return [
    report_data.Curve(
      name="GRPO",
      steps=[r.step for r in rows],
      success=[r.success for r in rows],
      effective_modes=[r.effective_modes if oracle else None for r in rows],
    )
  ]


def _strategies(summary: Summary, *, oracle: bool) -> list[report_data.StrategyView]:
  return [
    report_data.StrategyView(
      name=name,
      confirmed=row.verified,
      faithful=row.faithful,
      only_here=row.only_here if oracle else None,
    )
    for name, row in summary.strategies.items()
  ]


def _rectify(summary: Summary) -> list[report_data.RectifyRow]:
  queries = {
    "repaired": summary.queries.total,
    "control_mined": summary.queries.control_random,
  }
  return [
    report_data.RectifyRow(
      name=name.replace("_", " "),
      all=row.all,
      gaps=row.gaps,
      rest=row.rest,
      examples=row.examples,
      queries=queries.get(name),
      note=REPAIR_NOTES[name],
    )
    for name, row in summary.rectify.items()
  ]


def _second_round(summary: Summary) -> list[report_data.SecondRoundRow]:
  modes = summary.second_round.modes if summary.second_round else ()
  return [
    report_data.SecondRoundRow(name=m.name, before=m.before, after=m.after, status=m.status)
    for m in modes
  ]
