# SPDX-License-Identifier: Apache-2.0
"""One command, from a folder of images and a random checkpoint to a report."""

from collections.abc import Sequence
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.core import overrides
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import own
from tests.stages import newcomer

pytest.importorskip("transformers")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A folder with photos/, and the flags of an audit of them."""
  folder = tmp_path_factory.mktemp("home")
  newcomer.photographs(folder / "photos", 30)
  newcomer.questions(folder / "photos")
  return folder, newcomer.checkpoints(folder) | {"images": str(folder / "photos")}


def command(flags: dict[str, str], *more: str) -> list[str]:
  given = [f"--{name}={value}" for name, value in flags.items()]
  return [sys.executable, "-m", "auditdm_jax", "audit", *given, *more]


def run(flags: dict[str, str], *more: str) -> str:
  """Runs an audit to its end; returns what it printed."""
  done = subprocess.run(
    command(flags, *more),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
    env=os.environ | {"XDG_CACHE_HOME": str(pathlib.Path(flags["auditor"]).parent / "cache")},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def summary_of(workdir: pathlib.Path) -> dict:
  summary = json.loads((workdir / "summary.json").read_text())
  del summary["seconds"]
  return summary


def missing(workdir: pathlib.Path) -> str:
  """What the report says was not measured."""
  return (workdir / "report/index.html").read_text().partition('id="not-measured"')[2]


def test_images_and_a_checkpoint_become_a_report_without_training(home, tmp_path):
  folder, flags = home
  said = run(flags, f"--workdir={tmp_path}", "--steps=0", "--budget=120", "--config.seed=3")
  found = summary_of(tmp_path)
  assert found["compared"]["failures"]["k"] > 0 and "failures verified among" in said
  assert found["queries"] == {
    "grpo": 0, "grpo_distinct": 0, "discover": 120, "total": 120, "control_random": None,
    "verify_looked_at": found["queries"]["verify_looked_at"], "bootstrap": 0,
  }  # fmt: skip
  assert set(found["arms"]) == {"untrained", "random", "all of the above"}
  assert found["coverage"] is found["precision"] is found["search"] is None
  for what in ("trained auditor", "no oracle", "equal queries", "stage rectify did not run"):
    assert what in missing(tmp_path), what
  config = overrides.read(tmp_path / own.CONFIG, ())
  assert config.seed == 3 and config.optim.steps == 0
  # Every other stage takes the config, and the report is what it was.
  other = [sys.executable, "-m", "auditdm_jax", "report", f"--config={tmp_path / own.CONFIG}"]
  subprocess.run([*other, f"--workdir={tmp_path}"], cwd=ROOT, check=True, timeout=300)
  assert summary_of(tmp_path) == found


@pytest.mark.slow  # Three audits.
def test_an_audit_that_is_killed_goes_on_to_the_same_summary(home, tmp_path):
  folder, flags = home
  more = ("--steps=2", "--budget=240")
  process = subprocess.Popen(
    command(flags, *more, f"--workdir={tmp_path / 'a'}"),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert process.stdout is not None
  for line in process.stdout:
    if line.startswith("== discover"):
      process.send_signal(signal.SIGKILL)
      break
  process.wait(60)
  assert not (tmp_path / "a/summary.json").exists()
  run(flags, *more, f"--workdir={tmp_path / 'a'}")
  run(flags, *more, f"--workdir={tmp_path / 'b'}")
  assert summary_of(tmp_path / "a") == summary_of(tmp_path / "b")
  assert summary_of(tmp_path / "a")["queries"]["grpo"] == 2 * own.PROMPTS * own.GROUP
  assert "A trained auditor" not in missing(tmp_path / "a")


def test_no_failure_and_hardly_an_image_are_a_result(tmp_path):
  """Three images, one question, and a target that is as its references: nothing to find."""
  newcomer.photographs(tmp_path / "few", 3)
  row = {"image": sorted(p.name for p in (tmp_path / "few").iterdir())[0], "question": "what ?"}
  (tmp_path / "one.jsonl").write_text(json.dumps(row))
  flags = newcomer.checkpoints(tmp_path, alike=True) | {
    "images": str(tmp_path / "few"),
    "questions": str(tmp_path / "one.jsonl"),
  }
  said = run(flags, f"--workdir={tmp_path / 'run'}", "--steps=0", "--budget=60")
  assert "rates of modes are not measured" in said
  assert re.search(r"no failure found: looked at \d+ questions .*, failure rate below", said)
  found = summary_of(tmp_path / "run")
  assert found["compared"]["failures"]["k"] == found["modes"]["found"] == 0
  # The auditor asks what the data set has not; what it repeats or garbles is not asked.
  assert 1 < found["queries"]["discover"] <= 60
  assert "No failure found" in (tmp_path / "run/report/index.html").read_text()


# ------------------------------------------------------------------------------- from the flags


def expand(flags: dict[str, str], *more: str) -> list[str]:
  assert main_lib.list_stages()["audit"]  # Whose other flags are let through.
  return own.expand(["audit", *(f"--{k}={v}" for k, v in flags.items()), *more])


def test_flags_become_a_config_and_what_is_given_goes_into_it(home, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder, flags = home
  workdir = tmp_path / "run"
  more = (f"--workdir={workdir}", "--budget=1000", "--image_service=gpu:1", "--devices=2")
  argv = expand(flags, *more, "--config.bank.batch_size=7", "--config.pool.fresh=other")
  assert argv == [
    "audit",
    f"--config={workdir / 'config.py'}",
    f"--workdir={workdir}",
    "--devices=2",
  ]
  config = overrides.read(workdir / own.CONFIG, ())
  assert config.bank.batch_size == 7 and config.images.address == "gpu:1"
  assert config.rollout.prompts.to_dict() == {"question": 4, "edit": 2, "generate": 2}
  assert config.models.target == flags["target"] and config.models.dtype == "float32"
  assert config.pool.fresh == "other"
  assert own.expand(argv) == argv  # A config is a config.


def test_a_workdir_of_another_config_is_refused_once_there_are_results(home, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder, flags = home
  workdir = tmp_path / "run"
  more = (f"--workdir={workdir}", "--steps=1")
  expand(flags, *more)
  expand(flags, *more, "--budget=900")
  (workdir / "train").mkdir()
  (workdir / "train/done.json").write_text("{}")
  expand(flags, *more, "--budget=900")
  with pytest.raises(UserError, match=r"another config, whose config.discover.batch is 209"):
    expand(flags, *more, "--budget=1900")


@pytest.mark.parametrize(
  ("changes", "more", "message"),
  [
    ({"target": ""}, (), "audit: --target is missing; The audited model"),
    ({}, ("--budgt=3",), r"not a flag: --budgt=3 \(did you mean 'budget'"),
    ({}, ("--steps=64",), "nothing of --budget=4096 for the sweep; at most 63 steps"),
    ({"images": "/nowhere"}, (), "/nowhere: neither"),
    ({}, ("--config.optim.stepz=1",), "config.optim has no key .stepz. .did you mean .steps."),
    ({"references": "a/x,b/x"}, (), "have one name, x"),
  ],
)
def test_mistakes_are_told_before_anything_is_written(
  home, tmp_path, monkeypatch, changes, more, message
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder, flags = home
  given = {k: v for k, v in (flags | changes).items() if v}
  with pytest.raises(UserError, match=message):
    expand(given, f"--workdir={tmp_path / 'run'}", *more)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", [1, 5, 63, 64, 200, 4096, 100_000])
def test_a_budget_is_never_exceeded(budget):
  steps: Sequence[int | None] = (None, 0)
  for given in steps:
    spent = own.spend(budget, given)
    sweep = spent.batch * spent.batches
    total = spent.steps * own.PROMPTS * own.GROUP + sweep
    assert sweep >= 1 and budget * 0.8 - 1 <= total <= budget
