# SPDX-License-Identifier: Apache-2.0
"""The list of all finds: which of them a page shows, why finds fell out, and the downloads.

A page with too many rows is slow, so it shows those that other pages link to and a random part of
the others. The files beside it have all of them.
"""

from collections import Counter
from collections.abc import Collection, Iterable
import csv
import heapq
import json
import pathlib

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.label_files import csv_cell
from auditdm_jax.audit.report import data as data_lib
from auditdm_jax.audit.report import text
from auditdm_jax.core import jsonio

MOST_ROWS = 1_000
_MOST_CELL = 32_000  # Characters; spreadsheets take 32,767.
_COLUMNS = (
  "id",
  "grade",
  "label",
  "mode",
  "mode_id",
  "strategy",
  "arm",
  "question",
  "target_said",
  "consensus",
  "shows_again",
  "fell_out_because",
  "image_id",
  "source_image_id",
  "instruction",
  "caption",
  "step",
)


def shown(failures: Iterable[Failure], linked: Collection[str]) -> list[Failure]:
  """Returns the finds for the page, verified ones first.

  Args:
    failures: all of them.
    linked: ids that other pages link to, which are there in any case.
  """
  # An id is a hash, so its order is a random one.
  first = heapq.nsmallest(
    MOST_ROWS, failures, key=lambda f: (f.probe.probe_id not in linked, f.probe.probe_id)
  )
  return sorted(first, key=lambda f: (not f.verified, f.mode_id or "~", f.probe.probe_id))


def reasons(failure: Failure, required: Collection[str]) -> list[str]:
  """Returns why a find is not verified, in the order in which it is asked; [] if it is."""
  if failure.verified:
    return []
  if failure.label == "wrong":
    return ["a person says that it is no error of the target"]
  failed = [
    f"{gate.name.replace('_', ' ')}{f': {gate.note}' if gate.note else ''}"
    for gate in failure.gates
    if gate.passed is False and gate.name in required
  ]
  stable = failure.stability
  if not failed and stable:
    return [f"shows again in {stable.k} of {stable.n} trials"]
  return failed


def tally(failures: Iterable[Failure], required: Collection[str]) -> list[tuple[str, int]]:
  """Counts what finds fell out by, each by all that it fell out by, most frequent first."""
  counts = Counter[str]()
  for failure in failures:
    for reason in reasons(failure, required):
      unstable = reason.startswith("shows again")
      counts["does not show again" if unstable else reason.partition(":")[0]] += 1
  return counts.most_common()


def write_downloads(root: pathlib.Path, finds: data_lib.FindList) -> None:
  """Writes failures.jsonl, with all that is known, and failures.csv."""
  with (root / "failures.jsonl").open("w", encoding="utf-8") as f:
    for failure in finds.failures:
      row = {"mode": finds.modes.get(failure.mode_id or ""), **failure.to_dict()}
      f.write(json.dumps(jsonio.plain(row), separators=(",", ":"), allow_nan=False) + "\n")
  # Spreadsheets take a file for UTF-8 by its first mark.
  with (root / "failures.csv").open("w", encoding="utf-8-sig", newline="") as f:
    writer = csv.writer(f)
    writer.writerow(_COLUMNS)
    for failure in finds.failures:
      writer.writerow([_cell(value) for value in _values(failure, finds)])


def _cell(value: object) -> object:
  if not isinstance(value, str):
    return value
  return csv_cell(text.visible(text.clip(value, _MOST_CELL)))


def _values(failure: Failure, finds: data_lib.FindList) -> tuple[object, ...]:
  """The values of `_COLUMNS`."""
  probe, stable = failure.probe, failure.stability
  return (
    probe.probe_id,
    failure.grade,
    failure.label,
    finds.modes.get(failure.mode_id or ""),
    failure.mode_id,
    probe.strategy,
    probe.arm,
    probe.question,
    failure.said,
    failure.consensus,
    f"{stable.k} of {stable.n}" if stable else None,
    "; ".join(reasons(failure, finds.required)),
    probe.image_id,
    probe.source_image_id,
    probe.instruction,
    probe.caption,
    probe.step,
  )
