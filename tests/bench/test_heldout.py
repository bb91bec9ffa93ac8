# SPDX-License-Identifier: Apache-2.0
"""A run's own benchmark: questions of a pool in groups, and the suite of the scenes world."""

import numpy as np
import pytest

from auditdm_jax.bench import heldout, specs
from auditdm_jax.bench.predictions import PredictionStore
from auditdm_jax.bench.specs.scenes import SUITE, SceneQuestions
from auditdm_jax.core.config import UserError
from auditdm_jax.scenes import questions, world
from auditdm_jax.stages.worlds import open_world
from tests.bench import asked as made
from tests.stages.folders import images_of_scenes


class _Scenes:
  """A pool of a few scenes, without images."""

  split = "heldout"

  def __init__(self, n):
    rng = np.random.default_rng(0)
    self.rows = []
    for _ in range(n):
      scene = world.sample_scene(rng)
      asked = [questions.sample_question(rng, scene)[:2] for _ in range(3)]
      self.rows.append(tuple(zip(*asked, strict=True)))

  def __len__(self):
    return len(self.rows)

  def image_id(self, i):
    return f"scene{i}"

  def questions(self, i):
    return self.rows[i][0]

  def answers(self, i):
    return tuple((answer,) for answer in self.rows[i][1])

  def question_ids(self, i):
    return tuple(f"{i}/{j}" for j in range(3))


class _Voted:
  """A pool of one image, with a question that nobody answered and one that several people did."""

  split = "heldout"

  def __len__(self):
    return 1

  def image_id(self, i):
    return "image"

  def questions(self, i):
    return "who knows", "what colour"

  def answers(self, i):
    return (), ("blue", "red", "teal", "red")

  def question_ids(self, i):
    return "", "7"


def test_answers_of_several_people_stay_several_and_the_first_is_that_of_most():
  (item,) = specs.from_pool(_Voted())
  assert item.references == ("red", "red", "blue", "teal")
  assert (item.item_id, item.image_key, item.question) == ("7", "image", "what colour")


def _scored(items, says, folder):
  asked = heldout.questions_of(
    items, split="heldout", scorer="auditdm_jax.bench.scorers:normalized_match", max_tokens=5
  )
  return made.scored(made.Said(says), asked, PredictionStore(folder))


def test_scenes_questions_are_in_gaps_or_in_the_rest(tmp_path):
  items = specs.from_pool(_Scenes(60))
  assert len(items) == 180 and len(specs.from_pool(_Scenes(60), limit=2)) == 6
  answers = {x.question: x.references[0] for x in items}
  rows = _scored(items, lambda q: answers[q], tmp_path)
  easy = open_world("scenes", "easy")
  groups = heldout.members(items, lambda item: easy.groups(item.question, item.references[0]))
  table = heldout.rates_of(rows, groups)
  assert table["gaps"].n + table["rest"].n == table["all"].n == 180 and next(iter(table)) == "all"
  assert table["gaps"].n > 5
  assert sum(r.n for name, r in table.items() if name.startswith("gap:")) == table["gaps"].n
  assert sum(r.n for name, r in table.items() if name.startswith("skill:")) == 180
  assert table["all"].images == 60, "questions of one image are not independent"
  part = heldout.of_group(rows, "gaps", groups["gaps"])
  assert part is not None and part.head.units == table["gaps"].n
  assert part.head.asked.entry == "gaps" and heldout.of_group(rows, "x", ["nobody"]) is None


def test_without_groups_there_is_one(tmp_path):
  items = made.items(4)
  rows = _scored(items, lambda q: "Yes." if "0" in q else "no", tmp_path)
  table = heldout.rates_of(rows, heldout.members(items, None))
  assert {name: (r.k, r.n) for name, r in table.items()} == {"all": (1, 4)}
  assert heldout.members([], None) == {}


def test_all_and_the_two_sides_come_before_single_groups():
  items = specs.from_pool(_Scenes(20))
  names = ["skill: b", "rest", "skill: a", "gaps", "gap: c"]
  groups = {item.item_id: (names[i % len(names)],) for i, item in enumerate(items)}
  found = list(heldout.members(items, lambda item: groups[item.item_id]))
  assert found == ["all", "gaps", "rest", "gap: c", "skill: a", "skill: b"]


def test_the_suite_has_a_benchmark_per_skill_that_share_out_the_questions(tmp_path):
  images_of_scenes(tmp_path / "data/heldout", images=40, seed=0)
  sizes = {}
  for spec in SUITE:
    try:
      sizes[spec.name] = len(spec.open(tmp_path / "data"))
    except UserError as e:
      assert "no items in the split" in str(e)
  whole = sizes["scenes"]
  assert sum(
    n for name, n in sizes.items() if name.removeprefix("scenes-") in questions.SKILLS
  ) == (whole)
  for name in ("easy", "rare"):
    assert sizes[f"scenes-gaps-{name}"] + sizes[f"scenes-rest-{name}"] == whole
  assert specs.find("scenes-dial", where="x").title == "scenes: dial"


def test_what_is_no_scene_is_told(tmp_path):
  images_of_scenes(tmp_path / "heldout", images=4, seed=0)
  path = tmp_path / "heldout/questions.jsonl"
  path.write_text(path.read_text().replace("what", "why", 1))
  layout = SceneQuestions(keeps=lambda *_: True)
  with pytest.raises(UserError, match="why .* is no question of the scenes world"):
    layout.open(tmp_path, "heldout")
