# SPDX-License-Identifier: Apache-2.0
"""report: one folder that opens from a file, with the summary, the modes and their failures.

  python -m auditdm_jax report --workdir=runs/first
  python -m auditdm_jax report --workdir=runs/first --live

It tells what is there once the stage verify is done, and names what was not measured. Run again
after more stages, it has theirs too.

--live tells what is there so far while another process runs, and which stages are not done yet. It
waits for nothing, changes no result and no record, and stays off accelerators. When the run ends,
the whole report takes its place.

Reads:  everything in WORKDIR.
Writes: WORKDIR/report and, unless --live, WORKDIR/summary.json.
Costs:  no model is asked; images of pages are written. Minutes of one core for 50,000 probes.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
import datetime
import importlib.metadata
import logging
import pathlib
import shlex
import tempfile

from absl import flags
from ml_collections import ConfigDict

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.report import charts, listing
from auditdm_jax.audit.report import data as report_data
from auditdm_jax.audit.report.write import write_report
from auditdm_jax.audit.summary import (
  ALL_ARMS,
  Accuracy,
  LaterRound,
  ModeChange,
  RestChange,
  Summary,
)
from auditdm_jax.bench import page
from auditdm_jax.core import overrides, paths, runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import methods, past, screen, shown, so_far, suite
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import ModeRow, Verified
from auditdm_jax.stages.rounds import is_training
from auditdm_jax.stages.run import first_only
from auditdm_jax.stages.sections import CONTROLS, REWARDED
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
  "control_random": "with random questions that have a consensus",
  "control_mined": "with failures among random questions",
  REWARDED: "by GRPO",
}
SOURCE_NOTES = {
  "labelled": "labelled questions",
  "probes": "verified failures of the audit",
  "bootstrapped": "verified failures on unlabelled images",
  "random": "random questions",
}


FLAGS = flags.FlagValues()
_CONFIG = overrides.define(
  "The run's config; by default as its manifest has it.", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)
_LIVE = flags.DEFINE_bool(
  "live", False, "Of a run that goes on: what is there so far.", flag_values=FLAGS
)


def main() -> int:
  """Writes the report of the run that the flags name."""
  if _WORKDIR.value is None:
    raise UserError("report needs --workdir, the folder of the run; see report --help")
  if _LIVE.value:
    print(live(pathlib.Path(_WORKDIR.value), config=_CONFIG.value))
    return 0
  config = _CONFIG.value or past.config_of(_WORKDIR.value)
  with Context(config, paths.as_path(_WORKDIR.value), "report") as ctx:
    screen.show(run(ctx), ctx.folder.path, spent=ctx.spent())
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
    data = _data(ctx, done, summary)
    with first_only() as mine:  # It reads the failures one by one.
      if mine:
        write_report(ctx.folder.path / "report", data)
  return summary


def live(workdir: pathlib.Path, *, config: ConfigDict | None = None) -> pathlib.Path:
  """Writes what a run has found so far, which another process may still work on.

  Args:
    workdir: the folder of the run, on this machine.
    config: the run's; None = as its manifest has it.

  Returns:
    The path of the page.

  Raises:
    UserError: there is no such run, or its records are damaged.
  """
  if paths.is_remote(workdir):
    raise UserError(f"{workdir}: --live reads a folder of this machine")
  runtime.stay_off_accelerators()
  final = workdir / "report"
  if (workdir / "loop" / "done.json").exists() and (final / "index.html").exists():
    return final / "index.html"  # The whole report.
  if not (workdir / "verify" / "done.json").exists():
    return write_report(final, so_far.page(workdir))
  with tempfile.TemporaryDirectory() as answers:
    # Not entered: it takes no lock and writes no manifest.
    ctx = Context(config or past.config_of(workdir), workdir, "report", answers=answers)
    done = Round.of(ctx.folder)
    data = _data(ctx, done, summarise(ctx, done), stages=so_far.stage_rows(workdir, {}))
    return write_report(final, data)


def _data(
  ctx: Context,
  done: Round,
  summary: Summary,
  *,
  stages: Sequence[report_data.StageRow] = (),
) -> report_data.ReportData:
  """Returns what the pages show; `stages` are those of a run that goes on."""
  failures, verified = ctx.folder.failures(), done.verified
  modes = _modes(ctx, verified.modes, failures)
  linked = {card.probe_id for mode in modes for card in mode.cards}
  manifest = ctx.folder.manifest.read()
  oracle = ctx.oracle.exists  # Without one, a count of what it confirmed says nothing.
  return report_data.ReportData(
    title="Audit of " + ctx.models.target_name,
    target=ctx.models.target_name,
    references=list(ctx.models.references),
    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    summary=summary,
    stages=stages,
    funnel=_funnel(verified),
    gates=_gates(verified),
    outside=_outside(verified),
    worth=_worth(summary, verified),
    modes=modes,
    level=ctx.settings.taxonomy.fresh.level,
    of_finds=verified.fresh.of_finds if verified.fresh else 0,
    arms=_arms(summary, failures, oracle=oracle),
    curves=_curves(summary, oracle=oracle),
    strategies=_strategies(summary, oracle=oracle),
    rectify=_rectify(summary),
    pages=_pages(ctx, done),
    rounds=_rounds(summary, len(summary.reaudits)),
    health=done.evaluated.health if done.evaluated else None,
    finds=_finds(ctx, verified, failures, linked, summary.compared.not_looked_at),
    ledger=shown.ledger(ctx.folder.path),
    cost=shown.cost(ctx.spent(), summary.seconds),
    too_small=shown.too_small(summary, verified),
    code=shown.code(manifest),
    not_measured=methods.not_measured(ctx, done, summary, failures),
    methods=methods.how(ctx, summary, failures),
    commands=shown.commands(manifest),
    versions={
      name: importlib.metadata.version(name)
      for name in ("jax", "flax", "optax", "orbax-checkpoint")
    },
  )


def _pages(ctx: Context, done: Round) -> list[report_data.ExtraPage]:
  """The table of the benchmark, if models were measured."""
  table = suite.table(ctx) if done.evaluated else None
  return [page.page_of(table, path="benchmarks.html")] if table else []


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
      passed=gate.passed,
      failed=int(gate.passed.n - gate.passed.k),
      unmeasured=gate.unmeasured,
      required=gate.required,
    )
    for name, gate in verified.gates.items()
  ]


def _worth(summary: Summary, verified: Verified) -> list[report_data.WorthRow]:
  """How many finds are real: on labelled questions, then grade by grade by each who knows."""
  rows = []
  if labelled := verified.labelled:
    name, note = "conflicts of labelled questions", f"{labelled.unknown:,} without a clear label"
    rows.append(report_data.WorthRow(name=name, rate=labelled.real, by=labelled.by, note=note))
  for g in summary.grades:
    own = [("all finds (V0)", g.finds, ""), ("verified finds (V1)", g.verified, "")]
    own += [(f"V2 by {who}", rate, "") for who, rate in g.outside.items()]
    lost = f"of real ones {charts.rate_text(g.lost)}, of others {charts.rate_text(g.caught)}"
    own.append(("finds that verification stops", g.rejected, lost))
    own += [(f"stopped by {gate.replace('_', ' ')}", rate, "") for gate, rate in g.gates.items()]
    rows += [report_data.WorthRow(name=n, rate=rate, by=g.by, note=x) for n, rate, x in own]
  return rows


def _outside(verified: Verified) -> list[report_data.OutsideRow]:
  """Who was asked outside the ensemble, and whose side was taken."""
  return [
    report_data.OutsideRow(
      name=by, agrees=view.agrees, others=view.others, unmeasured=view.unmeasured
    )
    for by, view in verified.sides.items()
  ]


def _modes(
  ctx: Context, rows: Sequence[ModeRow], failures: Iterable[Failure]
) -> list[report_data.ModeView]:
  members: Counter[str] = Counter()
  few: dict[str, list[Failure]] = {}
  for f in failures:
    if f.verified and f.mode_id:
      members[f.mode_id] += 1
      few[f.mode_id] = _varied([*few.get(f.mode_id, ()), f])
  views = []
  for row in sorted(rows, key=lambda r: (not r.holds, -members[r.mode_id])):
    views.append(
      report_data.ModeView(
        mode_id=row.mode_id,
        name=row.name,
        skill=", ".join(row.skills),
        definition=row.definition,
        members=members[row.mode_id],
        rate=row.fresh,
        base=row.base,
        ratio="" if row.ratio is None else f"{row.ratio:.1f}",
        status=_status(row),
        holds=row.holds,
        cards=[_card(ctx, f) for f in few.get(row.mode_id, ())],
        notes=_mode_notes(row),
      )
    )
  return views


def _status(row: ModeRow) -> str:
  """What became of a mode, in words."""
  if row.status == "too few":
    return f"too few: needs {row.needs} more fresh probes"
  if row.status == "confirmed" and not row.holds:
    return "confirmed, but not stable"
  return row.status


def _mode_notes(row: ModeRow) -> dict[str, str]:
  """Facts on the page of a mode."""
  notes = {"status": _status(row), "found with": f"{row.found.k} of {row.found.n} failed"}
  if row.ratio is not None:
    low, high = row.ratio_ci95
    end = "∞" if high is None else f"{high:.1f}"
    notes["ratio to the rate outside all modes"] = f"{row.ratio:.1f} [{low:.1f}, {end}]"
  if row.fresh:
    notes["images of the fresh probes"] = f"{row.images:,}"
    notes["q over all modes"] = f"{row.q:.2g}"
  if row.consensus:
    notes["fresh questions with a consensus"] = charts.rate_text(row.consensus)
  if row.stability is not None:
    notes["stability (Jaccard, 20 bootstraps over images)"] = f"{row.stability:.2f}"
  if row.gap:
    notes["planted gap (oracle)"] = f"{row.gap} ({row.gap_share:.0%} of confirmed)"
  return notes


def _finds(
  ctx: Context,
  verified: Verified,
  failures: Iterable[Failure],
  linked: Collection[str],
  not_looked_at: int,
) -> report_data.FindList:
  """The list of all finds; `linked` are those that pages of modes show."""
  names, required = {m.mode_id: m.name for m in verified.modes}, ctx.settings.verify.required
  return report_data.FindList(
    failures=failures,
    total=verified.funnel["looked_at"],
    shown=[
      report_data.FindRow(
        card=_card(ctx, f),
        mode_id=f.mode_id or "",
        mode=names.get(f.mode_id or "", ""),
        arm=_arm(f),
        why="; ".join(listing.reasons(f, required)),
        label=f.label or "",
      )
      for f in listing.shown(failures, linked)
    ],
    required=required,
    modes=names,
    not_looked_at=not_looked_at,
  )


def _varied(members: Sequence[Failure]) -> list[Failure]:
  """A few members: made images first (they show more), then by probe id."""
  return sorted(members, key=lambda f: (f.probe.source_image_id is None, f.probe.probe_id))[:CARDS]


def _card(ctx: Context, f: Failure) -> report_data.Card:
  source = f.probe.source_image_id or f.probe.image_id
  made = source != f.probe.image_id
  lineage = {
    "arm": _arm(f),
    "step": str(f.probe.step),
    "seed": str(f.probe.seed),
    "source image": source[:12],
    "image": f.probe.image_id[:12],
  }
  if f.probe.instruction:
    lineage["instruction"] = f.probe.instruction
  if f.probe.caption:
    lineage["caption"] = f.probe.caption
  if (smaller := ctx.folder.minimised(f.probe.probe_id)) is not None:
    lineage["shortest question that fails"] = smaller.question
  by, truth = _opinion(f)
  return report_data.Card(
    probe_id=f.probe.probe_id,
    question=f.probe.question,
    target=f.verdict.target,
    answers=f.verdict.answers,
    consensus=f.consensus,
    grade=f.grade,
    original=_path(ctx, source),
    edited=_path(ctx, f.probe.image_id) if made else None,
    strategy=f.probe.strategy,
    truth=truth,
    truth_by=by,
    gates=f.gates,
    lineage=lineage,
    command=_reproduce(ctx, f),
  )


def _opinion(f: Failure) -> tuple[str, str | None]:
  """Who has an opinion from outside and whose side that takes; and the answer."""
  if f.opinion is None:
    return "", None
  shown = " · ".join(x for x in (f.opinion.answer, f.opinion.note) if x)
  return f"{f.opinion.by}: {f.opinion.side}", shown or f.opinion.side


def _arm(f: Failure) -> str:
  """What loop.summarise calls the arm that found it."""
  return "grpo" if is_training(f.probe.arm) else f.probe.arm


def _reproduce(ctx: Context, f: Failure) -> str:
  """A shell line that asks all models this question again."""
  workdir = shlex.quote(f"--workdir={ctx.folder.path}")
  return f"python -m auditdm_jax repro {f.probe.probe_id} {workdir}"


def _path(ctx: Context, image_id: str) -> pathlib.Path | None:
  """The PNG of an image; those of the pool are put into the store on first use.

  A damaged one is written again if the pool has it. One that cannot be had is left out of its card.
  """
  images = ctx.images.made
  path = images.path(image_id)
  try:
    if path.exists():
      images.get(image_id)
      return path
  except UserError as e:
    logging.warning("%s", e)
  try:
    picture = ctx.images(image_id)  # Of the pool; else from the file, which is damaged or missing.
  except (KeyError, UserError):
    logging.warning("%s is missing or damaged: the report shows its failures without it", path)
    return None
  path.unlink(missing_ok=True)
  images.put(picture)
  return path


def _arms(
  summary: Summary, failures: Iterable[Failure], *, oracle: bool
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
      gaps_after=row.queries_to_gaps or (),
      varied=row.modes,
      corrected=row.corrected,
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
  spent = summary.queries
  queries = {"control_mined": spent.control_random}
  for name, row in summary.rectify.items():
    if name not in (suite.BASELINE, suite.LARGER, *CONTROLS):
      queries[name] = spent.total + ("bootstrapped" in row.sources) * spent.bootstrap
  return [
    report_data.RectifyRow(
      name=name.replace("_", " "),
      all=row.all,
      gaps=row.gaps,
      rest=row.rest,
      examples=row.examples,
      queries=queries.get(name),
      labels="; ".join(f"{charts.rate_text(x.right)}, by {x.by}" for x in row.labels),
      note=_repair_note(name, row),
    )
    for name, row in summary.rectify.items()
  ]


def _repair_note(name: str, row: Accuracy) -> str:
  """What a model was trained on."""
  parts = [f"{n:,} {SOURCE_NOTES.get(source, source)}" for source, n in row.sources.items()]
  return "; ".join([*([REPAIR_NOTES[name]] if name in REPAIR_NOTES else []), *parts])


def _rounds(summary: Summary, repairs: int) -> list[report_data.RoundView]:
  """The rounds in numbers, and mode by mode; a run with one round that repaired nothing has none.

  Args:
    summary: the audit.
    repairs: repaired targets, the controls left out.
  """
  if not repairs and len(summary.rounds) < 2:
    return []
  later = {r.number: r for r in summary.later}
  changes = {r.number: r.modes for r in summary.reaudits}
  spent = {stage: x for stage, x in summary.seconds.items() if stage != "total"}
  own = {r.round: spent.pop(f"round {r.round}", None) for r in summary.rounds}
  own[1] = sum(spent.values()) if spent else None
  return [
    report_data.RoundView(
      name=str(r.round),
      row=r,
      rest=_change(r.rest),
      seconds=own[r.round],
      found=_found(later[r.round]) if r.round in later else (),
      changed=_changed(changes.get(r.round, ())),
    )
    for r in summary.rounds
  ]


def _changed(modes: Sequence[ModeChange]) -> list[report_data.RoundModeRow]:
  """What a repair made of the modes that were known, those of its own round first."""
  return [
    report_data.RoundModeRow(
      name=m.name, before=m.before, after=m.after, status=m.status, origin=f"of round {m.round}"
    )
    for m in sorted(modes, key=lambda m: -m.round)
  ]


def _found(later: LaterRound) -> list[report_data.RoundModeRow]:
  """The modes of a later round, new ones first."""
  order = {"new": 0, "missed": 1, "merged": 2, "split": 3, "same": 4}
  found = sorted(later.found, key=lambda m: order.get(m.relation, 5))
  return [
    report_data.RoundModeRow(
      name=m.name,
      before=m.before,
      after=m.after,
      status=m.relation,
      origin=f"of {', '.join(m.parents)}" if m.parents else "",
    )
    for m in found
  ]


def _change(rest: RestChange | None) -> str:
  if rest is None or not rest.before.n:
    return ""
  low, high = rest.change_ci95
  points = 100 * (rest.after.value - rest.before.value)
  return f"{points:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], n = {rest.before.n:,}"
