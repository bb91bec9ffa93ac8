# SPDX-License-Identifier: Apache-2.0
"""The examples of things of one's own: a target, images, a judge, a world and a benchmark."""

import ast
import json
import pathlib
import re
import shlex
import threading
import time

import numpy as np
from PIL import Image
import pytest
import uvicorn

from auditdm_jax.audit.judge import JudgeConfig, Same, open_judge
from auditdm_jax.bench import specs
from auditdm_jax.bench.scorers import per_answer
from auditdm_jax.core import overrides
from auditdm_jax.core.config import UserError, build, load_function
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.pool import open_pool
from auditdm_jax.endpoints.config import EndpointConfig
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.sight import prove_sight
from auditdm_jax.stages import benchmarks, own, sections, worlds
from auditdm_jax.vlm import load_vlm
from examples import (
  audit_from_python,
  own_benchmark,
  own_images,
  own_judge,
  own_target,
  own_world,
  tiny_checkpoint,
)

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("own_*.py"))
WORLD = "examples.own_world:WORLD"


def _typed(example: pathlib.Path) -> str:
  """Returns what an example says to type, as its docstring prints it."""
  doc = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
  (block,) = re.findall(r"^COMMAND\n(.*?)\n\n", doc, re.M | re.S)
  return "\n".join(line.removeprefix("  ") for line in block.splitlines())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_of_an_example_is_printed_and_can_be_typed(example, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  typed = _typed(example)
  assert f"```sh\n{typed}\n```" in (ROOT / "docs/your-own.md").read_text(encoding="utf-8")
  data = re.search(r"own_images --output=(\S+)", typed)
  if data:
    own_images.write(tmp_path / "data")
    typed = typed.replace(data[1], str(tmp_path / "data"))
  stages = [
    shlex.split(line.replace("; do", ""))[3:]
    for line in typed.replace("\\\n", " ").splitlines()
    if "-m auditdm_jax" in line
  ]
  assert stages and f"examples.{example.stem}" in typed
  for words in stages:
    words = [f"--workdir={tmp_path}/run" if w.startswith("--workdir") else w for w in words]
    if words[0] == "audit":
      words = own.expand(words)
    config, given = overrides.given_in(words)
    section = benchmarks.BenchmarksConfig if words[0] == "$stage" else sections.AuditConfig
    settings = build(section, overrides.read(config, given, section), name="config")
    _import_parts(settings)


def _import_parts(settings: sections.AuditConfig | benchmarks.BenchmarksConfig) -> None:
  """Imports what reading a config does not; a UserError says that it is not there."""
  if isinstance(settings, benchmarks.BenchmarksConfig):
    for name, entry in settings.benchmarks.items():
      assert isinstance(entry.spec, str) and specs.find(entry.spec, where=name)
    return
  open_judge(settings.judge)
  worlds.open_world(settings.world.name, settings.world.gaps)
  if ":" in settings.images.backend:
    load_function(settings.images.backend, where="config.images.backend")


@pytest.fixture
def address():
  """Where the example's model is served."""
  server = uvicorn.Server(uvicorn.Config(own_target.APP, port=0, log_level="error"))
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    time.sleep(0.01)
  yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
  server.should_exit = True
  thread.join()


def test_a_function_is_a_target(address):
  with Endpoint(EndpointConfig(base_url=address, model="mine"), name="mine") as endpoint:
    assert prove_sight(endpoint).evidence == "right"
    green = np.zeros((20, 30, 3), np.uint8) + np.uint8([20, 170, 20])
    replies = endpoint.answer([green, None], ["what color is it"] * 2, max_new_tokens=8)
  assert [reply.text for reply in replies] == ["green", "unanswerable"]


def test_rules_of_ones_own_judge():
  judge = open_judge(JudgeConfig(rules="examples.own_judge:same"))
  said = judge.compare_all(
    [("q", "red and blue", "blue and red"), ("q", "red", "maybe red"), ("q", "two", "2")]
  )
  assert said == [Same.SAME, Same.UNDECIDED, Same.DIFFERENT]
  assert open_judge(JudgeConfig()).same("two", "2"), "the package's rules say otherwise"
  assert judge.same("Red!", "Red!") and judge.compare("", "red") is Same.DIFFERENT


def test_rules_that_are_none_are_told_at_once(monkeypatch):
  with pytest.raises(UserError, match=r"config.judge.rules='examples.own_judge:sam': .* 'same'"):
    open_judge(JudgeConfig(rules="examples.own_judge:sam"))
  monkeypatch.setattr(own_judge, "same", lambda question, a, b: "yes")
  with pytest.raises(UserError, match="it returned 'yes', not True, False or None"):
    open_judge(JudgeConfig(rules="examples.own_judge:same")).same("one thing", "another thing")


def test_a_world_of_ones_own():
  world = worlds.open_world(WORLD, "")
  image = np.zeros((64, 64, 3), np.uint8) + np.uint8([28, 22, 25])
  image[20:40, 20:40] = 255
  question, other = own_world.WORDINGS
  assert world.oracle and world.paraphrase
  assert world.oracle(image, question) == world.oracle(image, other) == "black"
  assert world.oracle(image, "how many are there ?") is None
  assert [world.paraphrase(question, k) for k in (1, 2)] == [other, question]
  assert world.groups(question, "black") == ["skill: background", "gaps", "gap: dark backgrounds"]
  assert world.groups(question, "white") == ["skill: background", "rest"]
  assert worlds.World().groups(question, "white") == []


def test_mistakes_in_a_world_are_one_line():
  with pytest.raises(UserError, match="a world of your own names its gaps itself"):
    worlds.open_world(WORLD, "easy")
  with pytest.raises(UserError, match="expected a World, got"):
    worlds.open_world("examples.own_world:oracle", "")
  with pytest.raises(UserError, match="only the models of scenes can err"):
    build(sections.WorldConfig, {"name": WORLD, "noise": {"accuracy": 0.9}}, name="config.world")


def test_a_benchmark_of_ones_own(tmp_path):
  (tmp_path / "train").mkdir()
  Image.new("RGB", (9, 7)).save(tmp_path / "train/a.png")
  row = {"image": "a.png", "question": "What is it?", "answer": ["Bus", "coach"]}
  (tmp_path / "train/questions.jsonl").write_text(json.dumps(row) + "\n")
  spec = specs.find("examples.own_benchmark:SPEC", where="config.benchmarks.mine.spec")
  (item,) = spec.open(pathlib.Path(tmp_path))
  prompt = spec.prompt(specs.Family.LMMS_EVAL)
  assert prompt.render(item) == "What is it?\nAnswer in one word."
  assert prompt.metric == specs.MetricName(
    name="examples.own_benchmark:starts_right", variant="own"
  )
  assert per_answer(own_benchmark.starts_right)
  assert own_benchmark.starts_right("Coach of a team", list(item.references)) == 1.0


def test_images_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  own_images.write(tmp_path)
  pools = {split: open_pool(tmp_path, split) for split in ("train", "heldout", "fresh")}
  assert {split: len(pool) for split, pool in pools.items()} == {
    "train": 48,
    "heldout": 8,
    "fresh": 8,
  }
  assert pools["train"].image(0).shape == (106, 80, 3)
  assert pools["train"].questions(0) == ("what color is the background ?",)
  right = [pools["train"].answers(i)[0][0] for i in range(48)]
  most = max(right.count(color) for color in own_images.COLORS)
  assert 5 < most < 43, "a question with one answer tells nothing"


def test_a_tiny_checkpoint_is_one_of_hugging_face_and_sees_nothing(tmp_path, monkeypatch):
  transformers = pytest.importorskip("transformers")
  monkeypatch.chdir(ROOT)
  for seed in (0, 1):
    tiny_checkpoint.write(tmp_path / str(seed), seed=seed)
  load = transformers.AutoModelForImageTextToText.from_pretrained
  _, info = load(tmp_path / "0", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  one, other, origin = map(load_vlm, (tmp_path / "0", tmp_path / "1", tiny_checkpoint.TALKS))
  assert (one.template, one.stop_ids) == (origin.template, origin.stop_ids)
  for vlm in (one, other):
    np.testing.assert_array_equal(*(x.params["llm"]["final_norm"]["scale"] for x in (vlm, origin)))
  kernels = [x.params["img"]["embedding"]["kernel"] for x in (one, other, origin)]
  assert all(np.abs(a - b).mean() > 1e-3 for a, b in zip(kernels, kernels[1:] + kernels[:1]))


def test_the_example_in_python_finds_the_images_of_its_run(tmp_path, monkeypatch):
  monkeypatch.setattr(audit_from_python, "WORKDIR", tmp_path)
  image_id = Images(tmp_path / "images", fan_out=True).put(np.zeros((4, 4, 3), np.uint8))
  (tmp_path / "verify").mkdir()
  rows = [
    {"probe": {"image_id": i, "question": "q"}, "consensus": "red"} for i in ("0" * 64, image_id)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "verify/failures-0.jsonl").write_text(text)
  image, question, answer = audit_from_python.first_failure()
  assert image.size == (4, 4) and (question, answer) == ("q", "red")
