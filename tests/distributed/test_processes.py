# SPDX-License-Identifier: Apache-2.0
"""Several processes are one run: same numbers, same files; they stop together and go on."""

import json
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from auditdm_jax.core import jsonl, metrics, runtime
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.core.records import Records
from tests.rl import fakes, tiny

JOB = ["-m", "tests.distributed.job", "--config=tests/distributed/job.py"]

# What each of two processes finds, as one line of JSON.
TALK = """
import json, sys
from auditdm_jax.core import runtime

address, count, index = (arg.partition("=")[2] for arg in sys.argv[2:])
runtime.setup(cluster=runtime.Cluster(address, int(count), int(index)))

import jax, numpy as np
from auditdm_jax.core import checkpoint, mesh as mesh_lib
from tests.rl import fakes, tiny

with runtime.together():
  k, mesh = runtime.index(), mesh_lib.make_mesh({"data": -1})
  found = {"gathered": runtime.gather({"process": k, "text": "é" * 300 * k})}
  found["mine"] = [list(runtime.mine("abcde", p)) for p in (None, 0, 1)]
  x = runtime.place(np.arange(6.0), mesh_lib.batch_sharding(mesh))
  found["shard"] = [s.data.tolist() for s in x.addressable_shards]
  found["fetched"] = runtime.fetch(jax.jit(lambda x: x * x)(x)).tolist()
  runtime.agree([1, "same"], "what all know")
  try:
    runtime.agree(k, "the number")
  except RuntimeError as e:
    found["disagree"] = str(e)
  learner = fakes.learner()
  found["update"] = learner.update(tiny.batch())
  state = runtime.fetch(learner.state.params)
  found["params"] = {name: float(np.abs(w).sum()) for name, w in state.items()}
  print(json.dumps(found))
"""


def test_two_processes_know_the_same_and_take_the_step_of_one(start_all):
  ends = start_all(["-c", TALK], 2)
  assert [e.code for e in ends] == [0, 0], ends[0].err + ends[1].err
  first, second = found = [json.loads(e.out.splitlines()[-1]) for e in ends]
  gathered = [{"process": 0, "text": ""}, {"process": 1, "text": "é" * 300}]
  assert first["gathered"] == second["gathered"] == gathered
  assert first["mine"] == [list("ace"), list("ace"), list("bd")] and second["mine"][0] == list("bd")
  assert [f["shard"] for f in found] == [[[0, 1, 2]], [[3, 4, 5]]]
  assert first["fetched"] == second["fetched"] == [0, 1, 4, 9, 16, 25]
  assert all("the number differs between processes" in f["disagree"] for f in found)
  assert first["update"] == second["update"] and first["params"] == second["params"]
  learner = fakes.learner()
  want = learner.update(tiny.batch())
  assert first["update"] == pytest.approx(want, rel=2e-5, abs=2e-6)
  want = {name: float(np.abs(w).sum()) for name, w in learner.state.params.items()}
  assert first["params"] == pytest.approx(want, rel=1e-5)


# A model on the devices of both processes answers; which images does each of them open?
ANSWER = """
import collections.abc, dataclasses, json, sys
from auditdm_jax.core import runtime

address, count, index = (arg.partition("=")[2] for arg in sys.argv[2:])
runtime.setup(cluster=runtime.Cluster(address, int(count), int(index)))

import numpy as np
from auditdm_jax.core import mesh as mesh_lib
from tests.rl import tiny

class Opened(collections.abc.Sequence):
  opened = []
  def __len__(self):
    return 8
  def __getitem__(self, i):
    self.opened.append(int(i))
    return np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)

with runtime.together():
  mesh = mesh_lib.make_mesh({"data": -1})
  model = tiny.auditor()
  params = runtime.place(model.params, mesh_lib.replicated(mesh))
  model = dataclasses.replace(model, params=params, mesh=mesh)
  images = Opened()
  features = model.encode(images)
  texts = model.answer_features(features, ["what color is it ?"] * 8, max_new_tokens=4)
  print(json.dumps([features.sum((1, 2)).tolist(), texts, images.opened, model.tower_id]))
"""


@pytest.mark.slow
def test_a_model_on_all_devices_answers_and_each_process_opens_its_own_images(start_all):
  ends = start_all(["-c", ANSWER], 2)
  assert [e.code for e in ends] == [0, 0], ends[0].err + ends[1].err
  first, second = (json.loads(e.out.splitlines()[-1]) for e in ends)
  assert first[:2] == second[:2] and first[3] == second[3]
  assert first[2] == [0, 1, 2, 3] and second[2] == [4, 5, 6, 7]
  images = [np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8) for i in range(8)]
  model = tiny.auditor()
  features = model.encode(images)
  np.testing.assert_allclose(first[0], features.sum((1, 2)), rtol=1e-4, atol=1e-4)
  assert first[1] == model.answer_features(features, ["what color is it ?"] * 8, max_new_tokens=4)
  assert first[3] == model.tower_id


# A tower that trains; which pictures does each process open?
TUNE = """
import dataclasses, json, sys
from auditdm_jax.core import runtime

cluster = dict(arg.removeprefix("--").split("=") for arg in sys.argv[2:])
if cluster:
  address, count, index = cluster.values()
  runtime.setup(cluster=runtime.Cluster(address, int(count), int(index)))

import numpy as np
from auditdm_jax.core import mesh as mesh_lib, tree
from auditdm_jax.rectify import curate, recipes
from auditdm_jax.rectify.examples import ListedExamples
from auditdm_jax.rectify.tune import TuneConfig
from tests.rectify import test_finetune as t

opened = []
def load(name):
  opened.append(name)
  return t.picture(name)

with runtime.together():
  listed = [
    curate.TrainingExample(image_id=f"{i}", question=f"color of {x}", label="red")
    for i, x in enumerate("abcdabcdab")
  ]
  result = t._run(
    t.make_model(),
    dataclasses.replace(t._RECIPE, steps=3, replay=0.0, parts=recipes.EVERYTHING),
    new=ListedExamples(listed, load=load, put=str),
    replay=None,
    mesh=mesh_lib.make_mesh({"data": -1}) if cluster else None,
    tune=TuneConfig(validation=0.2, eval_every=3, eval_examples=8),
  )
  sums = {k: float(np.abs(v).sum()) for k, v in tree.flatten(result.params).items()}
  print(json.dumps([result.loss, result.validation, sums, len(opened)]))
"""


@pytest.mark.slow
def test_a_fine_tuning_is_that_of_one_process_and_each_opens_its_own_pictures(start_all):
  ends = start_all(["-c", TUNE], 2)
  assert [e.code for e in ends] == [0, 0], ends[0].err + ends[1].err
  first, second = [json.loads(e.out.splitlines()[-1]) for e in ends]
  (alone,) = start_all(["-c", TUNE], 1)
  one = json.loads(alone.out.splitlines()[-1])
  assert first[:3] == second[:3]
  assert first[:2] == pytest.approx(one[:2], rel=1e-4)
  assert first[2] == pytest.approx(one[2], rel=1e-3)
  # Of eight rows in each of three steps, and of eight at the end, half.
  assert one[3] == 32 and first[3] == second[3] == 16


def test_alone_it_is_all_trivial():
  assert runtime.gather({"a": 1}) == [{"a": 1}] and list(runtime.mine("abc")) == list("abc")
  assert runtime.is_main() and (runtime.index(), runtime.count()) == (0, 1)
  sharding = mesh_lib.replicated(mesh_lib.make_mesh({"data": 1}, devices=jax.devices()[:1]))
  placed = runtime.place({"x": np.ones(3)}, sharding)
  np.testing.assert_array_equal(runtime.fetch(placed)["x"], np.ones(3))


def facts(workdir):
  """Records in order, metrics without the clock, weights of the stored auditors."""
  rows = Records(workdir / "records" / "train").read("completions")
  rows.sort(key=lambda r: (r["step"], r["prompt_id"], r["sample"]))
  log = [row for _, row in jsonl.JsonLines(workdir / "metrics" / "train.jsonl").iterate()]
  log = [{k: v for k, v in row.items() if not metrics.is_volatile(k)} for row in log]
  weights = {p.parent.name: load_file(p) for p in workdir.glob("auditors/train/*/*.safetensors")}
  return rows, log, weights


def assert_same(got, want, *, rounding=False):
  """Equal bit for bit, or but for the order in which four or more numbers were added."""
  if not rounding:
    assert got[:2] == want[:2]
  else:
    assert [_texts(r) for r in got[0]] == [_texts(r) for r in want[0]]
    for a, b in zip(got[1], want[1], strict=True):
      assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
  assert got[2].keys() == want[2].keys()
  for name, tensors in want[2].items():
    for path, tensor in tensors.items():
      same = np.testing.assert_allclose if rounding else np.testing.assert_array_equal
      same(got[2][name][path], tensor, **({"atol": 1e-6} if rounding else {}), err_msg=path)


def _texts(row):
  """A completion without its log-probabilities."""
  turns = [{k: v for k, v in turn.items() if k != "logprob"} for turn in row["turns"]]
  return row | {"turns": turns, "advantage": round(row["advantage"], 4)}


def run(start_all, workdir, processes, devices, *flags):
  return start_all(
    [*JOB, f"--workdir={workdir}", f"--devices={devices}", *flags], processes, timeout_s=1800
  )


@pytest.fixture(scope="module")
def straight(start_all, tmp_path_factory):
  """The run of one process with two devices."""
  workdir = tmp_path_factory.mktemp("straight")
  (end,) = run(start_all, workdir, 1, 2)
  assert end.code == 0, end.err
  return facts(workdir)


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(start_all, straight, tmp_path):
  ends = run(start_all, tmp_path / "two", 2, 1)
  assert [e.code for e in ends] == [0, 0], ends[0].err + ends[1].err
  assert_same(facts(tmp_path / "two"), straight)
  shards = sorted((tmp_path / "two/records/train").glob("completions-*.jsonl"))
  assert [len(p.read_bytes().splitlines()) for p in shards] == [48, 48]
  # Each asked for its share of the images, and no one asked twice.
  asked = [int(e.out.rpartition("asked for ")[2].split()[0]) for e in ends]
  assert min(asked) > 0.4 * sum(asked) and sum(asked) <= 4 * 3 * 4


@pytest.mark.slow
@pytest.mark.parametrize("processes", [4, 2])
def test_four_devices_in_several_processes(start_all, tmp_path, processes):
  (end,) = run(start_all, tmp_path / "one", 1, 4)
  ends = run(start_all, tmp_path / "several", processes, 4 // processes)
  assert [e.code for e in (end, *ends)] == [0] * (1 + processes), [e.err for e in ends]
  assert_same(facts(tmp_path / "several"), facts(tmp_path / "one"), rounding=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill,1,2", "killed,0,3", "raise,1,1"])
def test_a_lost_process_ends_the_job_and_it_goes_on(start_all, straight, tmp_path, fault):
  lost = int(fault.split(",")[1])
  ends = run(start_all, tmp_path / "two", 2, 1, f"--config.fault={fault}")
  assert ends[lost].code == (runtime.OWN + 1 if fault.startswith("raise") else -9)
  assert ends[lost].code < 0 or "the disk is full" in ends[lost].err
  other = ends[1 - lost]
  assert other.code in (runtime.LOST, -6)  # and not -9: within a minute
  assert "another process is gone" in other.err or "another task died" in other.err
  assert len(facts(tmp_path / "two")[1]) < 4
  ends = run(start_all, tmp_path / "two", 2, 1)
  assert [e.code for e in ends] == [0, 0], ends[0].err + ends[1].err
  assert_same(facts(tmp_path / "two"), straight)


@pytest.mark.slow
def test_a_silent_process_ends_the_job(start_all, tmp_path):
  """It is neither dead nor alive: no connection breaks."""
  start = time.monotonic()
  first, frozen = run(start_all, tmp_path / "two", 2, 1, "--config.fault=freeze,1,1")
  assert first.code in (runtime.LOST, -6) and frozen.code == -9 and frozen.after_s > 50
  assert "another process is gone" in first.err or "another task died" in first.err
  print(f"ended {time.monotonic() - start:.0f} s after the start")


@pytest.mark.slow
def test_a_signal_to_one_of_them_saves_and_stops_all(start_all, straight, tmp_path):
  """What a scheduler does that takes a machine back; the grace is 30 seconds or more."""
  ends = run(start_all, tmp_path / "two", 2, 1, "--config.fault=stop,1,2")
  assert [e.code for e in ends] == [143, 143] and max(e.after_s for e in ends) < 30
  assert [row["step"] for row in facts(tmp_path / "two")[1]] == [0, 1, 2]
  assert (tmp_path / "two/checkpoints/train/3/_CHECKPOINT_METADATA").exists()
  # Fewer machines may be left: one process goes on with what two have begun.
  (end,) = run(start_all, tmp_path / "two", 1, 2)
  assert end.code == 0 and "3/4" not in end.err.partition("4/4")[0], end.err
  assert_same(facts(tmp_path / "two"), straight)


LOOP = [
  "-m",
  "auditdm_jax",
  "loop",
  "--config=configs/scenes.py",
  "--config.optim.steps=2",
  "--config.checkpoints.harvest=(1,)",
  "--config.discover.probes=480",
  "--config.discover.search_probes=128",
  "--config.verify.limit=60",
  "--config.rounds.steps=2",
  "--config.rectify.recipe.steps=4",
  "--config.rectify.curate.size=40",
]


@pytest.mark.slow
def test_the_loop_in_two_processes_is_that_of_one(start_all, monkeypatch, tmp_path):
  """All stages, from training to the second round; much is computed, so optimise."""

  def summary(processes: int, flags: str) -> dict:
    monkeypatch.setenv("XLA_FLAGS", flags)
    workdir = tmp_path / str(processes)
    where = [f"--workdir={workdir}", f"--config.pool.data_dir={tmp_path / 'data'}"]
    ends = start_all([*LOOP, *where], processes, timeout_s=1800)
    assert not any(e.code for e in ends), [e.err for e in ends]
    assert (workdir / "report/index.html").exists()
    found = json.loads((workdir / "summary.json").read_text())
    del found["seconds"]
    return found

  assert summary(2, "") == summary(1, "--xla_force_host_platform_device_count=2")


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), runtime.LOST),
    (RuntimeError("Barrier failed [tensorflow.CoordinationServiceError='']"), runtime.LOST),
    (RuntimeError("step 3: 9 of 16 samples are invalid: 9 x UNAVAILABLE: the service"), None),
    (UserError("mesh is odd"), None),
  ],
)
def test_only_a_broken_connection_is_blamed_on_others(monkeypatch, capsys, error, code):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(SystemExit if code else type(error)) as raised, runtime.together():
    raise error
  assert raised.value is error or raised.value.code == code
  assert ("another process is gone" in capsys.readouterr().err) == bool(code)
