# SPDX-License-Identifier: Apache-2.0
"""Recipes are complete, consistent and found by name."""

import dataclasses

import jax
import ml_collections
import pytest

from auditdm_jax.core import config, tree
from auditdm_jax.models import multimodal, variants
from auditdm_jax.rectify import recipes, tuning
from auditdm_jax.stages import sections


def test_published_values():
  chartqa = recipes.get("chartqa")
  assert (chartqa.epochs, chartqa.batch_size, chartqa.lr, chartqa.label_smoothing) == (
    30,
    256,
    1e-5,
    0.2,
  )
  assert recipes.get("forkme").wd == 3e-7 and recipes.get("refcoco").lr == 3e-5


@pytest.mark.parametrize("name", ["gemma3-4b", "gemma3-12b"])
def test_gemma3_trains_all_but_the_tower(name):
  """Its published decoder and projector; the report's tower is frozen."""
  recipe, model = recipes.get(name), variants.VARIANTS[name.replace("-", "_")]
  shapes = jax.eval_shape(lambda key: multimodal.init(model, key), jax.random.key(0))
  trained = {path for path in tree.flatten(shapes) if recipe.rate_of(path) is not None}
  tower = {f"img/{path}" for path in tree.flatten(multimodal.tower(shapes))}
  assert trained == set(tree.flatten(shapes)) - tower
  assert any(path.startswith("img/head/") for path in trained)
  assert not tuning.trains_tower(recipe, shapes)


def test_steps_count_new_examples():
  assert recipes.get("forkme").num_steps(320) == 150
  half = recipes.Recipe(epochs=2, batch_size=64, lr=1e-3, replay=0.5)
  assert half.new_per_batch == 32 and half.num_steps(320) == 20
  assert recipes.get("scenes").num_steps(7) == 1000
  assert recipes.Recipe(epochs=1, batch_size=64, lr=1e-3).num_steps(1) == 1


@pytest.mark.parametrize(
  "bad",
  [
    {},
    {"steps": 1, "replay": 1.0},
    {"steps": 1, "parts": (("img/(", 1.0),)},
    {"steps": 1, "parts": ((".*", 0.0),)},
    {"steps": 1, "parts": ((".*", None),)},
    {"steps": 1, "micro_rows": 3},
  ],
)
def test_inconsistent_recipes_are_refused(bad):
  with pytest.raises(ValueError):
    recipes.Recipe(batch_size=8, lr=1e-3, **bad)


def test_names_are_suggested():
  with pytest.raises(config.UserError, match="did you mean 'chartqa'"):
    recipes.get("chart_qa")


def _of_config(section):
  config_dict = ml_collections.ConfigDict(
    {"rectify": {"recipe": section, "length": 8, "suffix": 2}}
  )
  return config.build(sections.RectifyConfig, config_dict.rectify, name="config.rectify").recipe


def test_a_config_names_a_recipe():
  assert _of_config("chartqa-448") == recipes.get("chartqa-448")
  assert _of_config({"name": "chartqa-448"}) == recipes.get("chartqa-448")


def test_a_config_says_what_differs_from_a_named_recipe():
  mine = _of_config({"name": "chartqa", "steps": 70, "format": {"res": 448}})
  known = recipes.get("chartqa")
  assert mine.format == dataclasses.replace(known.format, res=448)
  assert mine == dataclasses.replace(known, steps=70, format=mine.format)
  assert mine.num_steps(1_000_000) == 70


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ("chart-qa", r"config\.rectify\.recipe: no recipe 'chart-qa' \(did you mean 'chartqa'"),
    ({"name": "chartq", "lr": 1.0}, r"config\.rectify\.recipe: no recipe 'chartq' \(did you"),
    (
      {"name": "chartqa", "lrr": 1.0},
      r"config\.rectify\.recipe\.lrr: unknown key \(did you mean 'lr'",
    ),
    ({"name": 3}, r"config\.rectify\.recipe\.name: expected str, got int"),
    (
      {"name": "chartqa", "format": {"rez": 1}},
      r"recipe\.format\.rez: unknown key \(did you mean 'res'",
    ),
    ({"lr": 1.0}, r"config\.rectify\.recipe\.batch_size: missing key"),
    (3, r"config\.rectify\.recipe: expected a section with keys"),
  ],
)
def test_a_wrong_recipe_in_a_config_is_an_error(section, message):
  with pytest.raises(config.UserError, match=message):
    _of_config(section)


def test_the_first_part_that_matches_the_whole_path_counts():
  recipe = recipes.Recipe(
    steps=1, batch_size=1, lr=1.0, parts=(("img/head/.*", 0.5), ("img", 1.0), ("img/.*", None))
  )
  assert recipe.rate_of("img/head/kernel") == 0.5 and recipe.rate_of("img/x/kernel") is None
  with pytest.raises(config.UserError, match="'llm/x'"):
    recipe.rate_of("llm/x")


@pytest.mark.parametrize("name", recipes.TRANSFERS)
def test_transfers_train_the_tower_but_for_one(name):
  parts = {
    part: recipes.get(name).rate_of(path)
    for part, path in {"tower": "img/embedding/kernel", "projector": "img/head/bias"}.items()
  }
  assert parts == dict.fromkeys(parts, None if name == "gqa-448" else 1.0)
  assert recipes.get(name).rate_of("llm/final_norm/scale") == 1.0
