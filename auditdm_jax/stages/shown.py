# SPDX-License-Identifier: Apache-2.0
"""What the report shows of a run besides its results: cost, version, small numbers, a ledger."""

from collections.abc import Mapping
import pathlib
import shlex
from typing import Any

from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.report import data as report_data
from auditdm_jax.audit.summary import Summary
from auditdm_jax.core import jsonio, typed
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.results import Verified

LEDGER = pathlib.PurePath("compare", "ledger.json")  # Below the folder of the run.
_FEW = 30  # Trials below which a rate says little (ours).
_CHANGES = 200  # Changed questions that a page shows.
_VERDICTS = {0: "No regression.", 1: "Regression.", 3: "Unsure."}


def cost(spent: Mapping[str, float], seconds: Mapping[str, float]) -> list[report_data.CostRow]:
  """Returns what the stages spent: answers by model, what endpoints counted, seconds by stage."""
  units = {"answers": "answers", "judge": "", "endpoint": ""}
  rows = [
    report_data.CostRow(name=name, amount=n, unit=units[kind])
    for key, n in sorted(spent.items())
    for kind, _, name in [key.partition("/")]
    if kind in units
  ]
  return rows + [
    report_data.CostRow(
      name=f"stage {name}" if name != "total" else "all stages", amount=s, unit="s"
    )
    for name, s in seconds.items()
  ]


def code(manifest: Mapping[str, Any]) -> str:
  """Returns the versions of the code that the stages ran, by commit."""
  commits = {str(stage.get("git") or "unknown") for stage in manifest["stages"].values()}
  return ", ".join(sorted(f"{c[:12]}{'-dirty' if c.endswith('-dirty') else ''}" for c in commits))


def commands(manifest: Mapping[str, Any]) -> list[str]:
  """Returns the commands that made the run, each once, the oldest first."""
  stages = sorted(manifest["stages"].values(), key=lambda stage: str(stage.get("started", "")))
  lines = [
    shlex.join(["python", "-m", "auditdm_jax", *map(str, stage.get("command", [])[1:])])
    for stage in stages
  ]
  return list(dict.fromkeys(lines))


def too_small(summary: Summary, verified: Verified) -> list[str]:
  """Returns which of the first page's numbers rest on few trials."""
  found = summary.compared.failures
  few = [m for m in verified.modes if m.fresh and m.fresh.n < _FEW]
  search = summary.search and summary.search.trained
  rows = (
    (found.n < 10 * _FEW, f"Only {found.n:,} distinct questions could be compared."),
    (
      0 < found.k < _FEW,
      f"Only {found.k:,.0f} failures are verified: shares among them say little.",
    ),
    (
      bool(few),
      f"Rates of {len(few)} of {len(verified.modes)} modes rest on fewer than {_FEW} fresh probes.",
    ),
    (bool(search and search.n < 10 * _FEW), "Search success rests on few probes."),
  )
  return [f"Too small to tell much: {text}" for small, text in rows if small]


def ledger(workdir: pathlib.Path) -> report_data.LedgerView | None:
  """Returns the comparison in the folder of the run; None if there is none.

  Raises:
    UserError: its file is damaged.
  """
  path = workdir / LEDGER
  if not path.exists():
    return None
  data = jsonio.read_json(path)
  try:
    names = {line["mode_id"]: str(line["name"]) for line in data["entries"]}
    return report_data.LedgerView(
      old=str(data["old"]["name"]),
      new=str(data["new"]["name"]),
      verdict=_VERDICTS.get(data["exit_code"], ""),
      probes=str(data["probes"]),
      left_out=int(data["left_out"]),
      rows=[
        report_data.LedgerRow(
          name=str(line["name"]),
          status=str(line["status"]),
          old=typed.load(Rate, line["old"]),
          new=typed.load(Rate, line["new"]),
          change_ci95=(float(line["change_ci95"][0]), float(line["change_ci95"][1])),
          needs_more=line["needs_more"] and int(line["needs_more"]),
        )
        for line in data["entries"]
      ],
      changes=[
        report_data.LedgerChange(
          mode=names.get(change["mode_id"], ""),
          worse=bool(change["worse"]),
          **{key: str(change[key]) for key in ("question", "expected", "old", "new")},
        )
        for change in data["changes"][:_CHANGES]
      ],
      notes=[str(note) for note in data["notes"]],
    )
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
    raise UserError(
      f"{path}: no ledger of `compare` ({e!r:.80}); remove it, or compare again"
    ) from e
