# SPDX-License-Identifier: Apache-2.0
"""Children of finds: one change each, within what was read, the same for the same seed."""

import dataclasses

import numpy as np
import pytest

from auditdm_jax.audit.mutating import Asked, Made, Mutations

READ = ["what color is the ring ?", "what shape is the ring ?", "what color is the cup ?"]
TEXTS = ["a red ring", "a blue ring", "a red cup"]


def _children(mutations, n=40, seed=0, images=5, how="children", **fresh):
  return getattr(mutations, how)(n, images, rng=np.random.default_rng(seed), **fresh)


def _changed(text, parent):
  pairs = zip(text.split(), parent.split(), strict=True)
  return [word for word, own in pairs if word != own]


def test_a_child_differs_from_a_find_by_one_word_or_by_its_image_alone():
  mutations = Mutations(READ)
  mutations.add(Asked(2, READ[0]), "a")
  children = _children(mutations)
  assert len(set(children)) == len(children) and Asked(2, READ[0]) not in children
  changed = set()
  for child in children:
    words = _changed(child.question, READ[0])
    assert len(words) <= 1 and (words or child.image != 2) and 0 <= child.image < 5
    changed.update(words)
  assert changed == {"shape", "cup"}, "what was read between the same neighbours, and nothing else"
  assert {c.image for c in children if c.question == READ[0]} == {0, 1, 3, 4}
  assert _children(mutations, how="remade") == [], "its image was not made"


@pytest.mark.parametrize("edits", [True, False], ids=["edit", "generate"])
def test_a_child_of_a_made_image_has_another_question_text_or_source(edits):
  mutations = Mutations(READ)
  for text in TEXTS:
    mutations.read(READ[0], text)
  find = Asked(2, READ[0], Made("mine", edits, TEXTS[0], seed=7, image_id="abc"))
  mutations.add(find, "a")
  asked = _children(mutations)
  assert {c.made for c in asked} == {find.made, None}, "nothing is drawn for another question"
  assert {_changed(c.question, READ[0])[0] for c in asked if c.made} == {"shape", "cup"}
  assert READ[0] in {c.question for c in asked if not c.made}, "it is asked about others too"
  remade = _children(mutations, how="remade")
  assert {c.question for c in remade} == {READ[0]}, "and it is asked what was asked"
  assert {dataclasses.replace(c.made, text="") for c in remade} == {
    Made("mine", edits, "", seed=7)
  }, "its image is to be made"
  texts = {c.made.text for c in remade if c.image == 2}
  sources = {c.image for c in remade if c.made.text == TEXTS[0]}
  assert {w for text in texts for w in _changed(text, TEXTS[0])} == {"blue", "cup"}
  assert sources == ({0, 1, 3, 4} if edits else set()), "a caption has no source"
  assert (2, TEXTS[0]) not in {(c.image, c.made.text) for c in remade}, "no image is made twice"


def test_a_text_in_which_nothing_can_be_replaced_has_no_image_made():
  mutations = Mutations([])
  mutations.add(Asked(0, "how many ?", Made("mine", False, TEXTS[0], seed=7, image_id="abc")), "a")
  assert _children(mutations, how="remade") == []


@pytest.mark.parametrize("made", [None, Made("mine", False, TEXTS[0], seed=7, image_id="abc")])
def test_what_was_asked_is_asked_about_images_that_others_have_just_had_made(made):
  mutations = Mutations(READ)
  mutations.add(Asked(2, READ[0], made), "a")
  fresh = [
    Asked(i, "is it ?", Made("other", True, text, seed=i, image_id=f"new {i}"))
    for i, text in enumerate(TEXTS)
  ]
  children = _children(mutations, n=60, fresh=fresh)
  about = {c.made.image_id: c for c in children if c.made and c.made != made}
  assert {(c.image, c.made) for c in about.values()} == {(f.image, f.made) for f in fresh}
  same = {c.made.image_id for c in children if c.question == READ[0] and c.made not in (None, made)}
  assert same == about.keys(), "with the same words, and with another one"
  assert {c.question for c in children} == {READ[0], *READ[1:]}


def test_no_find_has_no_children_and_what_is_no_question_is_left_out():
  assert _children(Mutations(READ)) == []
  mutations = Mutations(READ, well_formed=lambda text: "cup" not in text)
  mutations.add(Asked(0, READ[0]), "a")
  children = _children(mutations)
  assert children and not any("cup" in child.question for child in children)


def test_the_same_seed_has_the_same_children_and_later_finds_are_parents_too():
  def made(*finds):
    mutations = Mutations(READ)
    for find in finds:
      mutations.add(find, "a")
    return mutations

  one, two = Asked(0, READ[0]), Asked(1, READ[1])
  assert _children(made(one, two)) == _children(made(one, two)) != _children(made(one, two), seed=1)
  grandchild = "what shape is the cup ?"  # Two words from the first find.
  assert grandchild in {c.question for c in _children(made(one, two))}
  assert grandchild not in {c.question for c in _children(made(one))}
  assert len(_children(made(one), n=3)) == 3


def test_a_kind_with_many_finds_has_no_more_children_than_one_with_few():
  mutations = Mutations([])
  for image in range(50):
    mutations.add(Asked(image, "how many ?"), "count")
  mutations.add(Asked(60, "what kind ?"), "kind")
  children = _children(mutations, n=200, images=10_000)
  few = sum(child.question == "what kind ?" for child in children)
  assert 70 < few < 130
