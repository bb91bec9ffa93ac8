# SPDX-License-Identifier: Apache-2.0
"""What a run has found so far, from its files alone.

The run may go on meanwhile, and is not disturbed: nothing is written, locked or waited for. What a
process is just writing is left out, and so is what is damaged.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
import dataclasses
import datetime
import pathlib
from typing import Any

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.audit.report import charts
from auditdm_jax.audit.report import data as report_data
from auditdm_jax.core import jsonio, records
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.stages import shown
from auditdm_jax.stages.rounds import is_training
from auditdm_jax.stages.run import ROUNDS, TRAIN

STAGES = (
  "preflight",
  "evaluate",
  "train",
  "search",
  "discover",
  "control",
  "verify",
  "rectify",
  "reaudit",
)
_OF_AUDIT = ("preflight", "train", "discover", "verify")  # What `audit` runs of them.
_TIMED = {"control": "random control", "reaudit": "re-audit"}  # As seconds.json has them.
_NEWEST = 8  # Conflicts that a page shows.
_POINTS = 40  # Of the curve, at most.


@dataclasses.dataclass(frozen=True)
class SoFar:
  """Probes that are written down.

  Attributes:
    rate: those of them that are conflicts; n = 0 without any.
    probes: by stage: train and discover.
    steps: of GRPO: (conflicts, probes) of each.
    newest: conflicts, the last one first.
  """

  rate: rates.Rate
  probes: Mapping[str, int]
  steps: Mapping[int, tuple[int, int]]
  newest: tuple[Find, ...]

  @property
  def sentence(self) -> str:
    """How many probes are conflicts; "" without any."""
    if not self.rate.n:
      return ""
    text = charts.rate_text(self.rate)
    return f"so far {text} of the probes are conflicts; none is verified yet"


def read_or_none(path: pathlib.Path) -> Any:
  """Returns what a file of JSON holds; None if it is not there or damaged."""
  try:
    return jsonio.read_json(path)
  except (OSError, UserError, ValueError, RecursionError):
    return None


def manifest_stages(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns what the manifest says of each stage; {} if it is damaged."""
  manifest = read_or_none(folder / "manifest.json")
  stages = manifest.get("stages") if isinstance(manifest, dict) else None
  return (
    {k: v for k, v in stages.items() if isinstance(v, dict)} if isinstance(stages, dict) else {}
  )


def done(folder: pathlib.Path) -> list[str]:
  """Returns the stages of a round that are done, in their order."""
  return [stage for stage in STAGES if (folder / stage / "done.json").exists()]


def found(folder: pathlib.Path) -> SoFar:
  """Reads the probes of training and of the sweep.

  Raises:
    UserError: records are damaged, or of another version.
  """
  conflicts: list[bool] = []
  images: list[str] = []
  probes: Counter[str] = Counter()
  steps: dict[int, tuple[int, int]] = {}
  newest: deque[Find] = deque(maxlen=_NEWEST)
  try:
    for attempt in _attempts(folder):
      find = attempt.find
      is_find = find is not None
      conflicts.append(is_find)
      images.append(attempt.probe.origin_id)
      trains = is_training(attempt.probe.arm)
      probes["train" if trains else "discover"] += 1
      if trains:
        k, n = steps.get(attempt.probe.step, (0, 0))
        steps[attempt.probe.step] = k + is_find, n + 1
      if find is not None:
        newest.appendleft(find)
  except (AttributeError, LookupError, TypeError, ValueError) as e:
    raise UserError(f"{folder}: its records are of another version or damaged ({e!r:.80})") from e
  rate = rates.rate_by_image(conflicts, images) if conflicts else rates.NOTHING
  return SoFar(rate, probes, dict(sorted(steps.items())), tuple(newest))


def _attempts(folder: pathlib.Path) -> Iterator[Attempt]:
  for place, kind in ((f"records/{TRAIN}", "completions"), ("discover", "attempts")):
    if (folder / place).is_dir():
      for row in records.Records(folder / place).iterate(kind):
        if not row.get("invalid"):
          yield Attempt.from_dict(row)


def stage_rows(folder: pathlib.Path, probes: Mapping[str, int]) -> list[report_data.StageRow]:
  """Returns which stages of a run are done, those of later rounds included.

  Args:
    folder: of the run.
    probes: that are written down, by stage.
  """
  stages = manifest_stages(folder)
  wanted = STAGES if "loop" in stages or "audit" not in stages else _OF_AUDIT
  there, seconds = done(folder), read_or_none(folder / "seconds.json")
  times = seconds if isinstance(seconds, dict) else {}
  rows = [
    report_data.StageRow(
      name=stage,
      is_done=stage in there,
      note=f"{probes[stage]:,} probes so far" if probes.get(stage) and stage not in there else "",
      seconds=times.get(_TIMED.get(stage, stage)) if stage in there else None,
    )
    for stage in wanted
  ]
  for later in sorted((folder / ROUNDS).glob("[0-9]*"), key=lambda path: (len(path.name), path)):
    rows += [
      report_data.StageRow(name=f"round {later.name}: {stage}", is_done=stage in done(later))
      for stage in (*_OF_AUDIT[1:], "rectify")
    ]
  return rows


def page(folder: pathlib.Path) -> report_data.ReportData:
  """Returns a report of a run whose failures are not verified yet.

  Raises:
    UserError: the folder holds no run, or its records are damaged.
  """
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  stages = manifest_stages(folder)
  if not stages:
    raise UserError(f"{folder}: no folder of a run: it has no manifest.json, or a damaged one")
  so_far = found(folder)
  models = next((m for s in stages.values() if isinstance(m := s.get("models"), dict)), {})
  target = pathlib.PurePath(str(models.get("target", ""))).name or "a model"
  references = models.get("references")
  made = folder / "images"
  images = Images(made, fan_out=True) if made.is_dir() else None
  return report_data.ReportData(
    title=f"Audit of {target}, so far",
    target=target,
    references=[pathlib.PurePath(str(r)).name for r in references or ()],
    created=now,
    so_far=so_far.sentence or "no probe is written down yet",
    stages=stage_rows(folder, so_far.probes),
    curves=_curves(so_far.steps),
    newest=[_card(find, images) for find in so_far.newest],
    commands=shown.commands({"stages": stages}),
    code=shown.code({"stages": stages}),
  )


def _curves(steps: Mapping[int, tuple[int, int]]) -> list[report_data.Curve]:
  """The share of conflicts over the steps of GRPO, some steps a point."""
  if not steps:
    return []
  size = -(-len(steps) // _POINTS)
  rows = list(steps.items())
  bins = [rows[i : i + size] for i in range(0, len(rows), size)]
  shares = [sum(k for _, (k, _) in part) / sum(n for _, (_, n) in part) for part in bins]
  nothing: list[float | None] = [None] * len(bins)
  return [
    report_data.Curve(
      name="conflicts",
      steps=[part[-1][0] for part in bins],
      success=shares,
      effective_modes=nothing,
    )
  ]


def _card(find: Find, images: Images | None) -> report_data.Card:
  """A conflict, with its images as far as they are in the folder of the run."""
  probe = find.probe
  source = _image(images, probe.source_image_id or probe.image_id)
  made = _image(images, probe.image_id)
  return report_data.Card(
    probe_id=probe.probe_id,
    question=probe.question,
    target=find.verdict.target,
    answers=find.verdict.answers,
    consensus=find.consensus,
    grade="V0",
    original=source or made,
    edited=made if source and made != source else None,
    strategy=probe.strategy,
    lineage={"arm": probe.arm, "step": str(probe.step), "seed": str(probe.seed)},
  )


def _image(images: Images | None, image_id: str) -> pathlib.Path | None:
  """Returns where an image lies; None if it is not there, or not whole."""
  try:
    if images is not None:
      images.get(image_id)
      return images.path(image_id)
  except (KeyError, UserError, ValueError):
    pass
  return None
