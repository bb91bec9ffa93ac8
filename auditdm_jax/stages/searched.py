# SPDX-License-Identifier: Apache-2.0
"""What a search was worth: calibration of its surrogate, hacks of its finds, yield by queries.

All of it is read from records. Nobody is asked anything.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
import dataclasses

from auditdm_jax.audit import calibration as calibration_lib
from auditdm_jax.audit import hacks as hacks_lib
from auditdm_jax.audit import rates, summary
from auditdm_jax.audit.attempt import Failure, Find, unique_finds
from auditdm_jax.audit.calibration import Calibration
from auditdm_jax.audit.figures import CONTROL_ARM, FEWER_ARM
from auditdm_jax.audit.hacks import ArmHacks
from auditdm_jax.audit.outside import Labels, TrueAnswers
from auditdm_jax.audit.ranking import RANKED
from auditdm_jax.stages import labelled
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import ModeRow
from auditdm_jax.stages.rounds import is_training
from auditdm_jax.stages.rows import AttemptRow, queries_of
from auditdm_jax.stages.truth import LEAST_FINDS

TRAINING, SWEEP = "grpo", "sweep"  # The two parts of an audit.
_POINTS = 24  # Of a curve.


# ----------------------------------------------------------------------------------- calibration


def calibrations(
  trained: Sequence[AttemptRow], swept: Sequence[AttemptRow]
) -> tuple[Calibration, ...]:
  """Compares predictions with finds: of all that was asked, of what was ranked, and of the lot."""
  found = []
  for where, rows in ((TRAINING, trained), (SWEEP, swept)):
    told = [r for r in rows if r.score is not None]
    ranked = [r for r in told if r.way in RANKED]
    lot = [r for r in told if r.way == "lot"]
    for chosen, own in (("all", told), ("ranked", ranked), ("lot", lot)):
      row = calibration_lib.calibration(
        [r.score or 0.0 for r in own],
        [r.find for r in own],
        [r.origin_id for r in own],
        where=where,
        chosen=chosen,
      )
      found += [row] if row else []
  return tuple(found)


# ----------------------------------------------------------------------------------------- hacks


def hacks(ctx: Context, failures: Iterable[Failure], control: str | None) -> Mapping[str, ArmHacks]:
  """Counts what makes finds look like failures, by arm; finds of the control have no trials.

  Args:
    ctx: the run's oracle, labels and control.
    failures: graded finds, each in the arm that was first to find it.
    control: name of the control; None if no random questions were asked.
  """
  looked_at = list(failures)
  who = TrueAnswers(ctx.oracle.answer) if ctx.oracle.exists else None
  known = who.opinions(looked_at, ctx.judge) if who else [f.opinion for f in looked_at]
  told = list(zip(looked_at, known, strict=True))
  out = {}
  for name in (summary.ALL_ARMS, TRAINING, SWEEP):
    own = [(f, o) for f, o in told if name in (summary.ALL_ARMS, _part(f))]
    if own:
      verified = [(f, o) for f, o in own if f.verified]
      out[name] = ArmHacks(_count(own), _count(verified))
  if control and (finds := unique_finds(ctx.folder.control())):
    judges = who or Labels(labelled.answers_of(ctx.pool("images")))
    opinions = judges.opinions(finds, ctx.judge)
    out[control] = ArmHacks(hacks_lib.count(finds, opinions), None)
  return out


def _part(find: Find) -> str:
  return TRAINING if is_training(find.probe.arm) else SWEEP


def _count(told: Sequence[tuple[Failure, hacks_lib.Opinion | None]]) -> hacks_lib.HackCounts:
  return hacks_lib.count([f for f, _ in told], [o for _, o in told])


# ----------------------------------------------------------------------------------------- yield


@dataclasses.dataclass(frozen=True)
class Parts:
  """The attempts of a run in their order; None where the control was not asked."""

  trained: Sequence[AttemptRow]
  swept: Sequence[AttemptRow]
  control: Sequence[AttemptRow] | None

  @property
  def control_name(self) -> str:
    """What the control is called: whether it had as many queries."""
    asked = queries_of(self.trained) + queries_of(self.swept)
    few = self.control is None or queries_of(self.control) < asked
    return FEWER_ARM if few else CONTROL_ARM


@dataclasses.dataclass(frozen=True)
class Checked:
  """What verification looked at.

  Attributes:
    mode_of: by probe, the confirmed mode that its verified failure is of, or None.
  """

  mode_of: Mapping[str, str | None]

  @classmethod
  def of(cls, failures: Iterable[Failure], modes: Sequence[ModeRow]) -> "Checked":
    held = {m.mode_id for m in modes if m.status == "confirmed"}
    return cls(
      {f.probe.probe_id: f.mode_id if f.verified and f.mode_id in held else None for f in failures}
    )


def yields(
  ctx: Context, parts: Parts, checked: Checked, auditable: Sequence[str]
) -> Mapping[str, summary.Yield]:
  """Returns, by arm, what it had found after how many queries, and what that cost."""
  oracle = ctx.oracle.exists
  gaps = auditable if oracle else None
  training = ctx.folder.training_flops() if parts.trained else {}
  sweeping = _summed(batch.flops for batch in ctx.folder.ranked())
  both = None if training is None else _summed((training, sweeping))
  used = [s for s, rows in (("train", parts.trained), ("discover", parts.swept)) if rows]
  out = {}
  for name, rows, stages, work in (
    (summary.ALL_ARMS, [*parts.trained, *parts.swept], used, both),
    (TRAINING, parts.trained, ["train"], training),
    (SWEEP, parts.swept, ["discover"], sweeping),
  ):
    if rows:
      points = curve(rows, checked, gaps)
      out[name] = summary.Yield(points, _spent(ctx, stages), work or None)
  if parts.control:
    points = curve(parts.control, Checked({}), gaps, verified=oracle)  # Nothing of it is verified.
    out[parts.control_name] = summary.Yield(points, _spent(ctx, ["random control"]))
  return out


def _spent(ctx: Context, stages: Sequence[str]) -> float | None:
  """Returns the seconds of stages; None unless all of them were timed."""
  seconds = ctx.folder.seconds()
  return sum(seconds[s] for s in stages) if all(s in seconds for s in stages) else None


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
  out: dict[str, float] = {}
  for part in parts:
    for phase, value in part.items():
      out[phase] = out.get(phase, 0.0) + value
  return out


def curve(
  rows: Sequence[AttemptRow],
  checked: Checked,
  auditable: Sequence[str] | None,
  *,
  verified: bool = True,
) -> tuple[summary.YieldPoint, ...]:
  """Returns what an arm had found after equal steps of its queries.

  Args:
    rows: its attempts in their order.
    checked: what verification looked at.
    auditable: gaps that an audit can find; None without an oracle.
    verified: whether somebody told which of its finds are real.
  """
  seen: set[str] = set()
  gaps, modes = Counter[str](), Counter[str]()
  query = answers = confirmed = 0
  new: list[AttemptRow] = []
  points = []
  total = queries_of(rows)
  ends = deque(round(total * (i + 1) / _POINTS) for i in range(_POINTS))
  for row in rows:
    query += row.queries
    answers += row.answers
    if row.find and row.probe_id not in seen:
      seen.add(row.probe_id)
      confirmed += row.real
      if verified and (auditable is not None or row.probe_id in checked.mode_of):
        new.append(row)
      gaps.update([row.truth.gap] if row.truth.gap else [])
      modes.update([mode] if (mode := checked.mode_of.get(row.probe_id)) else [])
    if query >= ends[0]:
      while ends and ends[0] <= query:
        ends.popleft()
      point = summary.YieldPoint(
        queries=query,
        answers=answers,
        finds=len(seen),
        confirmed=confirmed if verified else None,
        gaps=None if auditable is None else sum(gaps[g] >= LEAST_FINDS for g in auditable),
        modes=sum(n >= LEAST_FINDS for n in modes.values()) if checked.mode_of else None,
        precision=rates.rate_by_image([r.real for r in new], [r.origin_id for r in new]),
      )
      points.append(point)
      new = []
  return tuple(points)
