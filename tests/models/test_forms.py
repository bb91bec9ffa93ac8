# SPDX-License-Identifier: Apache-2.0
"""Products with matrices that lie otherwise, and layers that go back to where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.models import forms
from tests import drawn
from tests.models.test_multimodal import GEMMA3


@pytest.mark.parametrize("rows", [(3, 2), (64, 3)], ids=["few", "many"])
def test_results_first_is_the_product_with_the_transpose(rows):
  x, w = (
    jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(*rows, 7), (5, 7)])
  )
  np.testing.assert_allclose(forms.results_first(x, w), x @ w.T, atol=1e-5)


def test_a_dense_product_has_the_gradients_of_any_other():
  x, w = (
    jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 2, 7), (7, 5)])
  )

  def grads(product):
    return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w))), argnums=(0, 1)))(x, w)

  np.testing.assert_allclose(forms.dense(x, w), x @ w, atol=1e-6)
  for got, want in zip(grads(forms.dense), grads(jnp.matmul), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_listed_layers_are_stacked_as_they_were():
  layers = drawn.params(GEMMA3)["llm"]["layers"]
  listed = forms.list_layers(layers)
  assert listed["blocks_1"]["attn"]["q_einsum"]["w"].shape == (12, 4, 6)
  kv = layers["attn"]["kv_einsum"]["w"][1, 0, 1]
  np.testing.assert_array_equal(listed["blocks_1"]["attn"]["kv_einsum"]["w"][:, 0, 1], kv)
  jax.tree.map(np.testing.assert_array_equal, forms.stack_layers(listed), layers)
