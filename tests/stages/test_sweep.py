# SPDX-License-Identifier: Apache-2.0
"""Sweeps: cells and their configs, runs that fail and are killed, printed commands, the table."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml

from auditdm_jax.bench.sweeps import record
from auditdm_jax.core import jsonio, overrides
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import cells, launching, swept, table
from auditdm_jax.stages import sweep as stage
from auditdm_jax.stages.cells import CellRun, Plan
from auditdm_jax.stages.remote import config_hash
from auditdm_jax.stages.running import Ended, Job, Runner
from auditdm_jax.stages.sections import AuditConfig
from tests.bench.summaries import summary

ROOT = pathlib.Path(__file__).parents[2]
ABLATIONS = sorted(p for p in ROOT.glob("configs/ablations/*.py") if p.name != "common.py")

# What a sweep starts in place of the program: a run in a moment, or a fault where one is planned.
FAKE = """
import fcntl, json, os, pathlib, sys, time
args = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[2:] if a.startswith("--"))
folder = pathlib.Path(args["workdir"])
folder.mkdir(parents=True, exist_ok=True)
lock = open(folder / ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open(folder / "starts", "a") as f:
  print(sys.argv[1], file=f)
print("hello from", folder.name, flush=True)
fault = folder.parents[1] / "faults" / folder.parent.name
if fault.exists():
  print("auditdm_jax: no such\\x1b[2J model", file=sys.stderr)
  sys.exit(int(fault.read_text()))
slow = folder.parents[1] / "slow"
while slow.exists():
  time.sleep(0.05)
if sys.argv[1] == "pretrain":
  (folder / "models/target").mkdir(parents=True)
  (folder / "models/target/config.json").write_text("{}")
else:
  (folder / "finished").write_text("")
"""


def configure(path, body):
  path.write_text(
    textwrap.dedent(f"""
      import runpy
      scenes = runpy.run_path({str(ROOT / "configs/scenes.py")!r})["get_config"]

      def get_config(arg=""):
        return scenes(arg)
    """)
    + textwrap.dedent(body)
  )
  return str(path)


def planned(spec, *given, seeds=(0,), root="/r", only=()):
  return cells.plan(spec, given, seeds=seeds, root=root, only=only)


def config_of(run):
  spec, given = overrides.given_in(run.args[1:])
  return overrides.read(spec, given, AuditConfig)


# --------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("preset", ["scenes", "paligemma2", "gemma3", "needle"])
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_every_ablation_is_a_sweep_of_every_preset(monkeypatch, path, preset):
  """Each cell has a config that is whole, and differs from all others."""
  monkeypatch.chdir(ROOT)
  if preset == "needle" and path.stem in ("overview", "references", "targets"):  # One choice only.
    with pytest.raises(UserError, match="needle"):
      planned(f"{path}:preset={preset}", seeds=(3,))
    return
  found = planned(f"{path}:preset={preset}", seeds=(3,))
  assert len(found.runs) == len(found.sweep.cells) > 1
  # Only the recipe's own choice may be one of the others.
  least = len(found.runs) - (path.stem in ("recipe", "replay"))
  assert len({run.config for run in found.runs}) >= least
  for run in found.runs:
    config = config_of(run)
    assert config.seed == config.images.seed == 3 and config.rounds.count == 1


def test_runs_go_seed_by_seed_and_overrides_are_typed(tmp_path):
  spec = configure(
    tmp_path / "c.py",
    """
    def sweep(add, arg):
      assert arg == "target=rare"
      add("a")
      add("b", "reward=plain", **{"grpo.group_size": 4, "rollout.prompts": {"edit-only": 3}})
      add("c", **{"models.references": ("x", "y"), "optim.lr": 1e-4, "models.sibling": "1"})
      terms = (("examples.own_reward:brevity", 0.5),)
      add("d", **{"rollout.prompts.edit-only": 2, "reward.terms": terms})
    """,
  )
  given = ("--config.optim.steps=7", "--config.verify.limit=5")
  found = planned(f"{spec}:target=rare", *given, seeds=(5, 2))
  assert [run.name for run in found.runs] == [f"{c}/{s}" for s in (5, 2) for c in "abcd"]
  a, b, c, d = (config_of(run) for run in found.runs[4:])
  assert {x.optim.steps for x in (a, b, c, d)} == {7} and {x.seed for x in (a, b)} == {2}
  assert all("target_rare" in x.models.target for x in (a, b, c, d))
  assert (a.grpo.group_size, b.grpo.group_size, b.reward.novelty) == (8, 4, "off")
  assert b.rollout.prompts.to_dict() == {"edit-only": 3}
  assert (c.models.references, c.optim.lr, c.models.sibling) == (("x", "y"), 1e-4, "1")
  assert d.rollout.prompts["edit-only"] == 2 and d.reward.terms[0][1] == 0.5
  assert found.sweep.cells[1].said.startswith("reward=plain grpo.group_size=4")


def test_some_cells_only(tmp_path):
  spec = configure(tmp_path / "c.py", "def sweep(add, arg):\n  add('a'); add('b', 'rounds=1')")
  assert [run.name for run in planned(spec, only=["b"]).runs] == ["b/0"]
  with pytest.raises(UserError, match="--cells=x: no cell 'x'; a, b"):
    planned(spec, only=["x"])


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("", r"no function sweep\(add, arg\)"),
    ("def sweep(add, arg): pass", "adds no cell"),
    ("def sweep(add, arg): add('a'); add('A')", "two cells are called 'a'"),
    ("def sweep(add, arg): add('../x')", "names no cell"),
    ("def sweep(add, arg): 1 / 0", r"c.py:\d+: ZeroDivisionError"),
    ("def sweep(add, arg): add('a', **{'grpo.sdt': 'none'})", "cell a: .*did you mean 'std'"),
    ("def sweep(add, arg): add('a', **{'grpo.std': 'nil'})", "cell a: .*grpo.std"),
    ("def sweep(add, arg): add('a', **{'optim.steps': 'x'})", "cell a: .*whole number"),
    ("def sweep(add, arg): add('a', **{'optim.steps': 1.5})", "cell a: .*whole number"),
    ("def sweep(add, arg): add('a', **{'models.sibling': 3})", "cell a: .*is 3, .* read as '3'"),
    ("def sweep(add, arg): add('a', 'target=esay')", "cell a: .*did you mean 'easy'"),
    ("def sweep(add, arg): add('a', 'seed=3')", "cell a gives a seed"),
  ],
)
def test_wrong_cells_are_named_before_anything_runs(tmp_path, body, message):
  with pytest.raises(UserError, match=message):
    planned(configure(tmp_path / "c.py", body), seeds=(0,))


@pytest.mark.parametrize(
  ("arg", "given", "message"),
  [
    ("seed=4", (), "give seeds by --seeds"),
    ("reward=plain", (), "cell b sets it"),
    ("", ("--config.grpo.std=batch",), "config.grpo.std: cell b sets it"),
    ("", ("--config.grpo={'std': 'batch'}",), "config.grpo: cell b sets it"),
  ],
)
def test_what_a_cell_sets_is_not_given_for_all(tmp_path, arg, given, message):
  body = "def sweep(add, arg):\n  add('a')\n  add('b', 'reward=plain', **{'grpo.std': 'none'})"
  spec = configure(tmp_path / "c.py", body)
  with pytest.raises(UserError, match=message):
    planned(f"{spec}:{arg}" if arg else spec, *given)


def test_a_config_that_takes_no_seed_is_named(tmp_path):
  spec = configure(
    tmp_path / "c.py",
    """
    def get_config(arg=""):
      return scenes()

    def sweep(add, arg):
      add("a")
    """,
  )
  with pytest.raises(UserError, match="has the seed 0; get_config is to take seed=N"):
    planned(spec, seeds=(1,))


def test_a_seed_can_have_a_target_of_its_own_which_its_cells_share(monkeypatch):
  monkeypatch.chdir(ROOT)
  found = planned("configs/ablations/first.py:gaps=drawn", seeds=(101, 7), root="/r")
  assert found.targets.keys() == {101, 7}
  assert "only=target,gaps=seed:7,seed=7," in found.targets[7]
  for run in found.runs:
    config = config_of(run)
    assert config.world.gaps == f"seed:{run.seed}"
    assert config.models.target == f"/r/_targets/{run.seed}/models/target"
  assert planned("configs/ablations/first.py").targets == {}


@pytest.mark.parametrize(
  ("root", "more", "data"),
  [("/r", (), "/r/_data"), ("gs://b/r", (), ""), ("/r", ("--config.pool.data_dir=/d",), "/d")],
)
def test_a_data_set_that_is_made_here_is_made_once(monkeypatch, root, more, data):
  monkeypatch.chdir(ROOT)
  spec = "configs/ablations/first.py"
  found = cells.plan(spec, more, seeds=(0, 1), root=root).runs
  assert len(found) == 4 and {config_of(run).pool.data_dir for run in found} == {data}
  assert {run.config for run in found} == {config_hash(config_of(run)) for run in found}


# ------------------------------------------------------------------------------------- running


@pytest.fixture
def fake(tmp_path):
  path = tmp_path / "fake.py"
  path.write_text(FAKE)
  return (sys.executable, str(path))


def plan_of(root, *names, seeds=(0,), target=""):
  found = [record.Cell(name=name) for name in names]
  runs = [
    CellRun(f"{cell.name}/{seed}", cell, seed, ("loop", "--config=c"), target, "h")
    for seed in seeds
    for cell in found
  ]
  configs = {run.name: "h" for run in runs}
  sweep = record.Sweep(config="c", overrides=(), cells=tuple(found), configs=configs)
  record.write(root, sweep)
  return Plan(sweep, tuple(runs))


def finish(folder, found, config="h"):
  """Makes the folder of a finished run."""
  jsonio.write_json(folder / "loop/done.json", {"config": config, "result": {}})
  jsonio.write_json(folder / "summary.json", found)
  cost = {"answers/t": 7, "answers/r": 5, "abstention/t": 3}
  jsonio.write_json(folder / "manifest.json", {"stages": {"loop": {"cost": cost}}})


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path, fake, capfd):
  (tmp_path / "faults").mkdir()
  (tmp_path / "faults/b").write_text("2")
  found = plan_of(tmp_path, "a", "b", "c", seeds=(0, 1))
  ended = stage.run(found, tmp_path, Runner(at_once=2, program=fake))
  codes = {end.job.name: end.code for end in ended}
  assert codes == {f"{c}/{s}": 2 * (c == "b") for c in "abc" for s in (0, 1)}
  assert all((tmp_path / f"{c}/{s}/finished").exists() for c in "ac" for s in (0, 1))
  said = capfd.readouterr().out
  assert "a/0 | hello from 0" in said and "\x1b" not in said
  assert "no such" in (tmp_path / "_logs/b/1.log").read_text()
  assert stage._report(ended, tmp_path) == 1
  said = capfd.readouterr().out
  assert "b/0" in said and "no such" in said and "a/0" not in said


def test_what_is_finished_is_not_started_again(tmp_path, fake, capfd):
  found = plan_of(tmp_path, "a", "b")
  finish(tmp_path / "a/0", summary(800))
  finish(tmp_path / "b/0", summary(800), config="another")
  ended = stage.run(found, tmp_path, Runner(at_once=1, program=fake))
  assert [end.job.name for end in ended] == ["b/0"]  # It says itself what is wrong.
  assert "a/0 | is finished" in capfd.readouterr().out


def test_targets_come_first_once_a_seed_and_their_failure_is_that_of_their_cells(tmp_path, fake):
  found = plan_of(tmp_path, "a", "b", seeds=(1, 2), target="p.py:x")
  runner = Runner(at_once=2, program=fake)
  ended = stage.run(found, tmp_path, runner)
  assert [end.code for end in ended] == [0] * 4
  assert (tmp_path / "_targets/1/starts").read_text() == "pretrain\n"
  assert (tmp_path / "_targets/1/models/target/config.json").exists()

  (tmp_path / "_targets/faults").parent.mkdir(exist_ok=True)
  other = tmp_path / "other"
  (other / "faults").mkdir(parents=True)
  (other / "faults/_targets").write_text("3")
  found = plan_of(other, "a", "b", seeds=(1,), target="p.py:x")
  ended = stage.run(found, other, Runner(at_once=1, program=fake))
  assert [(end.job.name, end.code) for end in ended] == [("target/1", 3)]
  assert not (other / "a/1").exists()


DRIVER = """
import pathlib, signal, sys
from auditdm_jax.__main__ import _terminate
from auditdm_jax.stages.running import Job, Runner
signal.signal(signal.SIGTERM, _terminate)
root = pathlib.Path({workdir!r})
jobs = [
  Job(name, ("loop", f"--workdir={{root}}/{{name}}"), root / name, root / "_logs" / name)
  for name in ("a/0", "b/0", "c/0")
]
try:
  Runner(at_once=2, program={fake!r}).run(jobs)
except KeyboardInterrupt:
  sys.exit(77)
"""


def _until(condition, seconds=300.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_killed_goes_on(tmp_path, fake, signum):
  """SIGTERM stops its runs with it; after SIGKILL, one that still works is waited for."""
  (tmp_path / "slow").write_text("")
  source = DRIVER.format(workdir=str(tmp_path), fake=fake)
  process = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.DEVNULL)
  try:
    _until(lambda: (tmp_path / "a/0/starts").exists() and (tmp_path / "b/0/starts").exists())
    os.kill(process.pid, signum)
    code = process.wait(60)
  finally:
    process.kill()
  assert code == (77 if signum == signal.SIGTERM else -signal.SIGKILL)
  assert not (tmp_path / "c/0").exists()
  if signum == signal.SIGKILL:
    timer = subprocess.Popen(["sh", "-c", f"sleep 1; rm {shlex.quote(str(tmp_path / 'slow'))}"])
  else:
    (tmp_path / "slow").unlink()
  ended = stage.run(plan_of(tmp_path, "a", "b", "c"), tmp_path, Runner(at_once=2, program=fake))
  if signum == signal.SIGKILL:
    timer.wait()
  assert [end.code for end in ended] == [0, 0, 0]
  assert all((tmp_path / f"{c}/0/finished").exists() for c in "abc")


# ------------------------------------------------------------------------------------ launching


def _lines(kind, flags="", root="gs://b/x"):
  config = "configs/ablations/reward.py:preset=paligemma2"
  given = ["--config.a={'b': \"c $(d)\"}"]
  cell = record.Cell(name="A.b+c", overrides=())
  runs = [
    CellRun(f"{cell.name}/{s}", cell, s, ("loop", f"--config={config}", *given), "", "h")
    for s in (0, 1)
  ]
  plan = Plan(record.Sweep(config=config, overrides=(), cells=(cell,), configs={}), tuple(runs))
  return list(launching.lines(plan, root, kind=kind, flags=flags)), runs


@pytest.mark.parametrize("kind", ["tpu", "gke", "slurm"])
def test_printed_commands_are_those_of_the_launchers(kind):
  """Each is run, dry: the launcher's program gets the arguments as they are."""
  flags = {
    "tpu": "--zone=us-west4-a --spot",
    "gke": "--image=gcr.io/p/a:1 --topology=4x4",
    "slurm": "--nodes=2 '--sbatch=--comment=a b'",
  }[kind]
  printed, runs = _lines(kind, flags)
  names = set()
  for line, run in zip(printed, runs, strict=True):
    words = shlex.split(line)
    at = words.index("--")
    assert words[at + 1 :] == [*run.args, f"--workdir=gs://b/x/{run.name}"]
    names.add(words[1])
    dry = [*words[:at], "--dry-run", *words[at:]]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    if kind == "gke":
      job = yaml.safe_load(done.stdout.partition("\n")[2].removesuffix("JOB\n"))
      pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
      args = [a.replace("$$", "$") for a in pod["containers"][0]["args"]]
      assert args[:-1] == words[at + 1 :] and job["metadata"]["name"] == words[1]
  assert kind == "slurm" or len(names) == 2


def test_local_commands_and_their_targets():
  printed, runs = _lines("local", root="/a b")
  assert [shlex.split(line)[3:] for line in printed] == [
    [*run.args, f"--workdir=/a b/{run.name}"] for run in runs
  ]
  with pytest.raises(UserError, match="no launcher"):
    _lines("local", "--zone=x")
  with pytest.raises(UserError, match="No closing quotation"):
    _lines("tpu", "'")


def test_names_of_jobs_are_allowed_and_apart():
  runs = ["a.b/0", "a-b/0", "A-B/0", "a+b/0", "a_b/0", "group-4/1", "x" * 48 + "/123456789"]
  names = [launching.job_name(run) for run in runs]
  assert len(set(names)) == len(names) and launching.job_name("group-4/1") == "group-4-1"
  assert all(len(n) <= 40 and n.replace("-", "").isalnum() and n == n.lower() for n in names)


# ---------------------------------------------------------------------------------------- table


def test_the_table_is_of_finished_runs_and_names_the_others(tmp_path, capsys):
  plan_of(tmp_path, "a", "b", seeds=(0, 1))
  for run, k in (("a/0", 800), ("a/1", 820), ("b/0", 850)):
    finish(tmp_path / run, summary(k))
  finish(tmp_path / "b/1", summary(100), config="another")
  assert table.main(None, tmp_path) == 0
  said = capsys.readouterr().out
  assert "+5.0" in said and "another config" in said
  found = json.loads((tmp_path / "table.json").read_text())
  assert found["budgets"][0]["answers"] == 12 and found["missing"][0][0] == "b/1"


def test_a_table_of_nothing_says_so(tmp_path):
  with pytest.raises(UserError, match="no folder of a sweep; .* needs --config"):
    table.main(None, tmp_path)
  plan_of(tmp_path, "a")
  with pytest.raises(UserError, match="a/0 not started"):
    table.main(None, tmp_path)
  finish(tmp_path / "a/0", summary(800))
  (tmp_path / "a/0/summary.json").write_text("{")
  assert not swept.is_finished(tmp_path / "a/0", "h")
  with pytest.raises(UserError, match="no run of the sweep is finished"):
    table.main(None, tmp_path)


@pytest.mark.parametrize("seeds", ["", "x", "-1", "1,1", "1,2,", "1.5", "9999999999"])
def test_seeds_that_are_none(seeds):
  with pytest.raises(UserError, match="--seeds="):
    stage._seeds(seeds.split(","))


def test_outcomes_that_were_not_started_are_failures(tmp_path, capsys):
  plan_of(tmp_path, "a")
  job = Job("a/0", (), tmp_path / "a/0", tmp_path / "log")
  assert stage._report([Ended(job, -9, 1.0, "said")], tmp_path) == 1
  assert "-9" in capsys.readouterr().out
