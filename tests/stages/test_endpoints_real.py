# SPDX-License-Identifier: Apache-2.0
"""A whole audit of `transformers serve` with a judge behind our `serve`, killed and resumed.

python -m pytest -s -m slow tests/stages/test_endpoints_real.py
"""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from auditdm_jax.audit.judging.model import PROMPT
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm, save_vlm
from tests.serving import tiny
from tests.stages.test_serve import serving
from tests.test_outsiders import _folder

ROOT = pathlib.Path(__file__).parents[2]
WORDS = "user model what color is the a of red blue green left right circle square one two".split()
OUTAGE_S = 20
NAMES = ("far", "ref")


def _checkpoint(folder: pathlib.Path, monkeypatch, *, layers: int) -> None:
  """A random Gemma 3 whose answers end with their first word, or they would never end."""
  from benchmarks import serve

  monkeypatch.setattr(serve, "WORDS", WORDS)
  tiny_tower = dict(
    hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1
  )
  small = dict(hidden_size=32, intermediate_size=64, head_dim=8, num_hidden_layers=layers)
  monkeypatch.setattr(serve, "TEXT", serve.TEXT | small)
  monkeypatch.setattr(serve, "VISION", serve.VISION | tiny_tower)
  serve.make(folder, images=True)
  file, words = folder / "generation_config.json", Tokenizer.word_level(WORDS)
  ends = [words.id("<eos>"), *map(words.id, WORDS)]
  file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))


def _judge(folder: pathlib.Path) -> None:
  """A random model that replies "no"."""
  prompts = [
    PROMPT.format(question="what " * n, first="red", second=" blue" * n) for n in range(1, 9)
  ]
  vlm = tiny.make()
  words = Tokenizer.word_level(["no", *tiny.WORDS[1:]])  # As many as before.
  table = np.array(vlm.params["llm"]["embedder"]["input_embedding"])
  for seed in range(50):
    made = table * 0.02
    made[words.id("no")] = np.random.default_rng(seed).normal(0, 1, table.shape[1])
    llm = vlm.params["llm"] | {"embedder": {"input_embedding": made}}
    params = vlm.params | {"llm": llm}
    stop = words.id("<eos>"), words.id("a")
    judge = Vlm("judge", vlm.config, params, words, vlm.template, stop)
    if all(r.startswith("no") for r in judge.answer([None] * 8, prompts, max_new_tokens=8)):
      return save_vlm(folder, judge)
  raise AssertionError("no seed makes it say no")


@contextlib.contextmanager
def _transformers(folder: pathlib.Path, port: int, log: pathlib.Path):
  from benchmarks import serve

  command = [str(pathlib.Path(sys.executable).with_name("transformers")), "serve", str(folder)]
  with serve.running([*command, f"--port={port}", "--device=cpu"], port, log) as server:
    yield server


def _rows(workdir: pathlib.Path) -> list[dict]:
  return [
    json.loads(line)
    for file in (workdir / "endpoints").glob("*.jsonl")
    for line in file.read_text().splitlines()
    if line.endswith("}")
  ]


def _command(tmp_path: pathlib.Path, endpoints: dict) -> list[str]:
  flags = [
    "models.target=far",
    "models.references=('ref',)",
    "models.sibling=",
    "judge.model=judge",
    f"endpoints={endpoints!r}",
    "pool.builder=",
    f"pool.data_dir={tmp_path}/data",
    "pool.dataset=own",
    "pool.images=train",
    "pool.heldout=heldout",
    "pool.fresh=fresh",
    "rollout.prompts.question=1",
    "rollout.prompts.edit=0",
    "rollout.prompts.generate=0",
    "rollout.prompts.edit-only=0",
    "grpo.group_size=4",
    "optim.steps=2",
    "checkpoints.harvest=(1,)",
    "bank.max_new_tokens=8",
    "discover.probes=16",
    "discover.batch=8",
    "discover.search_probes=8",
    "verify.limit=2",
    "rounds.count=1",
  ]
  command = [sys.executable, "-m", "auditdm_jax", "loop", "--config=configs/scenes.py"]
  return [*command, f"--workdir={tmp_path}/run", *(f"--config.{flag}" for flag in flags)]


def _wait(process: subprocess.Popen, workdir: pathlib.Path, rows: int) -> None:
  """Returns when so many questions are answered."""
  while len(_rows(workdir)) < rows:
    time.sleep(0.1)
    assert process.poll() is None, "ended before it could be disturbed"


@pytest.mark.slow
def test_an_audit_of_transformers_serve_that_is_killed_and_whose_server_is_killed(
  tmp_path, monkeypatch
):
  from benchmarks import serve

  for name, layers in zip(NAMES, (2, 3)):
    _checkpoint(tmp_path / name, monkeypatch, layers=layers)
  _judge(tmp_path / "judge")
  for seed, (split, images) in enumerate({"train": 12, "heldout": 4, "fresh": 4}.items()):
    _folder(tmp_path / "data/own" / split, seed=seed, images=images)
  (tmp_path / "hub").mkdir()  # GET /v1/models lists it, and fails where there is none.
  env = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
  for key, value in env.items():
    monkeypatch.setenv(key, value)
  run, begun = tmp_path / "run", time.monotonic()
  ports = {name: serve._free_port() for name in NAMES}
  with contextlib.ExitStack() as stack:
    servers = {name: stack.enter_context(contextlib.ExitStack()) for name in NAMES}
    for name, own in servers.items():
      own.enter_context(_transformers(tmp_path / name, ports[name], tmp_path / f"{name}.log"))
    _, ready = stack.enter_context(serving(tmp_path / "judge"))
    limits = {"concurrency": 4, "timeout_s": 30.0, "outage_s": 300.0}
    endpoints = {
      name: {
        "base_url": f"http://127.0.0.1:{ports[name]}/v1",
        "model": str(tmp_path / name),
        "style": "bare",
        "limits": limits,
      }
      for name in NAMES
    }
    endpoints["judge"] = {"base_url": ready["base_url"], "model": ready["model"]}
    command = _command(tmp_path, endpoints)
    with subprocess.Popen(command, cwd=ROOT) as first:
      _wait(first, run, 16)
      first.send_signal(signal.SIGKILL)
    kept = len(_rows(run))
    with subprocess.Popen(command, cwd=ROOT) as second:
      _wait(second, run, kept + 30)
      servers["far"].close()
      time.sleep(OUTAGE_S)
      stack.enter_context(_transformers(tmp_path / "far", ports["far"], tmp_path / "again.log"))
    assert second.returncode == 0
  assert (run / "report/index.html").exists()
  rows = _rows(run)
  keys = [row["key"] for row in rows]
  assert len(keys) == len(set(keys)) and not [row for row in rows if row["failure"]]
  stages = json.loads((run / "manifest.json").read_text())["stages"]["loop"]
  cost = stages["cost"]
  assert cost["endpoint/far/pauses"] >= 1 and cost["endpoint/far/paused_seconds"] >= OUTAGE_S - 10
  assert cost["judge/pairs"] > 0 and "failed/far" not in cost and "failed/ref" not in cost
  assert stages["endpoints"]["far"]["sight"]["evidence"] in ("different", "tokens")
  verified = json.loads((run / "verify/done.json").read_text())["result"]
  print(f"{time.monotonic() - begun:.0f} s, {len(rows)} questions, {verified['funnel']}, {cost}")
