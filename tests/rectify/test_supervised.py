# SPDX-License-Identifier: Apache-2.0
"""Gradients and noise of a step: images shared or not, whole or in pieces; dropout by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import tree
from auditdm_jax.models import gemma, multimodal
from auditdm_jax.rectify import recipes, supervised
from tests.rectify import test_finetune


def _losses(model, batch, **method):
  config, params, _ = model
  loss = jax.jit(supervised.loss_and_grads, static_argnames=("config", "method"))
  return loss(config, params, batch, method=supervised.Method(**method), step=3)


@pytest.fixture(scope="module")
def model():
  return test_finetune.make_model()


@pytest.fixture(scope="module")
def batch(model):
  """Four rows about two pictures."""
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
  texts = model[2].rows([f"color of {x}" for x in "abcd"], ["red"] * 3 + [""])
  return supervised.Batch(images=pixels, image=np.array([0, 1, 1, 0], np.int32), **texts)


def test_pixels_are_alike_shared_or_of_each_row_and_in_pieces(model, batch):
  own = dataclasses.replace(batch, images=batch.images[batch.image], image=None)
  scaled = dataclasses.replace(own, images=own.images / np.float32(127.5) - 1)
  want = _losses(model, batch)
  assert np.abs(want[2]["img"]["embedding"]["kernel"]).max() > 0
  for other, rows in ((own, 0), (scaled, 0), (batch, 2), (own, 2)):
    got = _losses(model, other, micro_rows=rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-5, atol=1e-6), got, want)
    held = jax.jit(functools.partial(supervised.row_losses, model[0], micro_rows=rows))
    np.testing.assert_allclose(held(model[1], other), want[1], rtol=5e-5, atol=1e-6)


def test_layers_in_a_list_have_the_gradients_of_the_stack(model, batch):
  """Where some of their parameters are frozen too."""
  config, _, layout = model
  text = dataclasses.replace(config.text, depth=3, unroll=3)
  few = dataclasses.replace(config, text=text)
  params = jax.jit(multimodal.init, static_argnums=0)(few, jax.random.key(1))
  many = dataclasses.replace(few, text=dataclasses.replace(text, unroll=1))
  assert multimodal.lists_layers(few, params) and not multimodal.lists_layers(many, params)
  trains = lambda path: not path.endswith("q_einsum/w")  # noqa: E731
  want, got = (
    _losses((c, params, layout), batch, micro_rows=2, trains=trains) for c in (many, few)
  )
  assert np.abs(want[2]["llm"]["layers"]["mlp"]["linear"]).max() > 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-5, atol=1e-6), got, want)


def test_only_what_trains_has_gradients_and_moments(model, batch):
  recipe = recipes.Recipe(steps=1, batch_size=4, lr=1.0, parts=recipes.NO_TOWER)
  trains = lambda path: recipe.rate_of(path) is not None  # noqa: E731
  grads = jax.eval_shape(lambda: _losses(model, batch, trains=trains))[2]
  paths = set(tree.flatten(grads))
  assert {path for path in paths if path.startswith("img/")} == {"img/head/kernel", "img/head/bias"}
  assert any(path.startswith("llm/") for path in paths)


def test_dropout_drops_its_share_and_keeps_the_mean():
  config = gemma.GemmaConfig(
    vocab_size=4, width=8, depth=3, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8
  )
  method = supervised.Method(dropout=0.1, seed=1)
  noise = method.noise(config, 2, 0)
  assert noise is not None and noise.keys.shape == (3, 2)
  of_layer = dataclasses.replace(noise, keys=noise.keys[0])
  x = jnp.ones((100, 1000))
  attention, mlp = of_layer(x, 0), of_layer(x, 1)
  assert float((attention == 0).mean()) == pytest.approx(0.1, abs=0.005)
  assert float(attention.mean()) == pytest.approx(1.0, abs=0.005)
  assert float(((attention == 0) & (mlp == 0)).mean()) == pytest.approx(0.01, abs=0.003)
  assert supervised.Method().noise(config, 2, 0) is None


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
  config = test_finetune.make_model()[0].text

  def data(seed, step, micro):
    noise = supervised.Method(dropout=0.5, seed=seed).noise(config, step, micro)
    assert noise is not None
    return jax.random.key_data(noise.keys).tobytes()

  assert data(0, 1, 2) == data(0, 1, 2)
  assert len({data(0, 1, 2), data(1, 1, 2), data(0, 2, 2), data(0, 1, 3), data(0, 2, 1)}) == 5
