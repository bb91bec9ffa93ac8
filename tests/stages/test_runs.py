# SPDX-License-Identifier: Apache-2.0
"""The list of runs, on a terminal and as a page."""

import fcntl
import html.parser
import json
import os
import pathlib
import urllib.parse

import pytest

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.rates import rate
from auditdm_jax.audit.summary import Compared
from auditdm_jax.bench.sweeps import record
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import runs
from auditdm_jax.stages.run import RunFolder

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e[red]"


def make(
  root: pathlib.Path, name: str, *, stages=("audit",), done=(), started="2026-01-02T03:04:05+00:00"
) -> pathlib.Path:
  folder = root / name
  folder.mkdir(parents=True)
  facts = {"started": started, "models": {"target": f"models/{HOSTILE}"}}
  jsonio.write_json(
    folder / "manifest.json", {"version": 1, "stages": dict.fromkeys(stages, facts)}
  )
  for stage in done:
    (folder / stage).mkdir()
    (folder / stage / "done.json").write_text("{}")
  return folder


def reported(folder: pathlib.Path, **changes) -> None:
  compared = Compared(asked=50, failures=rate(3, 40), left_out={}, not_looked_at=0)
  found = jsonio.plain({"compared": compared}) | changes
  (folder / "summary.json").write_text(json.dumps(found))
  (folder / "report").mkdir()
  (folder / "report/index.html").write_text("x")


def test_runs_are_found_and_their_states_told(tmp_path):
  audit = make(tmp_path, "a/audit", done=["train", "verify"])
  reported(audit)
  make(audit, "nested")  # A run's folder is not looked into.
  make(tmp_path, "stopped", done=["train"], started="2026-03-01T00:00:00+00:00")
  reported(make(tmp_path, "loop", stages=["loop"], done=["verify"], started="2026-02-01"))
  reported(make(tmp_path, "whole", stages=["loop"], done=["verify", "loop"], started="2026-01-03"))
  make(tmp_path, "bench", stages=["predict"], started="2025")
  (tmp_path / "bench/predictions.json").write_text("{}")
  (tmp_path / "loops").symlink_to(tmp_path)
  (tmp_path / "empty").mkdir()
  rows = runs.rows_of(tmp_path)
  assert [(row.name, row.state) for row in rows] == [
    ("stopped", "stopped after train"),
    ("loop", "report, no repair yet"),
    ("whole", "finished"),
    ("a/audit", "finished"),
    ("bench", "benchmarks"),
  ]
  assert rows[3].headline.startswith("3 failures verified among 40 questions") and rows[3].link
  assert rows[0].headline == rows[0].link == ""
  (alone,) = runs.rows_of(audit)
  assert alone.name == "audit" and alone.link == "./report/index.html"


def attempt(i: int, target: str) -> Attempt:
  answers = {"t": target, "a": "red", "b": "red"}
  probe = Probe.make(f"{i:064x}", "which colour?", arm="x", source="s/0", seed=0)
  differs = target != "red"
  return Attempt(
    probe=probe,
    verdict=Verdict(
      probe_id=probe.probe_id,
      answers=answers,
      target="t",
      references=("a", "b"),
      consensus="red",
      agree=not differs,
      disagreement=differs,
      reason="disagreement" if differs else "agreement",
    ),
  )


def test_a_run_without_a_report_tells_what_it_found_so_far(tmp_path):
  folder = make(tmp_path, "now")
  assert runs.rows_of(tmp_path)[0].headline == ""
  sweep = RunFolder(folder, config_hash="")
  sweep.append_batch("discover", 0, [attempt(i, "blue" if i < 3 else "red") for i in range(12)])
  with open(folder / "discover/attempts-0.jsonl", "ab") as file:
    file.write(b'{"torn')  # By the process that writes it.
  said = runs.rows_of(tmp_path)[0].headline
  assert said.startswith("so far 25.0") and "(3/12, 95" in said and "none is verified" in said
  (folder / "discover/attempts-0.jsonl").write_text('{"probe": 3}\n{"probe": 3}\n')
  assert "damaged" in runs.rows_of(tmp_path)[0].headline


def test_a_run_at_work_is_told_and_can_still_be_started(tmp_path):
  folder = make(tmp_path, "now", done=["train"])
  with open(folder / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert runs.rows_of(tmp_path)[0].state == "running, train is done"
  assert runs.rows_of(tmp_path)[0].state == "stopped after train"
  with open(folder / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
  "text", ["", "[]", "{", '{"stages": 3}', '{"stages": {"a": 1}}', "[" * 9999]
)
def test_a_damaged_manifest_is_a_row(tmp_path, text):
  make(tmp_path, "a")
  (tmp_path / "a/manifest.json").write_text(text)
  assert runs.rows_of(tmp_path)[0].state == "manifest.json is damaged"


@pytest.mark.parametrize(
  "changes", [{"compared": 3}, {"compared": {}}, {"compared": {"asked": "x"}}]
)
def test_a_summary_of_another_version_is_told(tmp_path, changes):
  reported(make(tmp_path, "a"), **changes)
  assert "another version" in runs.rows_of(tmp_path)[0].headline


def test_a_sweep_is_a_row_above_its_runs_and_links_its_table(tmp_path, capsys, flags):
  sweep = tmp_path / "first"
  for seed, stages in ((0, ["loop"]), (1, [])):
    make(sweep, f"plain/{seed}", stages=["loop"], done=stages, started=f"2026-01-0{seed + 1}")
  cells = (record.Cell(name="plain"), record.Cell(name="novelty", arg="novelty=archive"))
  configs = {f"{cell.name}/{seed}": "0" for cell in cells for seed in (0, 1)}
  record.write(
    sweep, record.Sweep(config="a/c.py:b=/d", overrides=(), cells=cells, configs=configs)
  )
  (sweep / "table.html").write_text("x")
  (row,) = runs.sweeps_of(tmp_path)
  facts = (row.name, row.target, row.started, row.link)
  assert facts == ("first", "c.py:b=/d", "2026-01-01", "./first/table.html")
  assert row.state == "sweep, 1 of 4 runs finished" and row.headline == "compares plain, novelty"
  assert runs.main([str(tmp_path)]) == 0
  said = capsys.readouterr().out
  assert said.index("compares plain") < said.index("first/plain/1") < said.index("first/plain/0")
  assert "./first/table.html" in (tmp_path / "index.html").read_text()
  assert [row.name for row in runs.sweeps_of(sweep)] == ["first"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cells": 3}', "[" * 9999])
def test_a_damaged_sweep_is_a_row(tmp_path, text):
  make(tmp_path, "a/plain/0")
  (tmp_path / "a/sweep.json").write_text(text)
  assert runs.sweeps_of(tmp_path)[0].state == "sweep.json is damaged"
  assert [row.name for row in runs.rows_of(tmp_path)] == ["a/plain/0"]


@pytest.fixture
def flags():
  """The stage's flags, at their defaults."""
  runs.FLAGS(["runs"])


class Links(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.hrefs = [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.hrefs += [value for key, value in attrs if key == "href"]


def test_hostile_names_are_shown_and_not_obeyed(tmp_path, capfd, flags):
  names = ["javascript:alert(1)", HOSTILE.replace("/", "|"), "a b#c?d%20", os.fsdecode(b"x\xff")]
  for name in names:
    reported(make(tmp_path, name))
  assert runs.main([str(tmp_path)]) == 0
  out = capfd.readouterr().out
  assert "\x1b" not in out and "\u202e" not in out and "⟨U+001B⟩" in out
  page = Links()
  source = (tmp_path / "index.html").read_text(encoding="utf-8")
  page.feed(source)
  assert "script" not in page.tags and "\x1b" not in source and "\u202e" not in source
  links = [href for href in page.hrefs if href != "style.css"]
  assert len(links) == len(names) and all(href.startswith("./") for href in links)
  found = {os.fsdecode(urllib.parse.unquote_to_bytes(href)) for href in links}
  assert found == {f"./{name}/report/index.html" for name in names}
  assert all((tmp_path / link).is_file() for link in found)


def test_the_page_is_written_again_and_over_nothing_else(tmp_path, capsys, flags):
  make(tmp_path, "a")
  assert runs.main([str(tmp_path)]) == runs.main([str(tmp_path)]) == 0
  assert capsys.readouterr().out.endswith(f"{tmp_path}/index.html\n")
  (tmp_path / "index.html").write_text("mine")
  with pytest.raises(UserError, match="is there already"):
    runs.main([str(tmp_path)])
  assert (tmp_path / "index.html").read_text() == "mine"


@pytest.mark.parametrize("words", [["nowhere"], ["gs://bucket/runs"], ["a", "b"]])
def test_a_folder_that_is_not_there_is_refused(words):
  with pytest.raises(UserError):
    runs.main(words)
