# SPDX-License-Identifier: Apache-2.0
"""Children of finds: one change each, within what was read, the same for the same seed."""

import numpy as np

from auditdm_jax.audit.mutating import Mutations

READ = ["what color is the ring ?", "what shape is the ring ?", "what color is the cup ?"]


def _children(mutations, n=40, seed=0, images=5):
  return mutations.children(n, images, rng=np.random.default_rng(seed))


def test_a_child_differs_from_a_find_by_one_word_or_by_its_image_alone():
  mutations = Mutations(READ)
  mutations.add(READ[0], 2)
  children = _children(mutations)
  assert len(set(children)) == len(children) and (2, READ[0]) not in children
  changed = set()
  for image, question in children:
    pairs = list(zip(question.split(), READ[0].split(), strict=True))
    words = [word for word, own in pairs if word != own]
    assert len(words) <= 1 and (words or image != 2) and 0 <= image < 5
    changed.update(words)
  assert changed == {"shape", "cup"}, "what was read between the same neighbours, and nothing else"
  assert {image for image, question in children if question == READ[0]} == {0, 1, 3, 4}


def test_no_find_has_no_children_and_what_is_no_question_is_left_out():
  assert _children(Mutations(READ)) == []
  mutations = Mutations(READ, well_formed=lambda text: "cup" not in text)
  mutations.add(READ[0], 0)
  children = _children(mutations)
  assert children and not any("cup" in question for _, question in children)


def test_the_same_seed_has_the_same_children_and_later_finds_are_parents_too():
  def made(*finds):
    mutations = Mutations(READ)
    for find in finds:
      mutations.add(*find)
    return mutations

  one, two = (READ[0], 0), (READ[1], 1)
  assert _children(made(one, two)) == _children(made(one, two)) != _children(made(one, two), seed=1)
  grandchild = "what shape is the cup ?"  # Two words from the first find.
  assert grandchild in {q for _, q in _children(made(one, two))}
  assert grandchild not in {q for _, q in _children(made(one))}
  assert len(_children(made(one), n=3)) == 3
