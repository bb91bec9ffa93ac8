# SPDX-License-Identifier: Apache-2.0
"""The scenes data set: no TensorFlow, true to its oracle, the same every time."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from auditdm_jax.core import config, pool
from auditdm_jax.scenes import questions, world
from auditdm_jax.scenes.needle import NEEDLE

_FILE = pathlib.Path(__file__).parents[2] / "data" / "scenes" / "scenes_dataset_builder.py"


def _load():
  """The builder as the prepare command sees it: a file, not a module of a package."""
  spec = importlib.util.spec_from_file_location(_FILE.stem, _FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


builder = _load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return builder.prepare(str(tmp_path_factory.mktemp("tfds")), config="tiny")


def test_splits_have_their_sizes_and_nothing_needs_tensorflow(folder):
  assert [len(pool.open_tfds(folder, s)) for s in builder.SPLITS] == [12, 8, 8]
  assert "tensorflow" not in sys.modules


def test_a_split_may_be_a_slice(folder):
  whole, part = pool.open_pool(folder, "pool"), pool.open_pool(folder, "pool[2:5]")
  assert [part.image_id(i) for i in range(len(part))] == [whole.image_id(i) for i in (2, 3, 4)]


def test_rows_are_in_order_and_equal_the_pure_function(folder):
  heldout = pool.open_tfds(folder, "heldout")
  tiny = builder.Builder.builder_configs["tiny"]
  for i in range(len(heldout)):
    expected = builder.make_example(tiny, "heldout", i)
    np.testing.assert_array_equal(heldout.image(i), expected["image"])
    assert heldout.questions(i) == tuple(expected["questions"])
    assert heldout.text(i, "scene") == expected["scene"]


def test_answers_are_those_of_the_oracle(folder):
  rows = pool.open_tfds(folder, "pool")
  for i in range(len(rows)):
    scene = world.Scene.from_json(rows.text(i, "scene"))
    assert len(rows.questions(i)) == len(rows.answers(i)) == 3
    for question, (answer,) in zip(rows.questions(i), rows.answers(i), strict=True):
      assert questions.execute(questions.parse_question(question), scene) == answer


def test_no_image_is_in_two_splits(folder):
  ids = []
  for split in builder.SPLITS:
    rows = pool.open_tfds(folder, split)
    ids += [rows.image_id(i) for i in range(len(rows))]
  assert len(set(ids)) == len(ids)


def test_another_seed_is_another_data_set():
  first, second = (builder.ScenesConfig(name="x", seed=s) for s in (0, 1))
  assert (
    builder.make_example(first, "pool", 0)["scene"]
    != builder.make_example(second, "pool", 0)["scene"]
  )


def test_the_larger_world_is_a_config_of_the_builder():
  config = builder.Builder.builder_configs["needle_tiny"]
  said = set()
  for split in builder.SPLITS:
    for i in range(6):
      row = builder.make_example(config, split, i)
      assert row["image"].shape == (96, 96, 3)
      assert row["questions"] == builder.make_example(config, split, i)["questions"]
      scene = world.Scene.from_json(row["scene"], NEEDLE)
      for question, answer in zip(row["questions"], row["answers"], strict=True):
        program = questions.parse_question(question, NEEDLE)
        assert questions.execute(program, scene) == answer
      if split != "heldout":
        said |= {w for o in scene.objects for w in vars(o).values()}
  assert {"dotted", "striped"} <= said and not said & set(NEEDLE.scarce)


def test_errors_teach(folder, tmp_path):
  with pytest.raises(config.UserError, match="did you mean 'heldout'"):
    pool.open_tfds(folder, "held_out")
  with pytest.raises(config.UserError, match="neither a prepared data set nor"):
    pool.open_pool(tmp_path, "pool")
