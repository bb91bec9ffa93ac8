# SPDX-License-Identifier: Apache-2.0
"""Audits whose models are behind endpoints."""

import copy
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.endpoints import endpoint as endpoint_lib
from auditdm_jax.endpoints import gate
from auditdm_jax.endpoints.failures import BlindEndpoint, BudgetSpent, EndpointRefused
from auditdm_jax.stages import asking, evaluate, loop, plan, rectify
from auditdm_jax.stages.context import Context
from tests.endpoints.fake_server import FakeServer, completion, right_answer

ROOT = pathlib.Path(__file__).parents[2]
FAULTS = ("always500", "garbage", "html", "empty", "null", "notext", "bad", "refusal", "filter")
MENDED = ("once500", "once429", "oncehtml", "onceslow")
PROVING = ("color", "picture", "white squares", "Say yes")  # In what is asked before a run.


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(endpoint_lib, "_BACKOFF_S", 0.02)
  monkeypatch.setattr(gate, "_FIRST_S", 0.02)
  monkeypatch.setattr(gate, "_MAX_S", 0.2)


@pytest.fixture
def servers():
  """Target and reference: on plain questions the target differs from the reference."""
  with FakeServer() as target, FakeServer() as reference:
    yield target, reference


def _questions(folder: pathlib.Path, questions, *, images: int) -> None:
  folder.mkdir(parents=True)
  rng, rows = np.random.default_rng(sum(map(ord, folder.name))), []
  for i in range(images):
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    rows += [
      {"image": f"{i}.png", "question": q, "answer": right_answer(pixels, q)} for q in questions
    ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _config(tmp_path: pathlib.Path, servers, *, questions=("q1", "q2"), images=6, **limits):
  """Only the auditor is a folder, so that nothing need be compiled."""
  for split in ("train", "heldout", "fresh"):
    if not (tmp_path / "data/own" / split).exists():
      _questions(tmp_path / "data/own" / split, questions, images=images)
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.world.update(name="", gaps="")
  config.pool.update(builder="", data_dir=str(tmp_path / "data"), dataset="own", images="train")
  config.pool.update(heldout="heldout", fresh="fresh")
  config.taxonomy.skills = ""
  config.models.update(target="far", references=("ref",), sibling="")
  config.bank.abstentions = ()
  limits = {"timeout_s": 20.0, "deadline_s": 60.0, "outage_s": 20.0, "retries": 2, **limits}
  config.endpoints = {
    name: {"base_url": server.url, "model": "fake", "style": "plain", "limits": dict(limits)}
    for name, server in zip(("far", "ref"), servers)
  }
  return config


def _asked(server) -> list[tuple[str, str]]:
  """Questions of the data set that came in, in their order."""
  return [a.question for a in server.asked if not any(word in a.text for word in PROVING)]


def _manifest(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / "manifest.json").read_text())["stages"]


def test_a_benchmark_and_its_manifest(servers, tmp_path):
  target, reference = servers
  target.respond = lambda asked: (
    target._right(asked) if any(w in asked.text for w in PROVING) else completion("nothing")
  )
  config = _config(tmp_path, servers)
  (tmp_path / "key").write_text("sk-very-secret\n")
  config.endpoints.far.key_file = str(tmp_path / "key")
  target.key = "sk-very-secret"
  run = tmp_path / "run"
  evaluate.main(config, run)
  done = json.loads((run / "evaluate/done.json").read_text())["result"]
  assert (done["tables"]["far"]["all"]["k"], done["tables"]["far"]["all"]["n"]) == (0, 12)
  assert done["tables"]["ref"]["all"]["k"] == 12
  stage = _manifest(run)["evaluate"]
  facts = stage["endpoints"]["far"]
  assert facts["sight"]["evidence"] == "right" and facts["fingerprint"]["version"] == "1.0"
  assert facts["fingerprint"]["server"] == "fake/1" and facts["model"] == "fake"
  assert stage["cost"]["endpoint/ref/answers"] >= 12
  # The health of the ensemble asks what the benchmark has asked.
  assert (
    sorted(_asked(reference)) == sorted(set(_asked(reference))) and len(_asked(reference)) == 12
  )
  for file in run.rglob("*"):
    assert file.is_dir() or b"sk-very-secret" not in file.read_bytes(), file


@pytest.mark.parametrize("server_of_faults", [0, 1])
def test_every_probe_ends_in_an_answer_or_a_counted_no_answer(server_of_faults, servers, tmp_path):
  whole = servers[1 - server_of_faults]
  whole.respond = whole._right
  questions = [f"{fault}: what" for fault in (*FAULTS, *MENDED, "slow")] + ["q"]
  config = _config(tmp_path, servers, questions=questions, images=1, timeout_s=3.0, deadline_s=8.0)
  with Context(config, tmp_path / "run", "control") as ctx:
    attempts = asking.random_control(ctx, 99)
  assert len(attempts) == len(questions)
  silent = ("far", "ref")[server_of_faults]
  for attempt in attempts:
    verdict, way = attempt.verdict, attempt.probe.question.partition(":")[0]
    failed = way in (*FAULTS, "slow")
    assert (verdict.answers[silent] == "") == failed, way
    # Both servers say the same where both say anything, and silence contradicts nothing.
    assert not verdict.disagreement, way
  cost = _manifest(tmp_path / "run")["control"]["cost"]
  assert cost[f"failed/{silent}"] == len(FAULTS) + 1 - 2 and cost[f"refusal/{silent}"] == 2
  assert cost[f"endpoint/{silent}/no_answer"] == len(FAULTS) + 1


def test_a_server_that_is_down_for_some_seconds_costs_only_time(servers, tmp_path):
  target, reference = servers
  target.latency_s = 0.05
  config = _config(tmp_path, servers, images=30, concurrency=4)

  def control(name: str):
    with Context(config, tmp_path / name, "control") as ctx:
      return [a.to_dict() for a in asking.random_control(ctx, 60)]

  want, before = control("straight"), len(target.asked)

  def outage():
    while len(target.asked) < before + 50:
      time.sleep(0.01)
    target.kill()
    time.sleep(2.0)
    target.start()

  thread = threading.Thread(target=outage)
  thread.start()
  assert control("killed") == want
  thread.join()
  cost = _manifest(tmp_path / "killed")["control"]["cost"]
  assert cost["endpoint/far/pauses"] >= 1 and "failed/far" not in cost


def test_killed_and_resumed_it_asks_nothing_twice(servers, tmp_path):
  target, reference = servers
  target.latency_s = reference.latency_s = 0.03
  config = _config(tmp_path, servers, images=40, concurrency=2)
  flags = [
    "world.name=",
    "world.gaps=",
    "pool.builder=",
    f"pool.data_dir={tmp_path}/data",
    "pool.dataset=own",
    "pool.images=train",
    "pool.heldout=heldout",
    "pool.fresh=fresh",
    "taxonomy.skills=",
    "models.target=far",
    "models.references=('ref',)",
    "models.sibling=",
    f"endpoints={config.endpoints.to_dict()}",
  ]
  command = [sys.executable, "-m", "auditdm_jax", "evaluate", "--config=configs/scenes.py"]
  command += [f"--workdir={tmp_path}/run", *(f"--config.{flag}" for flag in flags)]
  with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}) as first:
    while len(_asked(target)) < 40:
      time.sleep(0.01)
      assert first.poll() is None
    first.send_signal(signal.SIGKILL)
  rows = [
    json.loads(line)
    for file in (tmp_path / "run/endpoints").glob("*.jsonl")
    for line in file.read_text().splitlines()
  ]
  kept = {(row["image"], row["prompt"]) for row in rows}
  assert len(kept) >= 36
  subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"XLA_FLAGS": ""})
  for server in servers:
    asked = _asked(server)
    assert len(set(asked)) == 80 and len(asked) - len(set(asked)) <= 2  # Those under way.


def test_a_budget_ends_a_run_that_a_larger_one_continues(servers, tmp_path):
  target, reference = servers
  config = _config(tmp_path, servers, images=20)
  config.endpoints.ref.limits.max_requests = 50
  with pytest.raises(BudgetSpent, match="ref: .*max_requests is 50"):
    evaluate.main(config, tmp_path / "run")
  assert len(reference.asked) == 50
  assert _manifest(tmp_path / "run")["evaluate"]["cost"]["endpoint/ref/requests"] == 50
  config.endpoints.ref.limits.max_requests = 500
  evaluate.main(config, tmp_path / "run")
  for server in servers:
    assert len(_asked(server)) == len(set(_asked(server))) == 40
  config.endpoints.ref.limits.max_requests = 5
  before = len(reference.asked)
  evaluate.main(config, tmp_path / "run")  # Done, whatever may be spent.
  assert len(reference.asked) == before
  config.endpoints.ref.revision = "2"
  with pytest.raises(UserError, match="made with another config"):
    evaluate.main(config, tmp_path / "run")


@pytest.mark.parametrize("blind", ["far", "ref"])
def test_sight_is_proven_before_anything_is_spent(blind, servers, tmp_path):
  servers[("far", "ref").index(blind)].blind = True
  with pytest.raises(BlindEndpoint, match=f"{blind} does not see pictures"):
    evaluate.main(_config(tmp_path, servers), tmp_path / "run")
  assert not any(_asked(server) for server in servers)


def test_a_model_that_answers_otherwise_than_before_is_told(servers, tmp_path, caplog):
  target, _ = servers
  config = _config(tmp_path, servers)
  for version in ("1.0", "2.0"):
    target.version = version
    with Context(config, tmp_path / "run", "train") as ctx:
      ctx.models.prepare()
  assert "far is not what it was when this run began: version was 1.0, is 2.0" in caplog.text
  facts = _manifest(tmp_path / "run")["train"]["endpoints"]["far"]
  assert facts["changes"] == ["version was 1.0, is 2.0"]


def test_an_endpoint_judges(servers, tmp_path):
  target, _ = servers
  target.respond = lambda asked: (
    target._right(asked) if any(w in asked.text for w in PROVING) else completion("nothing")
  )
  with FakeServer() as judge:
    judge.respond = lambda asked: completion("Yes." if "nothing" in asked.text else "No.")
    config = _config(tmp_path, servers)
    config.endpoints.wise = {"base_url": judge.url, "model": "fake"}
    config.judge.model = "wise"
    for _ in range(2):
      with Context(config, tmp_path / "run", "control") as ctx:
        attempts = asking.random_control(ctx, 12)
      assert [a.verdict.reason for a in attempts] == ["agreement"] * 12
    asked = [a.text for a in judge.asked if "Do they mean the same" in a.text]
    assert len(asked) == len(set(asked)) == 24 and not any(
      a.picture is not None for a in judge.asked
    )
  stage = _manifest(tmp_path / "run")["control"]
  assert stage["cost"]["judge/pairs"] == 12 and stage["judge"]["model"] == "wise"
  assert stage["judge"]["identity"] == stage["endpoints"]["wise"]["identity"]


@pytest.mark.parametrize(
  ("changes", "error"),
  [
    ({"models.target": "fra"}, r"'fra' is neither a folder nor an endpoint.*did you mean 'far'"),
    ({"models.auditor": "far"}, "config.models.auditor: far is an endpoint"),
    (
      {"rollout.surrogate.reader": "far"},
      "config.rollout.surrogate.reader: far is an endpoint, which does not say its hidden states",
    ),
    ({"models.int8": True}, "config.models.int8: the references are endpoints"),
    ({"models.paged": True}, "config.models.paged: target and references are endpoints"),
    ({"judge.model": "ref"}, "judge.model: ref has the weights of the reference ref"),
    (
      {"judge.model": "nobody"},
      "config.judge.model: the model 'nobody' is neither a folder nor an endpoint",
    ),
    ({"endpoints.far.style": "caht"}, "no style 'caht'.*did you mean 'chat'"),
    ({"endpoints.a/b": {"base_url": "http://x/v1", "model": "m"}}, "'a/b' is no name"),
  ],
)
def test_what_does_not_go_with_an_endpoint_is_one_line(changes, error, servers, tmp_path):
  config = _config(tmp_path, servers)
  for key, value in changes.items():
    section = config
    *path, last = key.split(".")
    for part in path:
      section = section[part]
    with config.unlocked():
      section[last] = value
  with pytest.raises(UserError, match=error):
    with Context(config, tmp_path / "run", "train") as ctx:
      ctx.models.bank()
  assert not any(_asked(server) for server in servers)


def test_one_model_under_two_names_is_refused(servers, tmp_path):
  config = _config(tmp_path, servers)
  config.endpoints.ref.base_url = servers[0].url + "/"
  with pytest.raises(UserError, match="far and ref are one model of one endpoint"):
    Context(config, tmp_path / "run", "train")


def test_an_endpoint_is_not_repaired(servers, tmp_path):
  config = _config(tmp_path, servers)
  with pytest.raises(UserError, match="far is an endpoint, which can be audited but not repaired"):
    rectify.main(config, tmp_path / "run")
  with Context(config, tmp_path / "run", "loop") as ctx:
    assert not loop.repair(ctx).models


def test_a_wrong_key_is_one_line(servers, tmp_path):
  servers[1].key = "sk-another"
  with pytest.raises(EndpointRefused, match="ref: no key is given"):
    evaluate.main(_config(tmp_path, servers), tmp_path / "run")


def test_a_plan_leaves_out_what_runs_elsewhere(servers, tmp_path):
  config = _config(tmp_path, servers)
  local = copy.deepcopy(config)
  local.models.references = ("ref", "data/scenes/weights/ref_gemma3")
  assert list(plan.read(local).answering) == ["ref_gemma3"] and plan.read(local).target == ""
  local.models.target = "data/scenes/weights/target_easy"
  assert plan.read(local).target == "target_easy"
