# SPDX-License-Identifier: Apache-2.0
"""Each gate on a case that passes and one that does not."""

import numpy as np
import pytest

from auditdm_jax.audit import gates
from auditdm_jax.audit.duplicates import DuplicateIndex, fingerprint
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.verdict import ConsensusRule
from auditdm_jax.images import locality


@pytest.mark.parametrize(
  "question,ok",
  [
    ("what color is the star", True),
    ("why", False),
    ("what? and why?", False),
    ("is it\nred", False),
    ("what is <eos> there", False),
    ("word " * 50, False),
    ("Какого цвета машина?", True),
    ("यह कार किस रंग की है?", True),
    ("这只狗是什么颜色的？", True),
    ("这只狗是什么颜色的" * 12, False),  # Without blanks: two signs count as a word.
    ("为何", False),
  ],
)
def test_well_formed(question, ok):
  assert gates.well_formed(question).passed == ok


def _said(*answers):
  """References "0", "1", … and what they said."""
  return {str(i): answer for i, answer in enumerate(answers)}


def test_answerable_counts_paraphrases():
  judge = Judge()
  untried = gates.answerable("red", [], judge)
  assert untried.passed is None and untried.value is None and untried.note
  half = gates.answerable("red", ["Red", None], judge)
  assert not half.passed and half.value == 0.5
  assert gates.answerable("red", ["red", "blue"], judge, least=0.5).passed
  assert not gates.answerable("red", ["red", "blue"], judge).passed


def test_judge_both_ways():
  assert gates.both_ways("red", "blue", Judge()).passed
  assert not gates.both_ways("cat", "animal", Judge()).passed  # Undecided.


def test_language_prior():
  assert not gates.language_prior(_said("grass", "grass"), _said("grass", "Grass"), Judge()).passed
  two_of_three = _said("red", "red", "red"), _said("red", "red", "blue")
  assert gates.language_prior(*two_of_three, Judge()).passed
  two = gates.language_prior(*two_of_three, Judge(), rule=ConsensusRule(0.67))
  assert not two.passed and two.value == pytest.approx(2 / 3)
  assert gates.language_prior(_said("red", "red"), _said("red", "blue"), Judge()).passed


def test_image_sane(make_picture):
  assert gates.image_sane(make_picture(1)).passed
  assert not gates.image_sane(np.full((64, 64, 3), 9, np.uint8)).passed
  assert not gates.image_sane(make_picture(1)[:8]).passed


def _smooth(seed):
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 255, (4, 4, 3))
  return np.kron(small, np.ones((16, 16, 1))).astype(np.uint8)


def test_near_duplicate_needs_image_and_words():
  image, index = _smooth(0), DuplicateIndex()
  looks = fingerprint(image)
  assert gates.near_duplicate(looks, "what color is the star", index).passed
  index.add(looks, "what color is the star")
  noisy = np.clip(image.astype(int) + np.random.default_rng(1).integers(-2, 3, image.shape), 0, 255)
  again = fingerprint(noisy.astype(np.uint8))
  assert not gates.near_duplicate(again, "What color is the star?", index).passed
  assert gates.near_duplicate(looks, "what color is the circle", index).passed
  assert gates.near_duplicate(fingerprint(_smooth(5)), "what color is the star", index).passed


def test_composite_keeps_the_outside_and_the_gates_measure_it():
  source = _smooth(0)
  edited = np.clip(source.astype(int) + 3, 0, 255).astype(np.uint8)  # whole frame re-rendered
  edited[16:32, 16:32] = 255 - source[16:32, 16:32]
  outside, fraction = gates.edit_locality(source, edited, np.zeros((64, 64), bool))
  assert not outside.passed and not fraction.passed
  image, mask = locality.composite(source, edited)
  outside, fraction = gates.edit_locality(source, image, mask)
  assert outside.passed and fraction.passed and 0.05 < fraction.value < 0.12
  assert (image[20:28, 20:28] == edited[20:28, 20:28]).all()
  with pytest.raises(ValueError, match="grid"):
    locality.composite(source, edited[:32])


def test_the_region_of_a_composite_is_found_again():
  rng = np.random.default_rng(3)
  for seed in range(20):
    source, edited = _smooth(seed), _smooth(seed + 100)
    same = rng.random((64, 64)) < 0.2
    edited[same] = source[same]
    for grow in (0, 1, 3):
      image, mask = locality.composite(source, edited, grow=grow)
      again, found = locality.composite(source, image, grow=grow)
      assert (found == mask).all() and (again == image).all()


def test_a_stroke_of_a_small_drawing_is_kept_and_specks_of_a_large_one_are_not():
  for side, kept in ((64, 40), (512, 0)):
    source = np.full((side, side, 3), 120, np.uint8)
    edited = source.copy()
    edited[20, 10:50] = 255
    assert (locality.composite(source, edited)[0] != source).any(-1).sum() == kept


def test_an_edit_of_everything_or_nothing_fails():
  source = _smooth(0)
  for edited in (source, 255 - source):
    assert not gates.edit_locality(source, *locality.composite(source, edited))[1].passed


def test_sham():
  source = _smooth(0)
  mask = np.zeros((64, 64), bool)
  mask[:8] = True
  sham = locality.paste(source, source // 2, mask)
  assert (sham[8:] == source[8:]).all() and (sham[:8] == source[:8] // 2).all()
  assert gates.sham_control({"t": "red"}, {"t": "Red"}, Judge(), question="").passed
  assert not gates.sham_control(
    {"t": "red", "r": "red"}, {"t": "red", "r": "blue"}, Judge(), question=""
  ).passed
  unsure = gates.sham_control({"t": "dog"}, {"t": "poodle"}, Judge(), question="")
  assert unsure.passed is None and "undecided" in unsure.note
  both = gates.sham_control(
    {"t": "dog", "r": "red"}, {"t": "poodle", "r": "blue"}, Judge(), question=""
  )
  assert (both.passed, both.value) == (False, 1)
