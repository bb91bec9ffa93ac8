# SPDX-License-Identifier: Apache-2.0
"""A run whose image service is killed in the middle ends as the one whose service lives."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = '{"question": 1, "edit": 3, "generate": 2, "edit-only": 1, "generate-only": 1}'
TINY = [
  f"--config.rollout.prompts={PROMPTS}",
  "--config.optim.steps=3",
  "--config.checkpoints.harvest=()",
  "--config.discover.probes=128",
  "--config.discover.batch=64",
  "--config.discover.search_probes=64",
  "--config.grpo.group_size=4",
]


def _calls(workdir: pathlib.Path) -> int:
  """Images the service has answered so far."""
  log = workdir / "images.log"
  text = log.read_text() if log.exists() else ""
  return sum('"text": ' in line for line in text.splitlines())


def _service_of(pid: int) -> int | None:
  """The image service among the children of a process."""
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
      command = (path / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
      continue
    if parent == pid and "serve-images" in command:
      return int(path.name)
  return None


def _run(stage: str, workdir: pathlib.Path, data: pathlib.Path, *, kills=()) -> int:
  """Runs a stage; its service is killed after so many images. Returns how often it was."""
  command = [
    sys.executable,
    "-m",
    "auditdm_jax",
    stage,
    "--config=configs/scenes.py",
    f"--workdir={workdir}",
    f"--config.pool.data_dir={data}",
    *TINY,
  ]
  process = subprocess.Popen(command, cwd=ROOT)
  done, killed = threading.Event(), []

  def kill():
    for count in kills:
      while _calls(workdir) < count:
        if done.wait(0.01):
          return
      while (service := _service_of(process.pid)) is None or service in killed:
        if done.wait(0.01):
          return
      os.kill(service, signal.SIGKILL)
      killed.append(service)

  thread = threading.Thread(target=kill)
  thread.start()
  code = process.wait(900)
  done.set()
  thread.join()
  assert code == 0
  return len(killed)


def _facts(workdir: pathlib.Path) -> dict[str, object]:
  """All that a stage leaves, but for the times it took."""
  rows = {}
  for path in sorted(workdir.rglob("*.jsonl")):
    if "metrics" not in path.parts:
      rows[str(path.relative_to(workdir))] = path.read_bytes()
  models = sorted(workdir.rglob("*.safetensors"))
  done = {p: json.loads((workdir / p / "done.json").read_text())["result"] for p in ("train",)}
  images = sorted(p.name for p in (workdir / "images").rglob("*.png"))
  return {
    "rows": rows,
    "models": [m.read_bytes() for m in models],
    "done": done,
    "images": images,
  }


@pytest.mark.slow
def test_killed_twice_in_training_and_twice_in_discovery(tmp_path):
  data, straight, killed = tmp_path / "data", tmp_path / "straight", tmp_path / "killed"
  _run("train", straight, data)
  in_training = _calls(straight)
  _run("discover", straight, data)
  in_all = _calls(straight)
  assert in_training > 40 and in_all > in_training
  kills = in_training // 4, 3 * in_training // 4
  assert _run("train", killed, data, kills=kills) == 2
  # What a killed service had in hand is asked for again: the counts of the two runs may differ.
  start, more = _calls(killed), in_all - in_training
  kills = start + more // 4, start + more // 2
  assert _run("discover", killed, data, kills=kills) == 2
  log = (killed / "images.log").read_text()
  assert log.count("Traceback") == 0
  want, got = _facts(straight), _facts(killed)
  assert want["models"] and want["images"] and want["rows"]
  assert got["rows"].keys() == want["rows"].keys()
  for name in want["rows"]:
    assert got["rows"][name] == want["rows"][name], name
  assert got == want


def test_the_service_of_a_process_is_found(tmp_path):
  code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()', 'serve-images'])"
  parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
  until = time.monotonic() + 10.0
  while (found := _service_of(parent.pid)) is None and time.monotonic() < until:
    time.sleep(0.02)
  parent.communicate(b"\n")
  assert found not in (None, parent.pid)
