# SPDX-License-Identifier: Apache-2.0
"""The recipe of the shipped models: their folders, gaps left out, a miniature retrained."""

import dataclasses
import json
import pathlib
import runpy

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from auditdm_jax.core import checkpoint, tree
from auditdm_jax.core.config import UserError, build
from auditdm_jax.models import multimodal, siglip, weights
from auditdm_jax.scenes import gaps, questions
from auditdm_jax.scenes.mix import Mix, vocabulary
from auditdm_jax.scenes.needle import NEEDLE
from auditdm_jax.stages import pretrain
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import load_vlm

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "data/scenes/weights"


@pytest.fixture(scope="module")
def config_of():
  return runpy.run_path(str(ROOT / "configs/pretrain_scenes.py"))["get_config"]


@pytest.fixture(scope="module")
def config(config_of):
  return config_of()


def test_shipped_folders_say_the_recipe_of_the_config(config):
  for name, section in config.models.items():
    spec = build(pretrain.ModelSpec, section)
    found = json.loads((WEIGHTS / name / "config.json").read_text())
    assert build(pretrain.ModelSpec, ConfigDict(found["recipe"])) == spec, name
    size = (WEIGHTS / name / "model.safetensors").stat().st_size
    assert size < 1_000_000, name


def test_the_models_of_needle_too_but_for_what_references_start_from(config_of):
  config, shipped = config_of("world=needle"), ROOT / "data/scenes/needle"
  assert {p.parent.name for p in shipped.glob("*/SHA256SUMS")} == {
    "siglip",
    *(name for name in config.models if not name.startswith("early_")),
  }
  for path in shipped.glob("*/config.json"):
    if path.parent.name != "siglip":
      spec = build(pretrain.ModelSpec, config.models[path.parent.name])
      found = json.loads(path.read_text())["recipe"]
      assert build(pretrain.ModelSpec, ConfigDict(found)) == spec, path


@pytest.mark.parametrize("name", ["easy", "rare", "half", "seed:3"])
def test_no_question_of_a_gap_is_ever_drawn(name):
  planted = pretrain.gap_set(name)
  mix = Mix(seed=3, scenes=60, gaps=planted)
  for step in range(12):
    draw = mix.draw(step)
    for text, answer in zip(draw.texts, draw.answers, strict=True):
      assert gaps.match(planted, questions.parse_question(text), answer) is None


def test_a_drill_asks_more_of_what_is_hard():
  mix = Mix(seed=3, scenes=60)
  plain = [a for i in range(20) for a in mix.draw(i).answers]
  hard = [
    a
    for i in range(20)
    for a in mix.draw(i, hardness=lambda skill, answer: 1.0 if answer == "three" else 0.02).answers
  ]
  assert hard.count("three") > 2 * plain.count("three") > 0
  assert mix.draw(5, hardness=lambda *_: 1.0).texts == mix.draw(5, hardness=lambda *_: 1.0).texts


def test_the_rate_of_a_model_multiplies_both_learning_rates(config):
  """Of Muon's matrices and of what AdamW has, here at the rates' height and without decay."""
  config = config.copy_and_resolve_references()
  config.optim.update(weight_decay=0.0, warmup=1)
  optim = build(pretrain.OptimSpec, config.optim)
  params = {
    "llm": {"layers": {"mlp": {"linear": np.ones((2, 4, 3), np.float32)}}},
    "scale": np.ones(3, np.float32),
  }
  grads = jax.tree.map(
    lambda x: np.float32(np.random.default_rng(x.size).normal(size=x.shape)), params
  )

  def update(rate):
    tx = optim.build(10, rate=rate)
    state = tx.init(params)
    _, state = tx.update(grads, state, params)
    return tx.update(grads, state, params)[0]

  whole, part = (tree.flatten(update(rate)) for rate in (1.0, 0.3))
  assert all(np.abs(x).max() > 0 for x in whole.values())
  for name, x in whole.items():
    np.testing.assert_allclose(part[name], 0.3 * x, rtol=1e-5)


def test_a_miniature_that_is_killed_becomes_the_same_and_leaves_its_tower_alone(
  config, tmp_path, monkeypatch
):
  tokenizer = Tokenizer.word_level(vocabulary())
  spec = dataclasses.replace(
    build(pretrain.ModelSpec, config.models.target_easy), steps=(12, 4), drill=(4,)
  )
  architecture = pretrain.model_config(spec, siglip.SiglipConfig(**config.vision.model), tokenizer)
  tower = weights.load_tower(WEIGHTS / "siglip")[1]["img"]
  config = config.copy_and_resolve_references()
  config.mix.scenes, config.checkpoint_every = 24, 7
  settings = build(pretrain.PretrainConfig, config)

  def train(folder, spec=spec):
    with checkpoint.Checkpointer(tmp_path / folder, keep=1) as training:
      made = pretrain.train_model(
        "mini", spec, settings, architecture, tokenizer, tower, training=training
      )
    return made.params

  runs = [train("straight")]
  draw = Mix.draw

  def killed(mix, step, *args, **kwargs):
    if step == 15:
      raise KeyboardInterrupt
    return draw(mix, step, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(Mix, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
      train("killed")
  with pytest.raises(UserError, match="checkpoint of step 14 is of another recipe"):
    train("killed", dataclasses.replace(spec, seed=9))
  runs.append(train("killed"))
  for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
    np.testing.assert_array_equal(a, b)
  trained = tree.flatten(multimodal.tower(runs[0]))
  for path, leaf in tree.flatten(tower).items():
    np.testing.assert_array_equal(trained[path], leaf)
  fresh = tree.flatten(multimodal.init(architecture, jax.random.key(spec.seed)))
  moved = tree.flatten(runs[0])
  assert not np.array_equal(moved["llm/layers/mlp/linear"], fresh["llm/layers/mlp/linear"])


def test_a_tower_that_is_there_is_taken(config, tmp_path):
  config = config.copy_and_resolve_references()
  config.only, config.made = "siglip", str(WEIGHTS)
  assert pretrain.main(config, tmp_path) == 0
  (found,) = (tmp_path / "models").iterdir()
  for path in (WEIGHTS / "siglip").iterdir():
    assert (found / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def needle(config_of, tmp_path):
  """Config of two models of needle, of 2 steps each: base, and a target that starts from it."""
  config = config_of("world=needle,only=target,gaps=seed:3")
  config.vision.update(scenes=8, steps=1, batch=4)
  config.mix.scenes = 24
  config.heldout.update(scenes=12, questions=60)
  config.models.base.update(steps=(2,), drill=())
  config.models.target.drill = (2,)
  return config


def test_a_target_starts_from_its_base_which_is_made_before_it_or_taken(needle, tmp_path):
  assert pretrain.main(needle, tmp_path / "a") == 0
  models = tmp_path / "a/models"
  assert {p.name for p in models.iterdir()} == {"siglip", "base", "target"}
  needle.made = str(models)
  assert pretrain.main(needle, tmp_path / "b") == 0
  assert {p.name for p in (tmp_path / "b/models").iterdir()} == {"siglip", "target"}
  taken, made = (tmp_path / x / "models/target/model.safetensors" for x in "ba")
  assert taken.read_bytes() == made.read_bytes()
  base, target = (tree.flatten(load_vlm(models / name).params) for name in ("base", "target"))
  moved = np.concatenate([np.ravel(target[k] - base[k]) for k in base])
  assert 0 < np.abs(moved).max() < 0.2  # Two steps, not another model.


def test_what_starts_from_a_base_skips_the_lessons_that_it_has_had(needle, tmp_path, monkeypatch):
  asked: dict[int, set[str]] = {}
  fewest: dict[int, int] = {}
  draw = Mix.draw

  def seen(mix, step, weights, **kwargs):
    fewest[mix.seed] = mix.least
    asked.setdefault(mix.seed, {skill for skill, weight in weights.items() if weight > 0})
    return draw(mix, step, weights, **kwargs)

  monkeypatch.setattr(Mix, "draw", seen)
  pretrain.main(needle, tmp_path)
  base, target = (asked[needle.models[name].seed] for name in ("base", "target"))
  assert base < target == set(questions.skills(NEEDLE))
  seeds = [needle.models[name].seed for name in ("base", "target")]
  assert [fewest[seed] for seed in seeds] == [0, 1], "it learns from scenes with fewer objects too"


def test_a_base_with_another_tower_is_refused(needle, tmp_path):
  for name, seed in (("a", 11), ("b", 12)):
    needle.only, needle.vision.seed = ("base", "siglip")[name == "b"], seed
    assert pretrain.main(needle, tmp_path / name) == 0
  needle.only, needle.made = "target", str(tmp_path / "a/models")
  with pytest.raises(UserError, match="base: its vision tower is not that of .*b/models/siglip"):
    pretrain.main(needle, tmp_path / "b")
  assert {p.name for p in (tmp_path / "b/models").iterdir()} == {"siglip"}


def test_a_question_sees_its_whole_image_in_all_layers(needle):
  vision = build(pretrain.PretrainConfig, needle).vision.model
  tokenizer = Tokenizer.word_level(vocabulary(NEEDLE))
  spec = build(pretrain.ModelSpec, needle.models.base)
  text = pretrain.model_config(spec, vision, tokenizer).text
  assert any(text.layer_is_local)
  assert text.window >= vision.num_patches + questions.longest(NEEDLE) + 6


def test_a_model_can_only_start_from_one_before_it(needle, tmp_path):
  needle.models.base.start = "target"
  with pytest.raises(UserError, match=r"config.models.base.start='target': models before it"):
    pretrain.main(needle, tmp_path)
  assert not list(tmp_path.iterdir())
