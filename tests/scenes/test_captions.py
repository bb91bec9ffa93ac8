# SPDX-License-Identifier: Apache-2.0
"""What a caption allows."""

import numpy as np
import pytest

from auditdm_jax.scenes import language, world
from auditdm_jax.scenes.world import Instrument, Obj

_ONE = Obj(cell=0, shape="circle", color="red", size="small", digit="seven")
_TWO = Obj(cell=5, shape="ring", color="blue", size="big")


def _scene(*objects, dial=None, background="gray"):
  return world.Scene(objects, dial=dial, gauge=None, background=background)


def test_whatever_a_seed_fills_in_is_allowed():
  rng = np.random.default_rng(0)
  for k in range(200):
    text = language.sample_caption(rng)
    assert language.shows(text, language.read_caption(text, k)), text


def test_a_full_caption_allows_one_scene_only():
  rng = np.random.default_rng(1)
  scenes = [world.sample_scene(rng) for _ in range(20)]
  for i, scene in enumerate(scenes):
    shown = [language.shows(language.caption(scene), other) for other in scenes]
    assert shown == [i == k for k in range(20)]


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("a red circle with seven and a big ring", True),
    ("a big object and a red circle with seven", True),
    ("a object with seven and a object", True),  # In the other order the first takes both.
    ("a object and a object with seven", True),
    ("a red circle with seven", False),  # and nothing else
    ("a red circle and a big ring", False),  # a digit is named where there is one
    ("a red circle with seven and a small ring", False),
    ("a red circle with seven and a ring at row two column two", True),
    ("a red circle with seven and a ring at row two column three", False),
    ("a red circle with seven and a ring and a gray background", True),
    ("a red circle with seven and a ring and a black background", False),
    ("a red circle with seven and a ring and the dial reads north", False),
    ("a red circle with seven and a ring and a ring", False),
  ],
)
def test_captions_of_two_objects(text, shown):
  assert language.shows(text, _scene(_ONE, _TWO)) == shown


def test_the_dial_is_as_it_is_said():
  scene = _scene(_ONE, dial=Instrument(9, "north"))
  assert language.shows("a circle with seven and the dial reads north", scene)
  assert not language.shows("a circle with seven and the dial reads south", scene)
  assert not language.shows("a circle with seven", scene)


def test_no_caption_is_an_error():
  with pytest.raises(language.LanguageError):
    language.shows("make the circle blue", _scene(_ONE))
