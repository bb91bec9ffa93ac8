# SPDX-License-Identifier: Apache-2.0
"""Curves of several ways to search: what each has found after equal shares of its queries.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/search.py:gaps=drawn \\
    --workdir=runs/search --seeds=101,102,103,104,105
  python -m benchmarks.search --workdir=runs/search [--against=random] [--output=curves.json]

The first command runs what is not finished yet, and its own table compares the arms at their end.
This one asks nobody: it reads the summaries of finished runs. Printed: distinct confirmed finds,
gaps found and precision of the new finds after an eighth, a quarter, a half, three quarters and all
of the queries, the first two also as times those of another arm with the same seed; seconds and
FLOPs for each find. A number is the mean over runs with its 95 % t interval and their number.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib

from absl import app, flags
import rich.console
import rich.table

from auditdm_jax.audit.summary import ALL_ARMS, Yield, YieldPoint
from auditdm_jax.bench.sweeps import compare, record
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import swept
from benchmarks import own_flags

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "of a sweep", required=True, flag_values=_FLAGS)
_AGAINST = flags.DEFINE_string("against", "random", "the arm to compare with", flag_values=_FLAGS)
_OUTPUT = flags.DEFINE_string("output", "", "a file for the numbers", flag_values=_FLAGS)

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
Runs = Mapping[str, Mapping[int, Yield]]  # By arm and seed.


@dataclasses.dataclass(frozen=True)
class Line:
  """A number of an arm after each of `SHARES` of its queries; values are those of the runs."""

  arm: str
  what: str
  values: tuple[tuple[float, ...], ...]


def runs_of(folder: pathlib.Path) -> dict[str, dict[int, Yield]]:
  """Returns the yields of a sweep's finished runs by arm and seed, in the order of its cells.

  Raises:
    UserError: it is no sweep, or none of its runs is finished.
  """
  sweep = record.read(folder)
  if sweep is None:
    raise UserError(f"{folder}: no sweep; run auditdm_jax sweep with this --workdir first")
  finished, _ = swept.collect(folder, sweep)
  found: dict[str, dict[int, Yield]] = {cell.name: {} for cell in sweep.cells}
  for run in finished:
    if ALL_ARMS in run.summary.yields:
      found[run.cell][run.seed] = run.summary.yields[ALL_ARMS]
  found = {arm: own for arm, own in found.items() if own}
  if not found:
    raise UserError(f"{folder}: no run of the sweep is finished yet")
  return found


def after(found: Yield, share: float) -> YieldPoint:
  """Returns the last point within a share of the queries, or the first one."""
  most = share * found.points[-1].queries
  return next((p for p in reversed(found.points) if p.queries <= most + 0.5), found.points[0])


def lines(runs: Runs, against: str) -> list[Line]:
  """Returns what is printed of each arm; where a run has not measured something it is left out."""
  wanted: list[tuple[str, Callable[[YieldPoint], float | None]]] = [
    ("confirmed finds", lambda p: p.confirmed),
    ("gaps found", lambda p: p.gaps),
    ("confirmed modes", lambda p: p.modes),
    ("precision of new finds, %", lambda p: None if not p.precision.n else 100 * p.precision.value),
  ]
  out = []
  for what, value in wanted:
    for arm, own in runs.items():
      told = [_told([value(after(y, share)) for y in own.values()]) for share in SHARES]
      out += [Line(arm, what, tuple(told))] if any(told) else []
  base = runs.get(against, {})
  for arm, own in runs.items():
    if arm != against and (shared := sorted(own.keys() & base.keys())):
      times = [
        _told([_times(after(own[seed], s), after(base[seed], s)) for seed in shared])
        for s in SHARES
      ]
      out += [Line(arm, f"confirmed finds, times {against}", tuple(times))] if any(times) else []
  return out


def _times(ours: YieldPoint, theirs: YieldPoint) -> float | None:
  if ours.confirmed is None or not theirs.confirmed:
    return None
  return ours.confirmed / theirs.confirmed


def _told(values: Sequence[float | None]) -> tuple[float, ...]:
  return tuple(float(x) for x in values if x is not None)


def costs(runs: Runs) -> list[Line]:
  """Returns the cost of a confirmed find, over all queries."""
  out = []
  wanted: list[tuple[str, Callable[[Yield], float | None]]] = [
    ("seconds for each find", lambda y: y.seconds_per_find),
    ("GFLOP for each find", lambda y: None if (x := y.flops_per_find) is None else x / 1e9),
  ]
  for what, value in wanted:
    for arm, own in runs.items():
      out.append(Line(arm, what, (_told([value(y) for y in own.values()]),)))
  return [line for line in out if any(line.values)]


def said(values: Sequence[float]) -> str:
  """Mean over runs, 95 % t interval and their number."""
  found = compare.spread(values)
  if found is None:
    return "–"
  interval = "" if found.ci95 is None else f" [{found.ci95[0]:.3g}, {found.ci95[1]:.3g}]"
  return f"{found.mean:.4g}{interval} n={len(values)}"


def show(found: Sequence[Line], columns: Sequence[str], console: rich.console.Console) -> None:
  """Prints a table for each number."""
  for what in dict.fromkeys(line.what for line in found):
    table = rich.table.Table(title=what)
    for name in ("arm", *columns):
      table.add_column(name, no_wrap=True)
    for line in found:
      if line.what == what:
        table.add_row(line.arm, *map(said, line.values))
    console.print(table)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  try:
    runs = runs_of(pathlib.Path(_WORKDIR.value))
  except UserError as e:
    raise app.UsageError(str(e)) from e
  console = rich.console.Console(width=170)
  curves, spent = lines(runs, _AGAINST.value), costs(runs)
  show(curves, [f"{100 * share:g} % of queries" for share in SHARES], console)
  show(spent, ["mean [95 %]"], console)
  if _OUTPUT.value:
    jsonio.write_json(pathlib.Path(_OUTPUT.value), {"shares": SHARES, "lines": [*curves, *spent]})


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
