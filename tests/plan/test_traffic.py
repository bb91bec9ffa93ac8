# SPDX-License-Identifier: Apache-2.0
"""Programs as a whole: loops, pieces, memory, and totals against counts by hand.

The files of `hlo/` are compiled programs of `configs/paligemma2.py` (jax 0.10.2, libtpu 0.0.42.1;
of GPUs jax-cuda12-pjrt 0.10.2) when a mesh of training split rows only and each part of a batch had
a pass of its own, reduced to what moves over the links: other instructions, layouts and metadata
are left out.
"""

import pathlib

import pytest

from auditdm_jax.plan import hlo, traffic
from auditdm_jax.plan.collectives import Collective

FILES = pathlib.Path(__file__).with_name("hlo")


def read(name):
  return traffic.read((FILES / f"{name}.txt").read_text())


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
  %other = f32[16]{0} all-reduce(%w), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%cond
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
  found = traffic.read(MODULE)
  assert found.collectives["all-gather"] == Collective(1, 1, 32, 24)
  # Two, though on one channel; of 64 bytes each device of four sends twice three quarters.
  assert found.collectives["all-reduce"] == Collective(2, 68, 68 * 64, 68 * 96)
  assert found.wire == 24 + 68 * 96
  # Once the gather; in each turn the fusion reads and writes one slice of the stack and reads the
  # index, two all-reduces read and write, and the sum reads two and writes where it is free. The
  # condition reads two words and writes one byte, once more than there are turns.
  loop = 34 * ((64 + 4 + 64) + 2 * 128 + 128) + 35 * 9
  assert found.memory == (16 + 32) + loop


def test_the_compiler_may_say_how_often_a_loop_runs():
  said = ', backend_config={"known_trip_count":{"n":"5"}}'
  found = traffic.read(MODULE.replace("body=%body", f"body=%body{said}"))
  assert found.collectives["all-reduce"].runs == 2 * 5


CONDITIONAL = """\
HloModule jit_f, num_partitions=4

%small (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  ROOT %sum = f32[16]{0} all-reduce(%p), channel_id=1, replica_groups={}, to_apply=%add
}

%large (q: f32[16]) -> f32[16] {
  %q = f32[16]{0} parameter(0)
  %all = f32[64]{0} all-gather(%q), channel_id=2, replica_groups={}, dimensions={0}
  ROOT %part = f32[16]{0} slice(%all), slice={[0:16]}
}

ENTRY %main (i: s32[], x: f32[16]) -> f32[16] {
  %i = s32[] parameter(0)
  %x = f32[16]{0} parameter(1)
  ROOT %out = f32[16]{0} conditional(%i, %x, %x), branch_computations={%small, %large}
}
"""


def test_one_branch_runs():
  found = traffic.read(CONDITIONAL)
  # 192 of 256 bytes gathered, against twice 48 of 64 bytes summed.
  assert found.collectives == {"all-gather": Collective(1, 1, 256, 192)}
  assert found.memory == 64 + 256 + 64 + 64


def test_pieces_of_a_collective_are_one():
  # An all-gather in three fusions, with the loop that it overlaps with between start and end.
  found = read("pieces_v5e_8x8")
  shard = 1076 * 72 * 2
  assert found.collectives == {"all-gather": Collective(1, 1, 64 * shard, 63 * shard)}
  # It reads a shard and writes the whole, once; in each of 16 turns 32 bytes are read and written.
  # The end, which only hands the whole on, reads the shard where it lies: not more than that.
  assert found.memory == pytest.approx(65 * shard + 16 * 64, abs=shard)


def test_what_does_not_belong_to_a_chain_is_its_own():
  text = (FILES / "pieces_v5e_8x8.txt").read_text()
  before, last, after = text.rpartition('chain_id="0"')
  found = traffic.read(before + last.replace("0", "1") + after)
  assert found.collectives["all-gather"].sites == 2


def test_a_copy_between_memories_is_read_once():
  text = """\
ENTRY %main (x: f32[64]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  %copy-start = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%x)
  %part = f32[16]{0:S(1)} slice(%x), slice={[0:16]}
  ROOT %copy-done = f32[64]{0:S(1)} copy-done(%copy-start)
}
"""
  assert traffic.read(text).memory == 256 + 64


def test_of_a_stack_a_layer_is_read():
  """Though all of it gets another layout first (int8 weights), and the layer lies in the core."""
  text = """\
%relabel (p: s8[42,64]) -> s8[42,64] {
  %p = s8[42,64]{1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy.1 = s8[42,64]{1,0:T(8,128)(4,1)} copy(%p)
}

%layer (a: s8[42,64], b: s32[]) -> s8[1,64] {
  %a = s8[42,64]{1,0:T(32,128)(4,1)} parameter(0)
  %fusion.420 = s8[42,64]{1,0:T(8,128)(4,1)} fusion(%a), kind=kLoop, calls=%relabel
  %b = s32[]{:S(6)} parameter(1)
  ROOT %slice = s8[1,64]{1,0:T(8,128)S(1)} dynamic-slice(%fusion.420, %b, %b)
}

ENTRY %main (x: s8[42,64], i: s32[]) -> s8[1,64] {
  %x = s8[42,64]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %w = s8[1,64]{1,0:S(1)} fusion(%x, %i), kind=kLoop, calls=%layer
  ROOT %all = s8[42,64]{1,0} fusion(%x), kind=kLoop, calls=%relabel
}
"""
  assert traffic.read(text).memory == 64 + 2 * 42 * 64


def test_an_update_in_place_is_read_and_written():
  text = """\
ENTRY %main (x: f32[42,16], i: s32[]) -> f32[42,16] {
  %x = f32[42,16]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %near = f32[1,16]{1,0:S(1)} slice(%x), slice={[0:1], [0:16]}
  ROOT %new = f32[42,16]{1,0} dynamic-update-slice(%x, %near, %i, %i)
}
"""
  assert traffic.read(text).memory == 64 + 64


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[8,128]{1,0:T(8,128)}", 4096),
    ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 0),
    ("(pred[3]{0}, s8[5], u32[]{:S(2)})", 8),
    ("(f8e4m3fn[16]{0}, s4[16], u16[4], c64[2], token[])", 16 + 8 + 8 + 16),
  ],
)
def test_size(text, size):
  assert hlo.size(text) == size


# Bytes of the matrices of a layer in bf16: of Gemma 3 4B (width 2560, 8 heads and 4 of keys and
# values of 256, hidden 10240), and of PaliGemma 2 10B (3584, 16 and 8 of 256, 14336).
QUERY, KEY_VALUE, OUT = 2560 * 8 * 256 * 2, 2 * 2560 * 4 * 256 * 2, 8 * 256 * 2560 * 2
GATE_UP, DOWN = 2 * 2560 * 10240 * 2, 10240 * 2560 * 2
LAYER = QUERY + KEY_VALUE + OUT + GATE_UP + DOWN
# What the decoder is shown in a step: 20 prompts x 8 completions and 12 x 8 in rows of two lengths.
TOKENS = (32 * 1144 + 64 * 551) * 2560 * 2
# Soft tokens of the images, states before the head, and patches, gathered by all.
SHOWN = (32 * 8 * 96 * 2560 + 64 * 64 * 2560 + 96 * 256 * 1152) * 2
# The head's backward sums the gradient of 1024 states, over 24 and 4 pieces of the completions.
HEAD = (24 + 4) * 1024 * 2560 * 2
# From the tower to the decoder, in fp32.
PROJECTOR = 1152 * 2560 * 4


def gathered(size, n):
  return size * (n - 1) / n


def reduced(size, n):
  return 2 * size * (n - 1) / n


def train(n, gradients, tokens_forward):
  """By hand: each of two kinds of rows gathers a layer forward, and again backward (remat)."""
  weights = 2 * 2 * 34 * gathered(LAYER, n)
  backward = 2 * 34 * gradients
  tokens = tokens_forward + gathered(TOKENS, n)  # The lookup, and its gradient.
  return weights + backward + tokens + gathered(SHOWN, n) + reduced(HEAD, n)


def encode_64():
  """By hand: 27 layers of SigLIP (width 1152, hidden 4304), split over 64 chips by 72 columns.

  Most matrices are put together by a sum of what has zeros elsewhere: twice the bytes of a gather.
  """
  attention, hidden = 64 * 72 * 288 * 2, 64 * 72 * 1076 * 2
  patches = 4096 * 1152 * 2
  layer = reduced(4 * attention + hidden, 64) + gathered(hidden, 64)
  return 27 * layer + gathered(patches, 16)


def answer_4():
  """By hand: PaliGemma 2 10B, 42 layers; 4 x 4 chips gather weights over 4, sum heads over 4.

  The prefill and each of 16 tokens gather a quarter of all weights: the other axis splits them.
  """
  attention = (
    3 * 3584 * 4 * 256 * 2
  )  # Queries 4 heads of 16, keys and values 2 of 8, and the output.
  layer = attention + (2 * 3584 * 3584 + 3584 * 3584) * 2
  weights = 17 * 42 * gathered(layer, 4)
  rows = 8 * 1152 * 3584 * 2  # Of a chip: 32 questions over 4.
  prefill = 42 * 2 * reduced(rows, 4) + rows * 3 + reduced(rows, 4)
  decode = 16 * 42 * 2 * reduced(8 * 3584 * 2, 4)
  scores = (
    17 * (2 * 257152 * 4) * (1 + 15 / 16)
  )  # From vocabulary to rows: permuted, and exchanged.
  return weights + prefill + decode + scores


# Where the compiler scatters gradients: output, gate and up, down in shards of 336 for 320 columns
# with a halo of 112 from the neighbour; queries and keys are summed whole.
SCATTERED = (
  gathered(OUT + GATE_UP, 8) + 7 * 10240 * 336 * 2 + 10240 * 112 * 2 + reduced(QUERY + KEY_VALUE, 8)
)
PROGRAMS = {
  "train_v6e_2x4": train(8, SCATTERED, gathered(TOKENS, 8)),
  # Square slices sum gradients whole, and what `psum_scatter` should have scattered.
  "train_v5e_4x4": train(16, reduced(LAYER, 16), reduced(TOKENS, 16)),
  "train_v5p_2x2x2": train(8, reduced(LAYER, 8), reduced(TOKENS, 8)),
  # GPUs scatter all gradients, and sum the head's in fp32.
  "train_h100x8": train(8, gathered(LAYER, 8), gathered(TOKENS, 8))
  + reduced(HEAD, 8)
  + 2 * gathered(PROJECTOR, 8),
  "encode_v5e_8x8": encode_64(),
  "answer_v6e_4x4": answer_4(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_total_is_that_of_a_count_by_hand(name):
  found = read(name)
  # By hand are what moves megabytes; norms, sums of losses and indices are below a part in 500.
  assert PROGRAMS[name] < found.wire < 1.002 * PROGRAMS[name]


def test_kinds_of_a_train_step():
  kinds = read("train_v6e_2x4").collectives
  assert kinds["collective-permute"].runs == 2 * 34
  assert kinds["reduce-scatter"].runs == 2 * 3 * 34 + 2 + 1
  assert "reduce-scatter" not in read("train_v5e_4x4").collectives
