# SPDX-License-Identifier: Apache-2.0
"""Evaluation asks once, scores what was stored, and groups scenes questions by skill and gap."""

import numpy as np
import pytest

from auditdm_jax.bench import evaluate, scorers, specs
from auditdm_jax.core.records import Records
from auditdm_jax.scenes import gaps as gaps_lib
from auditdm_jax.scenes import questions, world


def _examples(n=10):
  return [
    evaluate.Example(
      example_id=f"e{i}", image=i, image_id=f"im{i}", question=f"q{i}", references=("yes",)
    )
    for i in range(n)
  ]


class _Model:
  """Says yes to the first `right` questions and counts what it is asked."""

  def __init__(self, right, *, dies_after=None):
    self.right, self.asked, self.dies_after = right, [], dies_after

  def __call__(self, examples):
    if self.dies_after is not None and len(self.asked) >= self.dies_after:
      raise RuntimeError("power cut")
    self.asked += [e.example_id for e in examples]
    return ["Yes." if e.image < self.right else "no" for e in examples]


def test_rates_and_groups():
  table = evaluate.evaluate(
    _Model(8), _examples(), model="m", groups=lambda e: ["even" if e.image % 2 == 0 else "odd"]
  )
  assert [(r.group, sum(r.scores), len(r.scores)) for r in table.rows] == [
    ("all", 8, 10),
    ("even", 4, 5),
    ("odd", 4, 5),
  ]
  assert table.row("even").images == tuple(e.image_id for e in _examples()[::2])
  assert table.scores["e0"] == 1 and table.scores["e9"] == 0
  with pytest.raises(KeyError, match="groups: all, even, odd"):
    table.row("evne")


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
  records = Records(tmp_path)
  first = _Model(8, dies_after=6)
  with pytest.raises(RuntimeError):
    evaluate.evaluate(first, _examples(), model="m", records=records, batch_size=3)
  second, seen = _Model(8), []
  table = evaluate.evaluate(
    second,
    _examples(),
    model="m",
    records=Records(tmp_path),
    batch_size=3,
    on_batch=seen.append,
  )
  assert first.asked + second.asked == [f"e{i}" for i in range(10)] and seen == [9, 10]
  assert sum(table.row("all").scores) == 8
  third = _Model(0)
  known = evaluate.evaluate(third, _examples(), model="m", records=records)
  assert sum(known.row("all").scores) == 8
  assert not third.asked
  other = evaluate.evaluate(_Model(2), _examples(), model="m2", records=records)
  assert sum(other.row("all").scores) == 2


def test_mistakes_are_told():
  with pytest.raises(ValueError, match="repeated ids"):
    evaluate.evaluate(_Model(1), _examples() + _examples(), model="m")
  with pytest.raises(ValueError, match="gave 1 answers to 10"):
    evaluate.evaluate(lambda batch: ["yes"], _examples(), model="m")


def test_empty_benchmark_has_no_rows():
  assert evaluate.evaluate(_Model(0), [], model="m").rows == ()


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
  (example,) = specs.from_pool(_Voted())
  assert example.references == ("red", "red", "blue", "teal")
  assert (example.example_id, example.question) == ("7", "what colour")


def test_scenes_examples_are_in_gaps_or_in_the_rest():
  examples = specs.from_pool(_Scenes(60))
  assert len(examples) == 180 and len(specs.from_pool(_Scenes(60), limit=2)) == 6
  table = evaluate.evaluate(
    lambda batch: [e.references[0] for e in batch],
    examples,
    model="oracle",
    scorer=scorers.exact_match,
    groups=specs.scenes_groups(gaps_lib.EASY),
  )
  assert table.row("gaps").n + table.row("rest").n == table.row("all").n == 180
  assert table.row("gaps").n > 5 and all(row.rate == 1 for row in table.rows)
  assert sum(r.n for r in table.rows if r.group.startswith("gap:")) == table.row("gaps").n
  assert sum(r.n for r in table.rows if r.group.startswith("skill:")) == 180
