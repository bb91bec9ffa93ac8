# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp

from auditdm_jax.plan import work

SQUARE = 2.0 * 8**3


def count(function, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return work.flops(jax.make_jaxpr(function)(*args).jaxpr)


def test_loops_are_counted():
  def scanned(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

  def looped(x, w):
    return jax.lax.while_loop(
      lambda s: (s[0] < 7) & (s[1][0, 0] < 1e9), lambda s: (s[0] + 1, s[1] @ w), (0, x)
    )

  assert count(scanned, (8, 8), (8, 8)) == 5 * SQUARE
  assert count(jax.jit(looped), (8, 8), (8, 8)) == 7 * SQUARE


def test_what_is_computed_again_is_counted():
  def loss(x, w):
    block = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w) @ w))
    return block(x).sum()

  plain = count(jax.grad(loss), (8, 8), (8, 8))
  # Two products forward; again in the backward pass, of which the last is not needed; and x's two.
  assert 4 * SQUARE < plain <= 6 * SQUARE


def test_the_dearer_branch_counts():
  def f(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

  assert count(f, (8, 8), (8, 8)) == 2 * SQUARE
