# SPDX-License-Identifier: Apache-2.0
"""Whether a made image shows what was asked for, whoever made it."""

import numpy as np

from auditdm_jax.scenes import image_backend, language, render, world
from auditdm_jax.stages import worlds

FAITHFUL = worlds.open_world("scenes", "easy").faithful


def test_what_the_renderer_draws_is_faithful_and_another_image_is_not():
  rng = np.random.default_rng(0)
  scenes = image_backend.ScenesBackend()
  for k in range(20):
    scene = world.sample_scene(rng)
    source, text = render.render(scene, k), language.sample_edit(rng, scene)
    edited = scenes.edit([source], [text], [k])[0]
    assert FAITHFUL(source, text, edited) is True
    assert FAITHFUL(source, text, source) is False
    caption = language.sample_caption(rng)
    drawn = scenes.generate([caption], [k], width=64, height=64)[0]
    assert FAITHFUL(None, caption, drawn) is True  # What is left open is left open.
    assert FAITHFUL(None, caption, source) is False


def test_a_text_that_nothing_can_show_is_neither():
  image = render.render(world.sample_scene(np.random.default_rng(0)), 0)
  assert FAITHFUL(image, "make it nice", image) is None
  assert FAITHFUL(None, "colourless green ideas", image) is None
