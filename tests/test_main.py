# SPDX-License-Identifier: Apache-2.0
"""The command line: what it says about mistakes, and how it stops."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tomllib

import pytest

from auditdm_jax import __main__ as main_lib

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
import ml_collections

def get_config(arg=""):
  if arg == "bad":
    raise ValueError("target must be easy or rare")
  return ml_collections.ConfigDict({"grpo": {"lr": 1.0}, "arg": arg})
"""
# Runs the command line with a stage of the test's own.
DRIVER = """
import sys, types
from auditdm_jax import __main__ as main_lib

stage = types.ModuleType("auditdm_jax.stages.pretend")
exec(open(sys.argv[1]).read(), stage.__dict__)
sys.modules["auditdm_jax.stages.pretend"] = stage
main_lib.list_stages = lambda: {"pretend": "A stage.", "serve-images": "A server."}
sys.exit(main_lib.run(["pretend", *sys.argv[2:]]))
"""


@pytest.fixture
def start(tmp_path):
  """Starts a stage whose `main` has the given body; returns the process."""
  (tmp_path / "config.py").write_text(CONFIG)

  def run(body: str, *flags: str, config: str = "config.py") -> subprocess.Popen:
    lines = "".join(f"  {line}\n" for line in body.splitlines())
    (tmp_path / "stage.py").write_text(f"def main(config, workdir):\n{lines}")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "stage.py")]
    command += [f"--config={tmp_path / config}", f"--workdir={tmp_path / 'run'}", *flags]
    return subprocess.Popen(
      command,
      cwd=ROOT,
      # "" = no folder of compiled programs but the default one.
      env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": ""},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return run


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
  out, err = process.communicate(timeout=60)
  return process.returncode, out, err


def test_a_stage_gets_config_and_workdir(start, tmp_path):
  body = "import jax\nprint(config.grpo.lr, config.arg, workdir, jax.device_count())\nreturn 3"
  process = start(body, "--config.grpo.lr=2", "--devices=4", config="config.py:rare")
  code, out, err = finish(process)
  assert (code, out, err) == (3, f"2.0 rare {tmp_path / 'run'} 4\n", "")
  assert (tmp_path / "run").is_dir() and [*(tmp_path / "cache/auditdm_jax").glob("xla*")]


@pytest.mark.parametrize(
  ("flags", "config", "message"),
  [
    (
      ["--config.grop.lr=2"],
      "config.py",
      "--config.grop.lr: config has no key 'grop' (did you mean 'grpo'?)",
    ),
    (["--config.grpo.lr=x"], "config.py", "--config.grpo.lr=x: expected a number"),
    (["--wrkdir=x"], "config.py", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    (["more"], "config.py", "not a flag: more"),
    (["--config.images.client.deadline=3"], "config.py", "(did you mean 'deadline_s'?)"),
    ([], "nothing.py", "nothing.py: no such file"),
    ([], "confg.py", "confg.py: no such file (did you mean "),
    ([], "config.py:bad", "ValueError: target must be easy or rare"),
  ],
)
def test_a_mistake_is_one_line(start, flags, config, message):
  code, out, err = finish(start("return 0", *flags, config=config))
  assert code == 2 and message in err and len(err.splitlines()) == 1, err
  assert err.startswith("auditdm_jax: ") and not out


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--workdir={}/config.py"], "--workdir=.*config.py: no folder can be made: File exists"),
    (["--workdir={}/config.py/x"], "no folder can be made: Not a directory"),
    (["--distributed", "--coordinator=nonsense"], "--coordinator=nonsense: must be host:port"),
    (["--distributed", "--coordinator=a:b"], "--coordinator=a:b: must be host:port"),
    (["--distributed", "--coordinator=a:70000"], "must be host:port"),
    (
      ["--distributed", "--coordinator=a:7000", "--processes=2", "--process=2"],
      "--process=2: of --processes=2 the last one is 1",
    ),
  ],
)
def test_a_mistake_about_the_machine_is_one_line(start, tmp_path, flags, message):
  code, out, err = finish(start("return 0", *(flag.format(tmp_path) for flag in flags)))
  assert code == 2 and re.search(message, err) and len(err.splitlines()) == 1, err


def test_a_key_that_the_file_leaves_out_is_given_and_listed(start):
  given = ["--config.images.client.security.token=7 'x'", "--config.mesh.fsdp", "-1"]
  process = start("print(config.images, config.mesh)\nreturn 0", *given)
  code, out, err = finish(process)
  assert (code, err) == (0, "") and "token: 7 'x'" in out and "fsdp: -1" in out
  code, out, err = finish(start("raise ValueError", "--config.images.client.security=help"))
  assert (code, err) == (0, "") and "--config.images.client.security.KEY" in out
  assert "  token " in out and "a shared secret" in out


def test_a_full_disk_is_one_line(start):
  body = "import errno\nraise OSError(errno.ENOSPC, 'No space left on device', '/data/x')"
  said = "auditdm_jax: the disk of /data/x is full; run the same command to continue\n"
  assert finish(start(body)) == (1, "", said)


def test_a_config_of_something_else_is_one_line(tmp_path):
  for command in (
    ["plan", "--config=configs/flux.py", "--topology=cpu:1"],
    ["train", "--config=configs/flux.py", f"--workdir={tmp_path}"],
  ):
    done = subprocess.run(
      [sys.executable, "-m", "auditdm_jax", *command],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "models" in done.stderr


def test_a_user_error_of_the_stage_is_one_line(start):
  body = "from auditdm_jax.core.config import UserError\nraise UserError('mesh is odd')"
  assert finish(start(body)) == (2, "", "auditdm_jax: mesh is odd\n")


def test_a_bug_keeps_its_traceback(start):
  code, _, err = finish(start("raise ValueError('bug')"))
  assert code == 1 and "Traceback" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds(start, tmp_path, signum):
  body = """
import time
try:
  print("ready", flush=True)
  time.sleep(60)
finally:
  (workdir / "closed").touch()
"""
  process = start(body)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signum)
  code, _, err = finish(process)
  assert code == 128 + signum
  assert err.strip().endswith("run the same command to continue")
  assert (tmp_path / "run" / "closed").exists()


def test_stages_are_listed(capsys):
  for words in (["--help"], ["-h"], ["help"]):
    assert main_lib.run(words) == 0
    out = capsys.readouterr().out
    for name, doc in main_lib.list_stages().items():
      assert doc and re.search(rf"^  {name} +[a-z]", out, re.M), f"{name}: {doc}"
  first = out[: out.index("Stages;")]
  commands = re.findall(r"^  auditdm (\S+)", first, re.M)
  assert commands == ["audit", "doctor", "loop"]
  assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("stage", sorted(main_lib.list_stages()))
def test_a_stage_says_what_it_reads_writes_and_costs(stage, capsys):
  assert main_lib.run([stage, "--help"]) == 0
  out = capsys.readouterr().out
  for word in ("Reads:", "Writes:", "Costs:"):
    assert re.search(rf"^{word} +\S", out, re.M), f"{stage} --help has no line {word}"
  assert "\n  --" in out  # Its flags.
  assert "auditdm_jax.stages." not in out, "a module's name says nothing to who reads flags"


def test_the_console_script_finds_modules_of_the_folder(tmp_path, monkeypatch):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  module, _, name = project["scripts"]["auditdm"].partition(":")
  code = f"import sys, {module} as m\nsys.argv = ['auditdm', *sys.argv[1:]]\nm.{name}()"
  (tmp_path / "mine.py").write_text("raise ImportError('mine was found')")
  given = ["serve-images", f"--config={tmp_path}/c.py", "--config.images.backend=mine:MAKE"]
  (tmp_path / "c.py").write_text(CONFIG.replace('"grpo"', '"images": {}, "grpo"'))
  command = [sys.executable, "-P", "-c", code]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [*command, *given], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
  )
  assert "mine was found" in done.stderr
  done = subprocess.run(
    [*command, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0 and done.stdout.startswith("usage: auditdm STAGE")


def test_unknown_stage(capsys):
  assert main_lib.run(["pretrian", "--config=x"]) == 2
  assert "no stage 'pretrian' (did you mean 'pretrain'?)" in capsys.readouterr().err
  assert main_lib.run([]) == 2


def test_what_stages_share_is_no_stage(tmp_path, monkeypatch):
  (tmp_path / "train.py").write_text('"""Trains.\n\nMore."""\ndef main(config, workdir): pass\n')
  (tmp_path / "context.py").write_text('"""Shared."""\ndef helper(): pass\n')
  monkeypatch.setattr(main_lib.stages, "__path__", [str(tmp_path)])
  assert main_lib.list_stages() == {"train": "Trains."}


def test_who_reads_a_help_may_leave_before_its_end():
  with subprocess.Popen(
    [sys.executable, "-m", "auditdm_jax", "--help"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as process:
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0
