# SPDX-License-Identifier: Apache-2.0
"""predict, score, table and logs from a config: any layout, any model, killed and gone on with."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from auditdm_jax.bench.predict import BenchReply
from auditdm_jax.bench.predictions import ModelId
from auditdm_jax.core.config import UserError
from auditdm_jax.endpoints.failures import BudgetSpent
from auditdm_jax.stages import benchmarks, evaluate, logs, predict, score, suite, table
from auditdm_jax.stages.context import Context
from auditdm_jax.vlm import load_vlm
from tests.bench.layouts import cases, made_parquet
from tests.endpoints.fake_server import FakeServer, right_answer
from tests.stages import test_endpoints
from tests.stages.folders import images_of_scenes

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "data/scenes/weights"
ALL = (*cases.TFDS, *cases.TSV, *cases.PARQUET, *cases.RAW)


class _Fake:
  """Answers without a model: right where the letter or word happens to be."""

  pictures = 10

  def __init__(self, task, asked):
    self.model, self._asked = task.model, asked

  def reply(self, asked, *, max_tokens):
    del max_tokens
    self._asked += [a.prompt for a in asked]
    words = (
      ("A", "yes", "<loc0100><loc0100><loc0900><loc0900>") if self.model.name == "b" else ("B",)
    )
    return [BenchReply(words[i % len(words)], "eos") for i in range(len(asked))]


@pytest.fixture
def fake(monkeypatch):
  """Models named a and b that need no weights; returns the prompts that were put."""
  asked: list[str] = []
  monkeypatch.setattr(
    benchmarks.BenchRun, "model", lambda self, spec, where: ModelId(name=spec, identity=spec)
  )
  monkeypatch.setattr(benchmarks, "_families", lambda spec, is_remote: benchmarks._TRANSFER)
  monkeypatch.setattr(predict._Loaded, "respondent", lambda self, task: _Fake(task, asked))
  return asked


def _config(entries, **more):
  models = more.pop("models", {"baseline": "a", "repaired": "b"})
  return ConfigDict({"models": models, "benchmarks": entries, "draws": 100, **more})


# Fakes with two captions of one picture, or one question about a picture where there must be two.
UNSCORABLE = ("cococap-tsv-test", "mme-tsv-test", "mme-parquet-test")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_layout_of_every_benchmark_gets_a_row(tmp_path, fake, case):
  case.make(tmp_path / "data")
  entry = {"path": str(tmp_path / "data"), "split": case.split}
  if case.name == "refcoco":  # Masks need the VAE.
    entry |= {"metric": "box_accuracy", "variant": "big_vision"}
  # The baseline as PaliGemma is asked, the other as a chat model.
  config = _config({case.name: entry}, families={"repaired": "chat"})
  predict.main(config, tmp_path / "run")
  asked = len(fake)
  assert asked
  if str(case) in UNSCORABLE:
    with pytest.raises(UserError):
      score.main(config, tmp_path / "run")
    return
  for stage in (score, table, predict):
    assert stage.main(config, tmp_path / "run") == 0
  assert len(fake) == asked, "asked once"
  made = json.loads((tmp_path / "run/table.json").read_text())
  (row,) = made["rows"]
  assert [c["role"] for c in row["cells"]] == ["baseline", "repaired"]
  assert row["changes"][0]["found"]["units"] == row["cells"][0]["found"]["units"] > 0
  assert any("different words" in note for note in row["notes"])


def test_another_variant_adds_a_row_and_asks_nothing(tmp_path, fake):
  made_parquet.vqav2_parquet(tmp_path / "data")
  entry = {"path": str(tmp_path / "data"), "split": "val"}
  predict.main(_config({"vqav2": entry}), tmp_path / "run")
  score.main(_config({"vqav2": entry}), tmp_path / "run")
  before = len(fake)
  official = _config({"vqav2": entry | {"variant": "official"}})
  for stage in (score, table):
    stage.main(official, tmp_path / "run")
  rows = json.loads((tmp_path / "run/table.json").read_text())["rows"]
  assert [r["cells"][0]["metric"]["variant"] for r in rows] == ["big_vision", "official"]
  assert len(fake) == before
  assert logs.main(official, tmp_path / "run") == 0
  assert len([*(tmp_path / "run/logs").rglob("*_samples_vqav2.jsonl")]) == 2


def test_an_outsiders_benchmark_is_a_config_entry_and_a_scorer(tmp_path, fake, monkeypatch):
  (tmp_path / "mine.py").write_text(
    "def first_letter(prediction, references):\n"
    "  return float(prediction[:1] in {r[:1] for r in references})\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "data/test").mkdir(parents=True)
  for i in range(4):
    Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"data/test/{i}.png")
  rows = [{"image": f"{i}.png", "question": f"q{i}?", "answer": "Bear"} for i in range(4)]
  path = tmp_path / "data/test/questions.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  own = {"name": "bears", "scorer": "mine:first_letter", "prompt": "Say: {question}"}
  config = _config({"bears": {"path": str(tmp_path / "data"), "spec": own}})
  for stage in (predict, score, table):
    stage.main(config, tmp_path / "run")
  assert sorted(set(fake)) == [f"Say: q{i}?" for i in range(4)]
  (row,) = json.loads((tmp_path / "run/table.json").read_text())["rows"]
  assert [c["found"]["value"] for c in row["cells"]] == [100.0, 0.0]


OWN = {"name": "mine", "scorer": "auditdm_jax.bench.scorers.matches:exact_match", "split": "test"}


def _own(folder: pathlib.Path, colors, answer="A") -> dict:
  """A benchmark of one's own, with one question about each picture."""
  (folder / "test").mkdir(parents=True)
  rows = []
  for i, color in enumerate(colors):
    Image.new("RGB", (8, 8), color).save(folder / f"test/{i}.png")
    rows.append({"image": f"{i}.png", "question": "what letter is it?", "answer": answer})
  (folder / "test/questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  return {"mine": {"path": str(folder), "spec": OWN}}


def _cells(config, run) -> dict[str, tuple[str, float]]:
  """Asks, scores and returns what the table shows by role."""
  for stage in (predict, score, table):
    assert stage.main(config, run) == 0
  (row,) = json.loads((run / "table.json").read_text())["rows"]
  return {c["role"]: (c["model"], c["found"]["value"]) for c in row["cells"]}


def test_a_table_shows_the_models_of_today(tmp_path, fake):
  entries, run = _own(tmp_path / "data", ["red", "blue", "green"]), tmp_path / "run"
  both = {name: _config(entries, models={"baseline": "a", "repaired": name}) for name in "bc"}
  first = _cells(both["b"], run)
  assert first["repaired"][0] == "b" and _cells(both["c"], run)["repaired"][0] == "c"
  asked = len(fake)
  assert _cells(both["b"], run) == first and len(fake) == asked
  size = (run / "results.jsonl").stat().st_size
  assert _cells(both["b"], run) == first and (run / "results.jsonl").stat().st_size == size
  predict.main(both["c"], run)
  table.main(both["c"], run)  # Not scored since: the other model's value is not shown for it.
  (row,) = json.loads((run / "table.json").read_text())["rows"]
  assert "b" not in {c["model"] for c in row["cells"]}


def test_labels_that_were_corrected_are_scored_and_other_pictures_are_asked(tmp_path, fake):
  entries, run = _own(tmp_path / "data", ["red", "blue"]), tmp_path / "run"
  config = _config(entries, models={"baseline": "a"})
  assert _cells(config, run)["baseline"] == ("a", 0.0)
  questions, asked = tmp_path / "data/test/questions.jsonl", len(fake)
  text = questions.read_text()
  for answer, value in (("B", 100.0), ("A", 0.0)):
    questions.write_text(text.replace('"answer": "A"', f'"answer": "{answer}"'))
    assert _cells(config, run)["baseline"] == ("a", value) and len(fake) == asked
  others = _config(_own(tmp_path / "other", ["white", "black"]), models={"baseline": "a"})
  _cells(others, run)
  assert len(fake) == asked + 2


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_model_is_more_than_its_weights(tmp_path, file):
  folders = [tmp_path / name for name in "ab"]
  for folder in folders:
    shutil.copytree(WEIGHTS / "target_easy", folder / "target_easy")
    shutil.copytree(WEIGHTS / "siglip", folder / "siglip")
  path = folders[1] / "target_easy" / file
  known = json.loads(path.read_text())
  if file == "config.json":
    known["model"]["text"]["rope_base"] = 50.0
  else:
    known["added_tokens"] = list(reversed(known["added_tokens"]))
  path.write_text(json.dumps(known))
  run = benchmarks.BenchRun(_config({"vqav2": {"path": "x"}}), tmp_path / "run", "predict")
  ids = [run.model(str(f / "target_easy"), where="x").identity for f in (*folders, folders[0])]
  assert ids[0] == ids[2] != ids[1]


WRONG = [
  ({"models": {}}, "config.models is empty"),
  ({"models": {"baseline": " "}}, "config.models.baseline is empty"),
  ({"baseline": "baselin"}, r"config.baseline: no model 'baselin' \(did you mean 'baseline'\?\)"),
  ({"families": {"larger": "chat"}}, "config.families: no model 'larger'"),
  ({"families": {"baseline": "chta"}}, r"config.families.baseline: .*did you mean 'chat'"),
  ({"logs": ("csv",)}, "config.logs: no format 'csv'; formats: lmms-eval, inspect"),
  ({"draws": 1}, "config.draws=1: must be at least 100"),
  ({"vqav2": {"limit": -1}}, "limit=-1: must be at least 0"),
  ({"vqav2": {"spec": "vqa2"}}, r"benchmarks.vqav2.spec='vqa2': no such .*did you mean 'vqav2'"),
  ({"vqav2": {"path": ""}}, "config.benchmarks.vqav2.path is empty"),
  ({"vqav2": {"split": "vla"}}, r"vqav2 has no split 'vla' \(did you mean 'val'\?\)"),
  ({"vqav2": {"family": "chat-x"}}, "no family 'chat-x'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_mistakes_are_one_line(tmp_path, fake, changes, message):
  changes = dict(changes)
  entry = {"path": str(tmp_path), "split": "val", **changes.pop("vqav2", {})}
  with pytest.raises(UserError, match=message) as e:
    predict.main(_config({"vqav2": entry}, **changes), tmp_path / "run")
  assert "\n" not in str(e.value) and not fake


def test_stages_in_the_wrong_order_say_which_is_first(tmp_path, fake):
  made_parquet.vqav2_parquet(tmp_path / "data")
  config = _config({"vqav2": {"path": str(tmp_path / "data"), "split": "val"}})
  for stage, first in ((score, "run predict first"), (table, "run score first")):
    with pytest.raises(UserError, match=first):
      stage.main(config, tmp_path / "run")
  predict.main(config, tmp_path / "run")
  with pytest.raises(UserError, match="run score first"):
    table.main(config, tmp_path / "run")


def test_a_model_that_is_nowhere_is_named_with_its_key(tmp_path):
  entry = {"path": str(tmp_path), "models": {"larger": "nowhere"}}
  config = _config({"vqav2": entry}, models={"baseline": str(WEIGHTS / "sibling")})
  (tmp_path / "x.json").write_text("{}")
  with pytest.raises(UserError, match="config.benchmarks.vqav2"):
    predict.main(config, tmp_path / "run")


def _scenes(tmp_path, **more):
  if not (tmp_path / "data").exists():
    images_of_scenes(tmp_path / "data/heldout", images=12, seed=0)
  models = {"baseline": str(WEIGHTS / "target_easy")}
  entries = {"scenes": {"path": str(tmp_path / "data")}}
  return _config(entries, models=models, **more)


def test_folders_answer_as_they_do_one_by_one(tmp_path):
  config = _scenes(tmp_path)
  predict.main(config, tmp_path / "run")
  rows = [json.loads(x) for x in (tmp_path / "run/predictions-0.jsonl").open()]
  said = {r["item"]: r["prediction"] for r in rows if r["role"] == "baseline"}
  vlm = load_vlm(WEIGHTS / "target_easy")
  asked = [json.loads(x) for x in (tmp_path / "data/heldout/questions.jsonl").open()]
  images = [np.asarray(Image.open(tmp_path / "data/heldout" / r["image"])) for r in asked]
  alone = vlm.answer(images, [r["question"] for r in asked], max_new_tokens=3)
  assert sorted(said.values()) == sorted(alone)
  assert {r["finish"] for r in rows} <= {"eos", "length"}
  assert {r["model"]["name"] for r in rows} == {"target_easy"}
  for stage in (score, table):
    stage.main(config, tmp_path / "run")
  made = json.loads((tmp_path / "run/table.json").read_text())
  right = [a == r["answer"] for a, r in zip(alone, asked)]
  assert made["rows"][0]["cells"][0]["found"]["value"] == pytest.approx(100 * np.mean(right))


def test_endpoints_are_asked_and_what_fails_is_counted(tmp_path):
  folder = tmp_path / "data/heldout"
  folder.mkdir(parents=True)
  rng, rows = np.random.default_rng(0), []
  for i in range(6):
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    questions = ("q1", "always500") if i == 3 else ("q1", "q2")
    rows += [
      {"image": f"{i}.png", "question": q, "answer": right_answer(pixels, q)} for q in questions
    ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  own = {"name": "own", "scorer": "auditdm_jax.bench.scorers:exact_match", "split": "heldout"}
  with FakeServer() as server:
    limits = {"timeout_s": 20.0, "deadline_s": 60.0, "outage_s": 5.0, "retries": 1}
    config = _config(
      {"own": {"path": str(tmp_path / "data"), "spec": own}},
      models={"baseline": "far"},
      endpoints={"far": {"base_url": server.url, "model": "fake", "limits": limits}},
    )
    predict.main(config, tmp_path / "run")
    before = len(server.asked)
    score.main(config, tmp_path / "run")
    assert len(server.asked) == before, "scoring asks nobody"
    spent = config.copy_and_resolve_references()
    spent.endpoints.far.limits.max_requests = 1
    with pytest.raises(BudgetSpent):
      predict.main(spent, tmp_path / "other")
  heads = [json.loads(x) for x in (tmp_path / "run/results.jsonl").open()]
  head = next(h for h in heads if "unit" not in h)
  assert (head["units"], head["unanswered"], head["values"]["mean"]) == (11, 1, 1.0)
  assert head["asked"]["model"]["name"] == "far"


def test_a_run_keeps_its_own_benchmark_and_makes_a_table_of_it(tmp_path):
  """The stage evaluate, with endpoints for models, so that nothing is compiled."""
  with FakeServer() as target, FakeServer() as reference:
    config = test_endpoints._config(tmp_path, (target, reference))
    evaluate.main(config, tmp_path / "run")
    asked = len(reference.asked)
    (tmp_path / "run/evaluate/done.json").unlink()
    with Context(config, tmp_path / "run", "report") as ctx:
      groups = suite.benchmark(ctx, ctx.models.references["ref"], "ref", role="reference ref")
      made = suite.table(ctx)
  assert len(reference.asked) == asked, "what was answered is not asked again"
  assert made is not None and made.roles == ("baseline", "reference ref")
  (row,) = made.rows
  cell = row.cell("reference ref")
  assert row.title == "all" and cell is not None and cell.found.units == groups["all"].n == 12
  assert cell.found.value == 100 * groups["all"].value == 100
  kept = [json.loads(x) for x in (tmp_path / "run/benchmark/results.jsonl").open()]
  assert sum("unit" not in r for r in kept) == 2, "one result a model"


@pytest.mark.slow
def test_predict_killed_at_any_time_goes_on_to_the_same_predictions(tmp_path):
  _scenes(tmp_path)
  command = [
    *(sys.executable, "-m", "auditdm_jax", "predict"),
    f"--config=configs/benchmarks.py:baseline={WEIGHTS}/target_easy",
    f"--config.benchmarks.scenes.path={tmp_path}/data",
    "--config.batch_size=2",
  ]

  def run(workdir):
    return subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, env=os.environ)

  assert run(tmp_path / "whole").wait() == 0
  for wait in (0.0, 0.3):
    process, path = run(tmp_path / "killed"), tmp_path / "killed/predictions-0.jsonl"
    size = path.stat().st_size if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_size > size):
      time.sleep(0.02)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert run(tmp_path / "killed").wait() == 0
  whole, killed = (
    {
      r["key"]: r["prediction"]
      for r in map(json.loads, (tmp_path / name / "predictions-0.jsonl").open())
    }
    for name in ("whole", "killed")
  )
  assert whole == killed
