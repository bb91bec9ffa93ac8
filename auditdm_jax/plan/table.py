# SPDX-License-Identifier: Apache-2.0
"""Roofline and table of a plan. Nothing of it was measured on the chips it is about.

A program takes at least as long as the slowest of three: its operations on the matrix units, its
bytes through memory, its bytes over the links. That is the estimate; all three in a row, as if
nothing overlapped, is its upper end.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from auditdm_jax.plan import chips
from auditdm_jax.plan.compiling import Compiled
from auditdm_jax.plan.steps import PlannedProgram

LABEL = "compiled for, not run on"
_NAME = 40  # Columns of a program's name.
USABLE = 0.9  # Of the memory: the rest is for fragments and for what a run adds.


@dataclasses.dataclass(frozen=True)
class ProgramRow:
  """One program in a plan.

  Attributes:
    step: which.
    compiled: what the compiler said.
    beside: bytes of what else is on a chip while it runs.
    seconds: of the three rooflines: compute, memory, links; of one call.
  """

  step: PlannedProgram
  compiled: Compiled
  beside: float
  seconds: Mapping[str, float]

  @property
  def footprint(self) -> float:
    return self.compiled.total + self.beside

  @property
  def best(self) -> float:
    return max(self.seconds.values())

  @property
  def bound(self) -> str:
    return max(self.seconds, key=self.seconds.__getitem__)


@dataclasses.dataclass(frozen=True)
class Plan:
  """All programs of a run on a slice.

  Attributes:
    where: the chips.
    rows: in the order of a step.
    kept: bytes on a chip by what stays there through a step.
    run_steps: GRPO steps of the run.
  """

  where: chips.Slice
  rows: tuple[ProgramRow, ...]
  kept: Mapping[str, float]
  run_steps: int

  @property
  def limit(self) -> float:
    return USABLE * self.where.chip.memory

  def too_big(self) -> list[ProgramRow]:
    """Programs that do not fit, or not beside what else is there."""
    return [row for row in self.rows if row.compiled.refused or row.footprint > self.limit]

  @property
  def step_s(self) -> tuple[float, float]:
    """Seconds of a GRPO step: with perfect overlap, and with none."""
    best = sum(row.step.calls * row.best for row in self.rows)
    return best, sum(row.step.calls * sum(row.seconds.values()) for row in self.rows)

  @property
  def chip_hours(self) -> tuple[float, float]:
    best, worst = (s * self.run_steps * self.where.size / 3600 for s in self.step_s)
    return best, worst

  def repair_hours(self, row: ProgramRow) -> tuple[float, float]:
    """Chip-hours of a whole repair: with perfect overlap, and with none."""
    chips_s = row.step.updates * self.where.size / 3600
    return row.best * chips_s, sum(row.seconds.values()) * chips_s


def make(
  where: chips.Slice, done: Sequence[tuple[PlannedProgram, Compiled]], *, run_steps: int
) -> Plan:
  """Puts together what was compiled."""
  kept: dict[str, float] = {}
  for step, compiled in done:
    if step.keeps:
      kept[step.keeps] = max(kept.get(step.keeps, 0.0), compiled.stays)
  rows = []
  for step, compiled in done:
    # A repair has the slice to itself. Else a program's own part of what stays is in its total.
    beside = 0.0 if not step.calls else max(0.0, sum(kept.values()) - compiled.stays)
    rows.append(ProgramRow(step, compiled, beside, _seconds(where, compiled)))
  return Plan(where, tuple(rows), kept, run_steps)


def _seconds(where: chips.Slice, compiled: Compiled) -> dict[str, float]:
  chip, traffic = where.chip, compiled.traffic
  if traffic is None or chip.flops is None:
    return {"compute": 0.0, "memory": 0.0, "links": 0.0}
  return {
    "compute": compiled.flops / where.size / chip.flops,
    "memory": traffic.memory / chip.memory_rate,
    "links": traffic.wire / chip.link_rate,
  }


def text(plan: Plan) -> str:
  """Returns the table."""
  upper = plan.where.chip.compiler == "cpu"
  about = "; memory is an upper bound: a CPU computes bf16 in fp32" if upper else ""
  lines = [
    f"{plan.where.name}: {plan.where.size} chips, {LABEL}{about}",
    f"{'program':{_NAME}} {'GiB':>6} {'beside':>6} {'of 90%':>6} {'TFLOP':>7} {'HBM GB':>7}"
    f" {'links GB':>8} {'calls':>5} {'s':>7}  bound    collectives (runs)",
  ]
  for row in plan.rows:
    lines.append(_line(plan, row))
    if row.compiled.buffers:
      lines.append(f"{'':{_NAME}} largest: {'; '.join(row.compiled.buffers[:3])}")
  if plan.kept:
    kept = ", ".join(f"{name} {size / chips.GIB:.2f}" for name, size in plan.kept.items())
    lines.append(f"stays on a chip, GiB: {kept}")
  if plan.where.chip.flops is not None:
    lines += _repairs(plan)
  if plan.where.chip.flops is not None and any(row.step.calls for row in plan.rows):
    (best, worst), hours = plan.step_s, plan.chip_hours
    lines.append(
      f"a step: {best:.1f} s if all overlaps, {worst:.1f} s if nothing does, without the image"
      f" service; {plan.run_steps} steps: {hours[0]:.0f} to {hours[1]:.0f} chip-hours"
    )
  return "\n".join(lines)


def _line(plan: Plan, row: ProgramRow) -> str:
  compiled, traffic = row.compiled, row.compiled.traffic
  share = row.footprint / plan.limit if math.isfinite(plan.limit) else math.nan
  head = (
    f"{row.step.name[:_NAME]:{_NAME}} {compiled.total / chips.GIB:6.2f}"
    f" {row.beside / chips.GIB:6.2f} {share:6.0%}"
  )
  if traffic is None:
    return f"{head}  the compiler refuses it"
  kinds = ", ".join(f"{kind} {c.runs}" for kind, c in traffic.collectives.items()) or "none"
  return (
    f"{head} {compiled.flops / plan.where.size / 1e12:7.1f} {traffic.memory / 1e9:7.0f}"
    f" {traffic.wire / 1e9:8.1f} {row.step.calls:5d} {row.best:7.2f}  {row.bound:8} {kinds}"
  )


def _repairs(plan: Plan) -> list[str]:
  """Says what whole repairs cost."""
  lines = []
  for row in plan.rows:
    if row.step.updates and not row.compiled.refused:
      best, worst = plan.repair_hours(row)
      lines.append(
        f"{row.step.name}: {row.step.updates:,} updates, {best:.0f} to {worst:.0f} chip-hours"
      )
  return lines


def as_dict(plan: Plan) -> dict[str, Any]:
  """For `--json`."""
  best, worst = plan.step_s
  return {
    "label": LABEL,
    "topology": plan.where.name,
    "chips": plan.where.size,
    "limit_bytes": plan.limit if math.isfinite(plan.limit) else None,
    "kept_bytes": dict(plan.kept),
    "step_s": {"overlapped": best, "serial": worst},
    "chip_hours": plan.chip_hours,
    "fits": not plan.too_big(),
    "programs": [
      {
        "name": row.step.name,
        "calls": row.step.calls,
        "updates": row.step.updates,
        "chip_hours": plan.repair_hours(row) if row.step.updates else None,
        "total_bytes": row.compiled.total,
        "beside_bytes": row.beside,
        "refused": row.compiled.refused,
        "flops": row.compiled.flops,
        "memory_bytes": row.compiled.traffic.memory if row.compiled.traffic else None,
        "wire_bytes": row.compiled.traffic.wire if row.compiled.traffic else None,
        "collectives": {
          kind: dataclasses.asdict(c)
          for kind, c in (row.compiled.traffic.collectives if row.compiled.traffic else {}).items()
        },
        "seconds": dict(row.seconds),
        "bound": row.bound,
        "largest": row.compiled.buffers,
        "cpu_s": row.compiled.cpu_s,
      }
      for row in plan.rows
    ],
  }
