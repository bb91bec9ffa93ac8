# SPDX-License-Identifier: Apache-2.0
"""Delta debugging finds what matters, leaves nothing that does not, and keeps to its budget."""

import numpy as np
import pytest

from auditdm_jax.audit.minimise import shortest_question, smallest_edit

QUESTION = "what is the color of the large round purple thing on the left of the dish?"


class Fails:
  """Says which questions fail, and counts."""

  def __init__(self, *needed: str):
    self.needed, self.asked = needed, 0

  def __call__(self, questions):
    self.asked += len(questions)
    return [all(word in q.rstrip("?").split() for word in self.needed) for q in questions]


@pytest.mark.parametrize(
  "needed", [("purple",), ("color", "dish"), ("what", "purple", "left"), tuple("the of on".split())]
)
def test_only_the_words_that_matter_are_left(needed):
  fails = Fails(*needed)
  got = shortest_question(QUESTION, fails, budget=10_000)
  words = got.question.rstrip("?").split()
  assert sorted(words) == sorted(needed) and got.question.endswith("?")
  assert (got.words, got.words_before, got.is_minimal) == (len(needed), 16, True)
  assert got.tried == fails.asked < 100
  rest = iter(QUESTION.rstrip("?").split())
  assert all(word in rest for word in words)  # In their order.


def test_any_failing_set_becomes_minimal():
  rng = np.random.default_rng(0)
  for _ in range(50):
    needed = set(rng.choice(15, rng.integers(1, 6), replace=False).tolist())
    words = [f"w{i}" for i in range(15)]

    def fails(questions, needed=needed):
      return [needed <= {int(w[1:]) for w in q.split()} for q in questions]

    got = shortest_question(" ".join(words), fails, budget=10_000)
    assert {int(w[1:]) for w in got.question.split()} == needed and got.is_minimal


def test_the_budget_is_kept():
  fails = Fails("what", "purple", "dish")
  got = shortest_question(QUESTION, fails, budget=7)
  assert got.tried == fails.asked == 7 and not got.is_minimal
  assert fails([got.question]) == [True]


def test_minimal_is_said_only_if_every_shorter_one_was_tried():
  words = ("a", "b", "c", "d", "e")
  said = []
  for budget in range(1, 40):
    asked = set()

    def fails(questions, asked=asked):
      asked |= set(questions)
      return [{"b", "d"} <= set(q.split()) for q in questions]

    got = shortest_question(" ".join(words), fails, budget=budget)
    kept = got.question.split()
    shorter = {" ".join(w for w in kept if w != left) for left in kept}
    said.append(got.is_minimal)
    assert not got.is_minimal or shorter <= asked, budget
  assert not said[0] and said[-1]


def test_what_cannot_be_shortened_stays_as_it_is():
  odd = "Is  it   red ?"
  got = shortest_question(odd, lambda questions: [False] * len(questions), budget=100)
  assert got.question == odd and got.is_minimal and got.words == 3


def _images() -> tuple[np.ndarray, np.ndarray]:
  source = np.full((32, 40, 3), 90, np.uint8)
  edited = source.copy()
  edited[2:30, 3:38] = 210
  return source, edited


def test_an_edit_shrinks_to_the_tile_and_the_strength_that_matter():
  source, edited = _images()

  def fails(images):
    return [bool(image[14, 22, 0] >= 150) for image in images]

  got = smallest_edit(source, edited, fails, budget=500)
  changed = (got.image != source).any(-1)
  assert fails([got.image]) == [True] and got.is_minimal
  assert got.tiles == 1 < got.tiles_before == 64 and 0 < changed.sum() <= 20 and changed[14, 22]
  assert got.strength == 0.5 and got.image[14, 22, 0] == 150


def test_an_edit_that_does_not_matter_is_taken_back():
  source, edited = _images()
  got = smallest_edit(source, edited, lambda images: [True] * len(images), budget=5)
  assert (got.tiles, got.strength, got.tried) == (0, 0.0, 1)
  np.testing.assert_array_equal(got.image, source)


def test_an_edit_that_cannot_shrink_is_kept():
  source, edited = _images()

  def fails(images):
    return [bool((image == edited).all()) for image in images]

  got = smallest_edit(source, edited, fails, budget=1_000)
  np.testing.assert_array_equal(got.image, edited)
  assert (got.tiles, got.strength) == (got.tiles_before, 1.0) and got.is_minimal
  assert not smallest_edit(source, edited, fails, budget=10).is_minimal
  with pytest.raises(ValueError, match="sizes differ"):
    smallest_edit(source[1:], edited, fails, budget=10)
