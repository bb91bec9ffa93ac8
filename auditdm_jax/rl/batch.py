# SPDX-License-Identifier: Apache-2.0
"""What travels between the rollout (host) and the learner (devices).

One learner row is one turn of one trajectory:

  tokens   [ image slots and prompt | completion, terminator included | padding ]
                                    ^ completion_start
  targets / loss_mask / logp_sampler are [N,C]: position c of row n is the token at
  completion_start[n] + c.

Axes: N rows, T tokens, C completion positions, U unique images, P patches, D vision width.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Turn:
  """One reply of the auditor."""

  kind: str  # question, caption or edit
  image_id: str  # the image the auditor looked at
  prompt: tuple[int, ...]  # token ids, image slots included
  text: str
  tokens: np.ndarray  # i32[C]; only the first `length` count
  logprobs: np.ndarray  # f32[C], of the sampling distribution
  length: int  # terminator included, from the sampler
  truncated: bool  # no terminator within the budget


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """One sample of one prompt: what was said, what was probed, what it earned."""

  prompt_id: int  # running number of the (image, strategy) draw; unique in a run
  sample: int  # g
  strategy: str
  source_image_id: str
  turns: tuple[Turn, ...] = ()
  fields: dict[str, str] = dataclasses.field(default_factory=dict)  # parsed texts by kind
  image_id: str = ""  # the probe's image
  image_seed: int = 0
  question: str = ""
  answers: dict[str, str] = dataclasses.field(default_factory=dict)
  verdict: Any = None  # whatever the verdict function returned, None when not asked
  malformed: str = ""  # the auditor's fault: reward 0, it counts
  invalid: str = ""  # nobody's fault: no reward, it does not count
  parts: dict[str, float] = dataclasses.field(default_factory=dict)  # reward terms
  reward: float = float("nan")
  weight: float = 1.0  # of the advantage: novelty


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnerBatch:
  """Device side of one GRPO step."""

  features: jax.Array  # f32[U,P,D] vision features, once per image
  image: jax.Array  # i32[N] row -> unique image
  tokens: jax.Array  # i32[N,T]
  valid: jax.Array  # bool[N,T]
  completion_start: jax.Array  # i32[N], at least 1
  targets: jax.Array  # i32[N,C]
  loss_mask: jax.Array  # bool[N,C]; all False in padding rows
  advantages: jax.Array  # f32[N]
  logp_sampler: jax.Array  # f32[N,C]


def pack(
  turns: Sequence[Turn],
  advantages: Sequence[float],
  *,
  features: np.ndarray,
  image: Sequence[int],
  rows: int,
  prompt_width: int,
  completion_width: int,
) -> LearnerBatch:
  """Lays turns out as plain rows of static shape.

  Args:
    turns: at most `rows` of them.
    advantages: one per turn, that of its trajectory.
    features: f32[U,P,D].
    image: index into features of each turn.
    rows: N; what is missing becomes rows without loss.
    prompt_width: the longest prompt.
    completion_width: C.

  Returns:
    A LearnerBatch of numpy arrays, T = prompt_width + completion_width.

  Raises:
    ValueError: if something does not fit.
  """
  n, width = rows, prompt_width + completion_width
  if len(turns) > n:
    raise ValueError(f"{len(turns)} turns do not fit into {n} rows")
  tokens = np.zeros((n, width), np.int32)
  valid = np.zeros((n, width), bool)
  start = np.ones((n,), np.int32)
  targets = np.zeros((n, completion_width), np.int32)
  loss_mask = np.zeros((n, completion_width), bool)
  logp = np.zeros((n, completion_width), np.float32)
  row_adv = np.zeros((n,), np.float32)
  row_image = np.zeros((n,), np.int32)
  for r, turn in enumerate(turns):
    p, c = len(turn.prompt), turn.length
    if p > prompt_width or c > completion_width:
      raise ValueError(
        f"turn of {p} prompt and {c} completion tokens does not fit into "
        f"{prompt_width} + {completion_width}"
      )
    tokens[r, :p] = turn.prompt
    tokens[r, p : p + c] = turn.tokens[:c]
    valid[r, : p + c] = True
    start[r] = p
    targets[r, :c] = turn.tokens[:c]
    loss_mask[r, :c] = True
    logp[r, :c] = turn.logprobs[:c]
  row_adv[: len(turns)] = advantages
  row_image[: len(turns)] = image
  if len(turns) < n and turns:
    # Padding rows repeat the first prompt: image slots stay where the model expects them.
    p = len(turns[0].prompt)
    tokens[len(turns) :, :p] = turns[0].prompt
    valid[len(turns) :, :p] = True
    start[len(turns) :] = p
  return LearnerBatch(
    features=features,
    image=row_image,
    tokens=tokens,
    valid=valid,
    completion_start=start,
    targets=targets,
    loss_mask=loss_mask,
    advantages=row_adv,
    logp_sampler=logp,
  )


def gather_completion(hidden: jax.Array, batch: LearnerBatch) -> jax.Array:
  """Hidden states that predict the completion: f32[N,T,D] -> f32[N,C,D], before the head."""
  offset = jnp.arange(batch.targets.shape[1])[None, :]
  index = jnp.minimum(batch.completion_start[:, None] - 1 + offset, hidden.shape[1] - 1)
  return jnp.take_along_axis(hidden, index[:, :, None], axis=1)
