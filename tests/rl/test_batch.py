# SPDX-License-Identifier: Apache-2.0
"""Rows of the learner."""

import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.rl import batch as batch_lib


def turn(prompt, tokens, truncated=False):
  return batch_lib.Turn(
    kind="question",
    image_id="i",
    prompt=tuple(prompt),
    text="",
    tokens=np.array(tokens + [0] * (4 - len(tokens)), np.int32),
    logprobs=np.full(4, -1.0, np.float32),
    length=len(tokens),
    truncated=truncated,
  )


def pack(turns, rows=4):
  return batch_lib.pack(
    turns,
    [1.0] * len(turns),
    features=np.zeros((1, 2, 3), np.float32),
    image=[0] * len(turns),
    rows=rows,
    prompt_width=5,
    completion_width=4,
  )


def test_completions_follow_their_prompts_directly():
  b = pack([turn([9, 8, 7], [5, 6]), turn([9, 8, 7, 6, 5], [4, 3, 2, 1])])
  np.testing.assert_array_equal(b.tokens[0], [9, 8, 7, 5, 6, 0, 0, 0, 0])
  np.testing.assert_array_equal(b.valid.sum(1), [5, 9, 3, 3])
  np.testing.assert_array_equal(b.loss_mask.sum(1), [2, 4, 0, 0])
  np.testing.assert_array_equal(b.completion_start, [3, 5, 3, 3])


def test_pad_equal_to_eos_keeps_the_terminator_in_the_loss():
  """Lengths come from the sampler: a completion that ends in id 0 keeps its last token."""
  b = pack([turn([9, 8], [5, 0])])
  np.testing.assert_array_equal(b.loss_mask[0], [True, True, False, False])
  np.testing.assert_array_equal(b.targets[0], [5, 0, 0, 0])


def test_hidden_states_of_the_completion_are_one_before_its_tokens():
  b = pack([turn([9, 8, 7], [5, 6]), turn([9, 8, 7, 6, 5], [4, 3, 2, 1])])
  hidden = jnp.arange(4 * 9, dtype=jnp.float32).reshape(4, 9, 1)
  got = batch_lib.gather_completion(hidden, b)[..., 0]
  np.testing.assert_array_equal(got[0, :2], [2, 3])
  np.testing.assert_array_equal(got[1], [9 + 4, 9 + 5, 9 + 6, 9 + 7])


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="rows"):
    pack([turn([1], [2])] * 5)
  with pytest.raises(ValueError, match="does not fit"):
    pack([turn([1] * 6, [2])])
