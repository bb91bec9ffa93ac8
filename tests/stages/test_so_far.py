# SPDX-License-Identifier: Apache-2.0
"""A look at a run that goes on: what is there so far, and nothing of the run is touched."""

import datetime
import fcntl
import json
import pathlib

import numpy as np
import pytest

from auditdm_jax.audit.report import data as report_data
from auditdm_jax.audit.report import write
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.records import Records
from auditdm_jax.stages import report, so_far
from auditdm_jax.stages.run import RunFolder
from tests.stages.test_report import Run, _without_oracle
from tests.stages.test_report import _attempt as attempt_at
from tests.stages.test_runs import HOSTILE, attempt, make


@pytest.fixture
def going(tmp_path):
  """A loop in its sweep, whose writer is in the middle of a line."""
  folder = make(tmp_path, "run", stages=("loop",), done=("preflight", "evaluate", "train"))
  (folder / "seconds.json").write_text('{"preflight": 7.4, "verify": 99.0}')
  rows = [
    {"step": i // 4, "prompt_id": 0, "sample": i % 4, "invalid": None}
    | attempt_at(f"{i:063x}", "train", said="red" if i % 4 == 0 else "blue").to_dict()
    for i in range(8)
  ]
  Records(folder / "records/train").append("completions", rows)
  sweep = RunFolder(folder, config_hash="")
  sweep.append_batch("discover", 0, [attempt(i, HOSTILE if i < 3 else "red") for i in range(12)])
  with open(folder / "discover/attempts-0.jsonl", "ab") as file:
    file.write(b'{"torn')
  return folder


def content(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  return {
    str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file() and not path.is_relative_to(folder / "report")
  }


def test_a_run_at_work_is_shown_and_not_touched(going):
  before = content(going)
  with open(going / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = report.live(going)
  assert content(going).keys() == before.keys() | {".lock"}
  assert {k: v for k, v in content(going).items() if k != ".lock"} == before
  page = path.read_text(encoding="utf-8")
  assert "So far 25.0\u202f% (5/20, 95" in page and "none is verified yet." in page
  assert "3 of 9 stages are done" in page and page.count("not yet") == 6
  assert "done, 7 s" in page and "99 s" not in page  # Of an earlier run of verify.
  assert 'discover</bdi> <span class="fine">not yet, 12 probes so far' in page
  assert page.count('<article class="card"') == 5 and "<script" not in page
  assert "\x1b" not in page and "\u202e" not in page


def test_images_that_are_there_are_shown_and_damaged_ones_are_not(going):
  images = Images(going / "images", fan_out=True)
  find = so_far.found(going).newest[0]
  assert so_far.page(going).newest[0].original is None
  image_id = images.put(np.full((4, 4, 3), 7, np.uint8))
  path = images.path(image_id)
  assert so_far._image(images, image_id) == path
  path.write_bytes(path.read_bytes()[:20])
  assert so_far._image(images, image_id) is None
  assert so_far._image(images, "../" * 9 + "etc/passwd") is None and find.said == HOSTILE


def test_the_whole_report_takes_its_place_and_keeps_it(going):
  report.live(going)
  now = datetime.datetime.now(datetime.UTC)
  whole = report_data.ReportData(title="whole", target="t", created=now.isoformat())
  path = write.write_report(going / "report", whole)
  earlier = (now - datetime.timedelta(seconds=5)).isoformat()  # A look that began before the end.
  stages = (report_data.StageRow(name="train", is_done=True),)
  late = report_data.ReportData(title="late", target="t", created=earlier, stages=stages)
  write.write_report(going / "report", late)
  assert "whole" in path.read_text() and "late" not in path.read_text()
  (going / "loop").mkdir()
  (going / "loop/done.json").write_text("{}")
  assert report.live(going) == path and "whole" in path.read_text()


def test_a_verified_run_that_goes_on_has_its_report_with_the_stages(tmp_path, monkeypatch):
  folder = make(tmp_path, "run", stages=("loop",), done=("train", "verify"))
  run = _without_oracle(folder, [attempt_at(0, "random")])
  monkeypatch.setattr(report, "Context", lambda *args, **kwargs: run)
  monkeypatch.setattr(report.past, "config_of", lambda workdir: None)
  page = report.live(folder).read_text(encoding="utf-8")
  assert isinstance(run, Run) and not (folder / "summary.json").exists()
  assert "2 of 9 stages are done" in page and 'rectify</bdi> <span class="fine">not yet' in page
  assert "No failure found, but 1 conflicts were not looked at." in page


def test_later_rounds_are_stages(tmp_path):
  folder = make(tmp_path, "run", stages=("loop",))
  for number, done in (("2", "verify"), ("10", "train")):
    (folder / "rounds" / number / done).mkdir(parents=True)
    (folder / "rounds" / number / done / "done.json").write_text("{}")
  rows = {row.name: row.is_done for row in so_far.stage_rows(folder, {})}
  assert rows["round 2: verify"] and rows["round 10: train"] and not rows["round 10: verify"]
  assert list(rows)[-1] == "round 10: rectify"
  audit = make(tmp_path, "audit")
  assert len(so_far.stage_rows(audit, {})) == 4


def test_what_is_no_run_or_damaged_is_told_in_a_line(going):
  with pytest.raises(UserError, match="no folder of a run"):
    report.live(going.parent)
  with pytest.raises(UserError, match="of this machine"):
    report.live("gs://bucket/run")
  with open(going / "discover/attempts-0.jsonl", "w") as file:
    file.write(json.dumps({"probe": 3}) + "\n")
  with pytest.raises(UserError, match="damaged"):
    report.live(going)
