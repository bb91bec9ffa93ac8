# SPDX-License-Identifier: Apache-2.0
"""Our side of test_grpo_step runs: whoever measures it finds no program that has moved on."""

import dataclasses

import pytest

from tests.perf import grpo_checkpoint, grpo_ours, grpo_sizes

TINY = dataclasses.replace(
  grpo_sizes.SIZES["scenes"], prompts=2, group=2, completion=3, width=16, depth=2, mlp=16,
  head_dim=4, image=32, image_tokens=4, vision_width=16, vision_depth=1,
)  # fmt: skip


@pytest.mark.parametrize("shared", [True, False])
def test_each_phase_of_our_side_is_measured(shared, tmp_path):
  grpo_checkpoint.make(tmp_path, TINY)
  found = grpo_ours.run(tmp_path, TINY, 2, shared=shared)
  assert found["gap"] < 1e-3  # Between the sampler's log-probs and the learner's.
  assert found["phases"].keys() == {*found["tokens"]}
  assert all(len(seconds) == 1 for seconds in found["phases"].values())
  assert found["gflop"].keys() == found["tokens"].keys() - {"judge"}
