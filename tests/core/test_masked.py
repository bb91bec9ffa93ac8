# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import masked

X = np.array([[1.0, 2.0, np.nan, 4.0], [5.0, np.inf, np.nan, 8.0]], np.float32)
MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0]], bool)


@pytest.fixture(params=[np, jnp])
def xp(request):
  return request.param


def test_against_the_selected_values(xp):
  x, mask = xp.asarray(X), xp.asarray(MASK)
  kept = X[MASK]
  total, count = masked.sum_count(x, mask)
  assert (float(total), float(count)) == (kept.sum(), 4)
  np.testing.assert_allclose(masked.mean(x, mask), kept.mean())
  np.testing.assert_allclose(masked.std(x, mask), kept.std(), rtol=1e-6)
  np.testing.assert_allclose(masked.std(x, mask, ddof=1), kept.std(ddof=1), rtol=1e-6)
  rows = [X[i][MASK[i]] for i in range(2)]
  np.testing.assert_allclose(masked.mean(x, mask, axis=1), [r.mean() for r in rows])
  np.testing.assert_allclose(masked.std(x, mask, axis=1), [r.std() for r in rows], rtol=1e-6)
  # One element has no sample deviation.
  np.testing.assert_allclose(masked.std(x, mask, axis=1, ddof=1), [rows[0].std(ddof=1), 0])
  assert isinstance(masked.mean(x, mask), jax.Array) == (xp is jnp)


def test_nothing_selected(xp):
  x, mask = xp.asarray(X), xp.zeros((2, 4), bool)
  assert float(masked.mean(x, mask)) == 0
  assert np.isnan(masked.mean(x, mask, empty=np.nan))
  assert float(masked.std(x, mask, ddof=1)) == 0


def test_mask_broadcasts(xp):
  x = xp.arange(6.0).reshape(2, 3)
  assert float(masked.mean(x, xp.asarray([[True], [False]]))) == 1.0


def test_half_precision_is_summed_in_float32(xp):
  x = xp.ones(4096, jnp.bfloat16)
  total, count = masked.sum_count(x, xp.ones(4096, bool))
  assert total.dtype == count.dtype == np.float32
  assert float(total) == float(count) == 4096


def test_gradient_is_finite_where_nothing_is_selected():
  grad = jax.grad(lambda x: masked.mean(x, jnp.zeros(3, bool)))(jnp.ones(3))
  np.testing.assert_array_equal(grad, np.zeros(3))


def test_weights_are_not_a_mask(xp):
  with pytest.raises(TypeError, match="must be bool"):
    masked.mean(xp.ones(3), xp.ones(3))
