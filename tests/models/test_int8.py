# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.models import int8
from tests.rl import tiny


def layers(params):
  return params["llm"]["layers"]


def test_a_weight_is_its_values_times_one_scale_per_result():
  params = tiny.params()
  made = layers(int8.quantize(params))
  for path, summed in {("attn", "q_einsum", "w"): (2,), ("mlp", "linear"): (1,)}.items():
    want, got = layers(params), made
    for key in path:
      want, got = want[key], got[key]
    assert got.values.dtype == jnp.int8
    # Half a step of 254 between the extremes, for each result by itself.
    error = np.abs(np.asarray(got.dense(jnp.float32)) - want).max(axis=summed)
    assert (error <= 0.502 * np.abs(want).max(axis=summed) / 127).all()
  sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (made, layers(params))]
  assert sizes[0] < 0.5 * sizes[1]


def test_a_quantised_model_computes_with_what_its_weights_stand_for():
  vlm = tiny.auditor()
  quantised = vlm.with_int8()

  def dense(x):
    return x.dense(jnp.float32) if int8.is_int8(x) else x

  same = jax.tree.map(dense, quantised.params, is_leaf=int8.is_int8)
  ids = np.random.default_rng(0).integers(10, 14, (2, 7))
  want = vlm.with_params(same).logits(None, ids)
  got = quantised.logits(None, ids)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - vlm.logits(None, ids)).max() > 1e-4
  images = [np.full((16, 16, 3), 90, np.uint8)]
  asked = ["what color is the circle ?"]
  again = dataclasses.replace(vlm, params=same).answer(images, asked, max_new_tokens=4)
  assert quantised.answer(images, asked, max_new_tokens=4) == again
