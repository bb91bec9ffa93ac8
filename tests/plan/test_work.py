# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest

from auditdm_jax.plan import hlo, work

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


MODULE = """\
HloModule jit_f

%cond (p: (s32[], f32[16])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[16]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(34)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%fused (a: f32[34,16], b: s32[]) -> f32[16] {
  %a = f32[34,16]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,16]{1,0} dynamic-slice(%a, %b, %zero), dynamic_slice_sizes={1,16}
  ROOT %flat = f32[16]{0} bitcast(%slice)
}

%body (p.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.1 = (s32[]{:T(128)}, f32[16]{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = f32[16]{0} get-tuple-element(%p.1), index=1
  %stack = f32[34,16]{1,0} constant({...})
  %w = f32[16]{0} fusion(%stack, %i.1), kind=kLoop, calls=%fused
  %sum = f32[16]{0} all-reduce(%w), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%cond
  %piece = f32[16]{0} all-reduce(%w), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%cond
  %near = f32[16]{0:T(128)S(1)} add(%sum, %x)
  ROOT %t = (s32[], f32[16]{0}) tuple(%i.1, %near)
}

ENTRY %main (x.1: f32[4]) -> f32[16] {
  %x.1 = f32[4]{0} parameter(0)
  %all = bf16[16]{0} all-gather(%x.1), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %start = (s32[], f32[16]{0}) tuple(%x.1, %all)
  %loop = (s32[], f32[16]{0}) while(%start), condition=%cond, body=%body
  ROOT %out = f32[16]{0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_and_bytes_of_a_loop():
  traffic = hlo.Module(MODULE).traffic()
  assert traffic.collectives["all-gather"] == hlo.Collective(1, 1, 32, 24)
  # Written in two pieces, it is one; of 64 bytes each device of four sends twice three quarters.
  assert traffic.collectives["all-reduce"] == hlo.Collective(1, 34, 34 * 64, 34 * 96)
  assert traffic.wire == 24 + 34 * 96
  # Once the gather; in each turn the fusion reads and writes one slice of the stack and reads the
  # index, two all-reduces read and write, and the sum reads two and writes where it is free.
  assert traffic.memory == (16 + 32) + 34 * ((64 + 4 + 64) + 2 * 128 + 128)


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[8,128]{1,0:T(8,128)}", 4096),
    ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 0),
    ("(pred[3]{0}, s8[5], u32[]{:S(2)})", 8),
  ],
)
def test_size(text, size):
  assert hlo.size(text) == size
