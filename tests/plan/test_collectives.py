# SPDX-License-Identifier: Apache-2.0
"""Lines of compiled programs, as the compilers of TPUs, GPUs and CPUs write them."""

import pytest

from auditdm_jax.plan import collectives, hlo

SUM = "to_apply=%add.clone"
ALL_OF_8 = "replica_groups={{0,1,2,3,4,5,6,7}}"


def instruction(text):
  module = hlo.Module(f"ENTRY %main () -> f32[] {{\n  {text}\n}}")
  (found,) = module.computations["main"].values()
  return found


# kind, payload, sent
LINES = {
  # v5e:4x4, the answers: the third and fourth of the result are words of its state.
  "%collective-permute-start = (f32[8,1,257152]{2,1,0:T(1,128)}, f32[8,1,257152]{2,1,0:T(1,128)},"
  " u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%reshape.1), channel_id=20,"
  " source_target_pairs={{0,0},{4,1},{8,2},{12,3}}": (
    "collective-permute",
    8 * 257152 * 4,
    8 * 257152 * 4,
  ),
  # v6e:2x4, the halo of a padded reduce-scatter: the last chip sends nothing, the others do.
  "%collective-permute-start.1 = (bf16[10240,112]{0,1:T(8,128)(2,1)S(1)}, bf16[10240,112]{0,1},"
  " u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%slice.534), channel_id=1,"
  " source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7}}": (
    "collective-permute",
    10240 * 112 * 2,
    10240 * 112 * 2,
  ),
  # Of GPUs: operands and results, each perhaps a tuple.
  f"%ag = (bf16[16,8]{{1,0}}, bf16[128,8]{{1,0}}) all-gather-start(%x), {ALL_OF_8}": (
    "all-gather",
    2048,
    1792,
  ),
  "%ag = ((bf16[16,8]{1,0}, f32[2]{0}), (bf16[128,8]{1,0}, f32[16]{0})) all-gather-start(%x, %y),"
  f" {ALL_OF_8}": ("all-gather", 2048 + 64, 1792 + 56),
  f"%ar = f32[16]{{0}} all-reduce-start(%x), {ALL_OF_8}, {SUM}": ("all-reduce", 64, 112),
  # A tuple is several all-reduces in one.
  "%all-reduce.153 = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)S(1)}) all-reduce(%a, %b),"
  f" channel_id=43, replica_groups=mesh['axis_0'=1,'axis_1'=8] {{'axis_1'}}, {SUM}": (
    "all-reduce",
    8192,
    14336,
  ),
  # One shard is the result.
  f"%rs = bf16[4,1144,2560]{{2,1,0}} reduce-scatter(%x), channel_id=1, {ALL_OF_8}, {SUM}": (
    "reduce-scatter",
    4 * 1144 * 2560 * 2,
    7 * 4 * 1144 * 2560 * 2,
  ),
  # As an array, and as a tuple with one element per chip.
  "%all-to-all.6 = f32[16,2,1,16072]{3,1,0,2:T(2,128)} all-to-all(%x), replica_groups="
  "mesh['axis_0'=16,'axis_1'=1], device_ids=([4,4]T(1,0)) {'axis_0'}, dimensions={0}": (
    "all-to-all",
    16 * 2 * 16072 * 4,
    15 * 2 * 16072 * 4,
  ),
  "%a2a = (f32[4]{0}, f32[4]{0}) all-to-all(%x, %y), replica_groups={{0,1},{2,3}}": (
    "all-to-all",
    32,
    16,
  ),
  "%r = f32[64]{0} ragged-all-to-all(%x, %out, %o, %s, %p, %q), replica_groups={{0,1,2,3}}": (
    "ragged-all-to-all",
    256,
    192,
  ),
  "%cb = f32[64]{0} collective-broadcast(%x), replica_groups={{0,1,2,3}}": (
    "collective-broadcast",
    256,
    256,
  ),
  "%s = (f32[64]{0}, u32[], token[]) send(%x, %token), channel_id=3": ("send", 256, 256),
}


@pytest.mark.parametrize(("line", "want"), LINES.items(), ids=[v[0] for v in LINES.values()])
def test_what_a_line_sends(line, want):
  kind, found = collectives.book(instruction(line), times=3, devices=8)
  assert (kind, found) == (
    want[0],
    collectives.Collective(1, 3, 3 * want[1], 3 * want[2]),
  )


@pytest.mark.parametrize(
  "line",
  [
    f"%one = f32[16]{{0}} all-reduce(%x), replica_groups={{{{0}},{{1}}}}, {SUM}",
    f"%one = f32[16]{{0}} all-reduce(%x), replica_groups=[8,1]<=[8], {SUM}",
    "%self = f32[16]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}",
    "%none = f32[16]{0} collective-permute(%x), source_target_pairs={}",
  ],
)
def test_what_stays_on_its_chip(line):
  assert collectives.book(instruction(line), times=1, devices=8) is None


def test_what_goes_to_the_host_or_was_sent_by_another():
  host = "%s = (f32[64]{0}, u32[], token[]) send(%x, %t), channel_id=3, is_host_transfer=true"
  assert not collectives.kind_of(instruction(host))
  assert not collectives.kind_of(instruction("%r = (f32[64]{0}, u32[], token[]) recv(%t)"))
  assert not collectives.kind_of(instruction("%d = f32[64]{0} all-gather-done(%start)"))


@pytest.mark.parametrize(
  ("groups", "n"),
  [
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}", 4),
    ("replica_groups=mesh['a'=1,'b'=4,'c'=16], device_ids=([16,4]T(1,0)) {'b','c'}, x={0}", 64),
    ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4,'b'}", 8),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
    ("replica_groups={{0,4,8,12},{1,5,9,13}}", 4),
    ("replica_groups={{0},{1,2,3}}", 3),
    ("replica_groups={}, to_apply=%add", 8),
    ("channel_id=1", 8),
  ],
)
def test_how_many_take_part(groups, n):
  assert collectives.group(groups, 8) == n


SCATTER = """\
%all-reduce-scatter.2 (input.14: bf16[10240,2560]) -> bf16[10240,336] {
  %input.14 = bf16[10240,2560]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  %constant.3692 = bf16[] constant(0)
  %pad.570 = bf16[10240,2688]{0,1:T(8,128)(2,1)} pad(%input.14, %constant.3692), padding=0_0x0_128
  %all-reduce.138 = bf16[10240,2688]{0,1} all-reduce(%pad.570), channel_id=32, GROUPS
  %constant.3693 = u32[] constant(0)
  %multiply.832 = u32[]{:T(128)} multiply(%constant.3693, %constant.3693)
  ROOT %dynamic-slice.482 = bf16[10240,336]{0,1:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.138,\
 %constant.3693, %multiply.832), dynamic_slice_sizes={10240,336}
}
"""
OF_TWO = """\
%all-reduce-scatter.8 (input_0: bf16[1152,2560], input_1: bf16[1152,2560]) -> () {
  %input_0 = bf16[1152,2560]{1,0} parameter(0)
  %input_1 = bf16[1152,2560]{1,0} parameter(1)
  %all-reduce.115 = (bf16[1152,2560], bf16[1152,2560]) all-reduce(%input_0, %input_1), GROUPS
  %a = bf16[1152,2560]{1,0} get-tuple-element(%all-reduce.115), index=0
  %first = bf16[144,2560]{1,0} dynamic-slice(%a, %i, %j), dynamic_slice_sizes={144,2560}
  %b = bf16[1152,2560]{1,0} get-tuple-element(%all-reduce.115), index=1
  %second = bf16[144,2560]{1,0} dynamic-slice(%b, %i, %j), dynamic_slice_sizes={144,2560}
  ROOT %t = (bf16[144,2560], bf16[144,2560]) tuple(%first, %second)
}
"""


def scatter(text, groups=ALL_OF_8):
  module = hlo.Module(text.replace("GROUPS", groups))
  (fusion,) = module.computations.values()
  return collectives.fused_scatter(fusion, times=34, devices=8)


def test_a_fused_reduce_scatter_is_not_an_all_reduce():
  shard = 10240 * 336 * 2
  assert scatter(SCATTER) == collectives.Collective(1, 34, 34 * shard, 34 * 7 * shard)
  shards = 2 * 144 * 2560 * 2
  assert scatter(OF_TWO) == collectives.Collective(1, 34, 34 * shards, 34 * 7 * shards)


def test_an_all_reduce_that_is_more_than_a_scatter():
  # A shard is the eighth part, but only four took part.
  assert scatter(SCATTER, "replica_groups={{0,1,2,3},{4,5,6,7}}") is None
  # The whole is used as well.
  used = SCATTER.replace("multiply(%constant.3693,", "reduce(%all-reduce.138,")
  assert scatter(used) is None
  # The same part on all chips is no scatter.
  assert (
    scatter(SCATTER.replace("%dynamic-slice.482", "%s").replace("dynamic-slice(", "slice(")) is None
  )
