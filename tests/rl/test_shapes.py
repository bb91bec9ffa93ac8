# SPDX-License-Identifier: Apache-2.0
import functools

import numpy as np
import pytest

from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import draws, shapes, step
from tests.rl import fakes, tiny

PROMPTS = {"question": 12, "edit": 2, "generate": 1, "edit-only": 1}


def parts_of(lengths, *, padded=lambda rows: rows, group=8, per_row=8):
  config = draws.RolloutConfig(prompts=PROMPTS, max_new_tokens=lengths, task={}, seed=0)
  calls = shapes.calls_of(config, group, length=lambda text: 21, per_row=per_row, padded=padded)
  return calls.parts


def tokens(parts):
  return sum(p.rows * (p.prompt + p.per_row * (p.completion - 1)) for p in parts)


def test_short_replies_are_not_padded_to_the_longest():
  first, other, second = parts_of({"question": 11, "instruction": 14, "caption": 24})
  assert (first.kinds, first.rows, first.completion) == (("question",), 12, 11)
  # A part of its own would save instructions an eighth of all tokens.
  assert (other.kinds, other.rows, other.completion) == (("instruction", "caption"), 4, 24)
  assert (second.turn, second.kinds, second.rows, second.per_row) == (1, ("question",), 24, 1)


def test_a_part_more_saves_a_fifth_of_the_tokens():
  alike, _ = parts_of({"question": 64, "instruction": 64, "caption": 72})
  assert set(alike.kinds) == {"question", "instruction", "caption"} and alike.rows == 16
  lengths = {"question": 4, "instruction": 30, "caption": 200}
  three = [p for p in parts_of(lengths) if p.turn == 0]
  assert [p.kinds for p in three] == [("question",), ("instruction",), ("caption",)]
  longest = dict.fromkeys(lengths, 200)
  assert tokens(three) < 0.2 * tokens([p for p in parts_of(longest) if p.turn == 0])


def test_kinds_stay_together_where_devices_would_pad_each():
  padded = functools.partial(batch_lib.padded, devices=16)
  lengths = {"question": 64, "instruction": 64, "caption": 96}
  first, _ = parts_of(lengths, padded=padded)
  assert len(first.kinds) == 3 and first.rows == 16


@pytest.mark.parametrize("per_row", [1, 4])
def test_a_reply_is_learned_from_once_in_the_part_of_its_kind(per_row):
  """In rows of the planned shape, whatever was said."""
  lengths = {"question": 3, "caption": 40, "instruction": 12}
  made = fakes.rollout(per_row=per_row, max_new_tokens=lengths)
  planned = made._packer._calls.parts
  assert len([part for part in planned if part.turn == 0]) > 1
  result = made.step(tiny.auditor().params, 0)
  turns = [r["turns"] for r in result.records if not r["invalid"]]
  for part, rows in zip(planned, result.batch.parts, strict=True):
    assert rows.targets.shape == (part.rows, part.per_row, part.completion)
    said = [t[part.turn] for t in turns if len(t) > part.turn]
    want = sorted((t["length"], t["logprob"]) for t in said if t["kind"] in part.kinds)
    learned = rows.loss_mask.any(axis=2)
    sums = rows.loss_mask[learned].sum(axis=1), rows.logp_sampler[learned].sum(axis=1)
    np.testing.assert_allclose(sorted(zip(*sums, strict=True)), want, rtol=1e-4)


@pytest.mark.parametrize(
  ("prompts", "devices", "want"), [(32, 16, 8), (32, 32, 8), (32, 64, 4), (32, 256, 1), (1, 64, 1)]
)
def test_completions_share_rows_as_long_as_each_device_has_one(prompts, devices, want):
  assert step.OptimConfig().per_row(8, prompts=prompts, devices=devices) == want
  assert step.OptimConfig(shared_prefix=False).per_row(8, prompts=prompts, devices=devices) == 1


def test_rows_of_half_a_group_are_learned_whole():
  """Each reply once, two of a row at most, of groups of four."""
  made = fakes.rollout({"question": 3}, per_row=2)
  (part,) = made._packer._calls.parts
  assert (part.rows, part.per_row) == (6, 2)
  (rows,) = made.step(tiny.auditor().params, 0).batch.parts
  assert rows.loss_mask.any(axis=2).sum() == 12
