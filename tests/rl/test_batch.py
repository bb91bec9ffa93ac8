# SPDX-License-Identifier: Apache-2.0
"""Rows of the learner."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.models import gemma, multimodal
from auditdm_jax.rl import batch as batch_lib
from tests.rl import tiny


def turn(prompt, tokens, truncated=False):
  return batch_lib.AuditorReply(
    kind="question",
    image_id="i",
    prompt=tuple(prompt),
    text="",
    tokens=np.array(tokens + [0] * (4 - len(tokens)), np.int32),
    logprobs=np.full(4, -1.0, np.float32),
    length=len(tokens),
    truncated=truncated,
  )


def pack(turns, rows=4, image=None, per_row=1):
  return batch_lib.pack_rows(
    turns,
    np.arange(len(turns)) + 1.0,
    image=image or [0] * len(turns),
    rows=rows,
    prompt_width=5,
    completion_width=4,
    per_row=per_row,
  )


A, B = [9, 8, 7], [9, 8, 7, 6, 5]


def test_plain_rows_hold_one_completion_each():
  rows = pack([turn(A, [5, 6]), turn(B, [4, 3, 2, 1])])
  np.testing.assert_array_equal(rows.prompt[:2], [[9, 8, 7, 0, 0], B])
  np.testing.assert_array_equal(rows.prompt_valid.sum(1), [3, 5, 3, 3])
  np.testing.assert_array_equal(rows.targets[:2, 0], [[5, 6, 0, 0], [4, 3, 2, 1]])
  np.testing.assert_array_equal(rows.loss_mask.sum(2), [[2], [4], [0], [0]])
  np.testing.assert_array_equal(rows.advantages[:, 0], [1, 2, 0, 0])


def test_turns_of_one_prompt_and_image_share_a_row():
  turns = [turn(A, [1]), turn(A, [2]), turn(A, [3]), turn(B, [4]), turn(B, [5])]
  rows = pack(turns, image=[0, 0, 0, 0, 1], per_row=2)
  np.testing.assert_array_equal(rows.targets[:, :, 0], [[1, 2], [3, 0], [4, 0], [5, 0]])
  np.testing.assert_array_equal(rows.loss_mask.sum(2), [[1, 1], [1, 0], [1, 0], [1, 0]])
  np.testing.assert_array_equal(rows.image, [0, 0, 0, 1])
  np.testing.assert_array_equal(rows.advantages, [[1, 2], [3, 0], [4, 0], [5, 0]])


def test_pad_equal_to_eos_keeps_the_terminator_in_the_loss():
  """Lengths come from the sampler: a completion that ends in id 0 keeps its last token."""
  rows = pack([turn([9, 8], [5, 0])])
  np.testing.assert_array_equal(rows.loss_mask[0, 0], [True, True, False, False])
  np.testing.assert_array_equal(rows.targets[0, 0], [5, 0, 0, 0])


def test_the_drawing_of_the_module():
  turns = [turn([9, 8, 7, 6], [1, 2, 3, 4]), turn([9, 8, 7, 6], [5, 6])]
  rows = pack(turns, rows=1, per_row=2)
  config = dataclasses.replace(tiny.config(), vision=None)
  seq = batch_lib.sequence(config, rows)
  branches = seq.pop("branches")
  seq = {name: np.asarray(x[0]) for name, x in seq.items()}
  np.testing.assert_array_equal(seq["tokens"], [9, 8, 7, 6, 0, 1, 2, 3, 5, 6, 0])
  np.testing.assert_array_equal(seq["valid"], [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0])
  assert branches == gemma.Branches(5, 2)
  positions = multimodal.positions_of(seq["valid"][None] > 0, branches)[0]
  np.testing.assert_array_equal(positions[seq["valid"] > 0], [0, 1, 2, 3, 4, 5, 6, 4, 5])
  mask = multimodal.make_attn_mask(seq["valid"][None] > 0, seq["ar"][None], branches)[0]
  np.testing.assert_array_equal(np.flatnonzero(mask[7]), [0, 1, 2, 3, 5, 6, 7])
  np.testing.assert_array_equal(np.flatnonzero(mask[9]), [0, 1, 2, 3, 5, 6])  # 8 and 9 of the row
  np.testing.assert_array_equal(np.flatnonzero(mask[3]), [0, 1, 2, 3])


def test_hidden_states_of_a_completion_are_one_before_its_tokens():
  rows = pack([turn(A, [5, 6]), turn(A, [4, 3, 2, 1])], rows=1, per_row=2)
  hidden = jnp.arange(5 + 2 * 3, dtype=jnp.float32).reshape(1, -1, 1)
  got = batch_lib.predicting(hidden, rows)[0, ..., 0]
  # The prompt ends at 2; the completions lie at 5, 6, 7 and 8, 9, 10.
  np.testing.assert_array_equal(got, [[2, 5, 6, 7], [2, 8, 9, 10]])


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="rows"):
    pack([turn([1], [2])] * 5)
  with pytest.raises(ValueError, match="rows of 2"):
    pack([turn([1], [2])] * 5, rows=2, per_row=2)
  with pytest.raises(ValueError, match="does not fit"):
    pack([turn([1] * 6, [2])])


def test_padded_to_the_devices_and_micro_batches():
  assert batch_lib.padded(5, devices=1) == 5
  assert batch_lib.padded(5, devices=8) == 8
  assert batch_lib.padded(5, devices=4, micro_rows=8) == 8  # one micro-batch, even shares
  assert batch_lib.padded(3, devices=4, micro_rows=8) == 4
  assert batch_lib.padded(9, devices=4, micro_rows=8) == 16
