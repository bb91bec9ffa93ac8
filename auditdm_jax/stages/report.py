# SPDX-License-Identifier: Apache-2.0
"""report: one folder that opens from a file, with the summary, the modes and their failures."""

from collections.abc import Mapping, Sequence
import datetime
import importlib.metadata
import pathlib
import shlex
import sys

from ml_collections import ConfigDict

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.report import data as report_data
from auditdm_jax.audit.report.write import write_report
from auditdm_jax.audit.summary import Summary
from auditdm_jax.core import paths, runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Evaluated, ModeRow, Verified
from auditdm_jax.stages.run import TRAIN

CARDS = 8  # per mode
FUNNEL_NOTES = {
  "attempted": "probes sent, malformed ones included",
  "unique": "each question about an image once",
  "finds": "the references agree and the target differs",
  "looked_at": "at most as many as the config allows, evenly over kinds of failure",
  "stable": "V1: the conflict shows again",
  "independent_agrees": "V2: the independent judge sides with the consensus",
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
  ("Verified (V1)", "The find passes the gates and shows again in at least 4 of 5 trials: asked "
   "again, in another wording, on slightly changed images."),
  ("Independent judge (V2)", "In the scenes world the symbolic oracle reads the image and confirms "
   "that the consensus is true and the target wrong. It is used for reporting only, never as "
   "reward or label."),
  ("Confirmed finds", "Finds, before any gate, of which the oracle says that the consensus is true "
   "and the target wrong; where there is no oracle, all finds."),
  ("Search success", "Confirmed finds among all probes sent, malformed ones included."),
  ("Modes", "Rules over question and consensus whose failure rate among all attempted probes is "
   "significantly raised; their rates are measured on fresh images and questions."),
  ("Controls", "prompt-only auditor; random questions at equal total queries (GRPO's included); "
   "random questions with consensus at equal training examples; mined random failures at equal "
   "queries."),
)  # fmt: skip


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "report") as ctx:
    summary = ctx.folder.summary()
    if summary is None:
      raise UserError(f"{workdir / 'summary.json'} is not there; run the loop first")
    print(f"report: {run(ctx, summary)}")
  return 0


def run(ctx: Context, summary: Summary) -> pathlib.Path:
  """Writes <workdir>/report and returns its index.html.

  Raises:
    UserError: the workdir is not on this machine, or a stage before is not done.
  """
  if paths.is_remote(ctx.folder.path):
    raise UserError(
      f"{ctx.folder.path}: copy it to this machine and run the stage report on the copy"
    )
  ctx.pool("images")  # so that source images are found by id
  verified, evaluated = ctx.folder.done("verify", Verified), ctx.folder.done("evaluate", Evaluated)
  if verified is None or evaluated is None:
    raise UserError(f"{ctx.folder.path}: run the stages evaluate and verify first")
  failures = ctx.folder.failures()
  oracle = ctx.oracle.exists  # Without one, a count of what it confirmed says nothing.
  data = report_data.ReportData(
    title="Audit of " + ctx.models.target_name,
    target=ctx.models.target_name,
    references=list(ctx.models.references),
    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    summary=summary,
    funnel=_funnel(verified.funnel, oracle=oracle),
    modes=_modes(ctx, verified.modes, failures),
    arms=_arms(summary, failures, oracle=oracle),
    curves=_curves(summary, oracle=oracle),
    strategies=_strategies(summary, oracle=oracle),
    rectify=_rectify(summary),
    second_round=_second_round(summary),
    health=evaluated.health,
    methods=METHODS,
    commands=["python -m auditdm_jax " + shlex.join(sys.argv[1:])],
    versions={
      name: importlib.metadata.version(name)
      for name in ("jax", "flax", "optax", "orbax-checkpoint")
    },
  )
  root = ctx.folder.path / "report"
  return write_report(root, data) if runtime.is_main() else root / "index.html"


def _funnel(counts: Mapping[str, int], *, oracle: bool) -> list[report_data.FunnelRow]:
  return [
    report_data.FunnelRow(name=name.replace("_", " "), count=n, note=FUNNEL_NOTES.get(name, ""))
    for name, n in counts.items()
    if oracle or name != "independent_agrees"
  ]


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
  return report_data.Card(
    probe_id=f.probe.probe_id, question=f.probe.question, target=f.verdict.target,
    answers=f.verdict.answers, consensus=f.consensus, grade=f.grade,
    original=_path(ctx, source), edited=_path(ctx, f.probe.image_id) if made else None,
    strategy=f.probe.strategy, truth=f.independent,
    gates=f.gates,
    lineage=lineage,
    command=_reproduce(ctx, f),
  )  # fmt: skip


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
      for name in (_arm(f), "all of the above"):
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


def _strategies(summary: Summary, *, oracle: bool) -> list[report_data.StrategyRow]:
  return [
    report_data.StrategyRow(
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
