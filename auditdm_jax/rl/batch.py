# SPDX-License-Identifier: Apache-2.0
"""What travels between the rollout (host) and the learner (devices).

A learner row is a prompt about one image and the G completions that share it. Completion i sees the
prompt and itself only, and its positions go on where the prompt's end:

  tokens     p p p p . | a a a . | b b b b      p prompt, image slots included; . padding
  branch     . . . . . | 1 1 1 1 | 2 2 2 2      see `models.gemma.Branches`
  position   0 1 2 3 . | 4 5 6 . | 4 5 6 7      . is never looked at
                       |<- C-1 ->|<- C-1 ->     the last token of a completion predicts nothing

G = 1 makes plain rows. Rows of one shape make a part; a batch has as many parts as it has shapes:
first turns share their prompts, second turns each have an image of their own.

Axes: B rows, S prompt, G completions of a row, C completion positions, T = S + G (C - 1) tokens;
the others as in `models`.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.audit.probe import Verdict
from auditdm_jax.models import gemma, multimodal


@dataclasses.dataclass(frozen=True)
class AuditorReply:
  """One reply of the auditor."""

  kind: str  # question, caption or instruction
  image_id: str  # the image the auditor looked at
  prompt: tuple[int, ...]  # token ids, image slots included
  text: str
  tokens: np.ndarray  # i32[C]; only the first `length` count
  logprobs: np.ndarray  # f32[C], of the sampling distribution
  length: int  # terminator included, from the sampler
  truncated: bool  # no terminator within the budget


@dataclasses.dataclass(frozen=True)
class Pick:
  """How a sample came to be asked, where not all are: see `rl.picking`."""

  text: str | None  # what the surrogate read; None for a malformed first turn
  predicted: float | None  # that it is a find; None before the surrogate had seen enough
  by_lot: bool  # drawn as its auditor said it, and not for what the surrogate thinks of it
  proposals: int  # samples of the prompt, and of those that were left out for it
  untrained: bool = False  # the auditor before training wrote it


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """One sample of one prompt: what was said, what was probed, what it earned."""

  walk: tuple[int | str, ...]  # the walk through the pool that its prompt is from
  prompt_id: int  # running number of the (image, strategy) draw; unique in the walk
  sample: int  # g
  strategy: str
  source_image_id: str
  turns: tuple[AuditorReply, ...] = ()
  pick: Pick | None = None  # None: all samples are asked
  fields: dict[str, str] = dataclasses.field(default_factory=dict)  # parsed texts by kind
  image_id: str = ""  # the probe's image
  image_seed: int = 0
  fit: str = ""  # how the image service was asked at a size it takes: "640x427>640x432 pad"
  question: str = ""
  verdict: Verdict | None = None  # None: not asked
  kept: bool | None = None  # the consensus, over a paraphrase; None when not asked
  malformed: str = ""  # the auditor's fault: reward 0, it counts
  invalid: str = ""  # nobody's fault: no reward, it does not count
  parts: dict[str, float] = dataclasses.field(default_factory=dict)  # reward terms
  reward: float = float("nan")
  weight: float = 1.0  # of the advantage: novelty

  @property
  def consensus(self) -> str:
    """What the references agree on; "" if they do not, or were not asked."""
    return (self.verdict.consensus if self.verdict else None) or ""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Learner rows of one static shape."""

  image: jax.Array  # i32[B] row -> unique image
  prompt: jax.Array  # i32[B,S]
  prompt_valid: jax.Array  # bool[B,S], a prefix of the row
  targets: jax.Array  # i32[B,G,C]
  loss_mask: jax.Array  # bool[B,G,C]; all False where there is no completion
  advantages: jax.Array  # f32[B,G]
  logp_sampler: jax.Array  # f32[B,G,C]
  logp_old: jax.Array | None = None  # f32[B,G,C]; None = the policy is still that of the rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnerBatch:
  """Device side of one GRPO step; it has features or pixels."""

  features: jax.Array | None  # f32[U,P,Dv] of a frozen tower, once per image
  pixels: jax.Array | None  # f32[U,H,W,3] in [-1,1], where the tower trains
  parts: tuple[Rows, ...]


def pack_rows(
  turns: Sequence[AuditorReply],
  advantages: Sequence[float],
  *,
  image: Sequence[int],
  rows: int,
  prompt_width: int,
  completion_width: int,
  per_row: int = 1,
) -> Rows:
  """Lays turns out in rows of static shape.

  Consecutive turns with the same prompt and image share a row, up to `per_row` of them.

  Args:
    turns: what the auditor said.
    advantages: one per turn, that of its trajectory.
    image: index of each turn's image among the batch's.
    rows: B; what is missing becomes rows without loss.
    prompt_width: S, the longest prompt.
    completion_width: C, the longest completion.
    per_row: G; 1 = plain rows.

  Returns:
    Rows of numpy arrays.

  Raises:
    ValueError: if something does not fit.
  """
  shape = (rows, per_row, completion_width)
  prompt, prompt_valid = (
    np.zeros((rows, prompt_width), np.int32),
    np.zeros((rows, prompt_width), bool),
  )
  row_image, row_adv = np.zeros(rows, np.int32), np.zeros(shape[:2], np.float32)
  targets, logp = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  loss_mask = np.zeros(shape, bool)
  places = _places(turns, image, per_row)
  if places and places[-1][0] >= rows:
    raise ValueError(f"{len(turns)} turns do not fit into {rows} rows of {per_row}")
  for turn, advantage, index, (r, g) in zip(turns, advantages, image, places):
    p, c = len(turn.prompt), turn.length
    if p > prompt_width or c > completion_width:
      raise ValueError(
        f"turn of {p} prompt and {c} completion tokens does not fit into "
        f"{prompt_width} + {completion_width}"
      )
    prompt[r, :p], prompt_valid[r, :p], row_image[r] = turn.prompt, True, index
    targets[r, g, :c], loss_mask[r, g, :c] = turn.tokens[:c], True
    logp[r, g, :c], row_adv[r, g] = turn.logprobs[:c], advantage
  used = places[-1][0] + 1 if places else 0
  # Padding rows repeat the first prompt: image slots stay where the model expects them.
  prompt[used:], prompt_valid[used:] = prompt[:1], prompt_valid[:1]
  host: tuple[Any, ...] = (row_image, prompt, prompt_valid, targets, loss_mask, row_adv, logp)
  return Rows(*host)  # The learner places them on the devices.


def _places(
  turns: Sequence[AuditorReply], image: Sequence[int], per_row: int
) -> list[tuple[int, int]]:
  """(row, slot) of each turn."""
  places: list[tuple[int, int]] = []
  last = None
  for turn, index in zip(turns, image):
    row, slot = places[-1] if places else (-1, 0)
    key = (turn.prompt, index)
    fits = key == last and slot + 1 < per_row
    places.append((row, slot + 1) if fits else (row + 1, 0))
    last = key
  return places


def padded(rows: int, *, devices: int, micro_rows: int = 0) -> int:
  """How many rows a part of `rows` rows must have: all devices and micro-batches take equal shares.

  Args:
    rows: that are needed.
    devices: of the mesh.
    micro_rows: rows at a time, a multiple of `devices`; 0 = all.
  """
  multiple = micro_rows if micro_rows and rows > micro_rows else devices
  return -(-rows // multiple) * multiple


def sequence(config: multimodal.VlmConfig, rows: Rows) -> dict[str, Any]:
  """What `multimodal.row_set` takes: tokens, valid and ar, each [B,T], and branches."""
  n, g, c = rows.targets.shape

  def line(prompt, completions):
    return jnp.concatenate([prompt, completions.reshape(n, g * (c - 1))], axis=1)

  return {
    "tokens": line(rows.prompt, rows.targets[:, :, :-1]),
    # A completion's last token is not here, its others count for every row alike.
    "valid": line(rows.prompt_valid, rows.loss_mask[:, :, :-1]),
    "ar": line(multimodal.default_ar(config, rows.prompt), jnp.ones((n, g, c - 1), jnp.int32)),
    "branches": gemma.Branches(rows.prompt.shape[1], g),
  }


def predicting(hidden: jax.Array, rows: Rows) -> jax.Array:
  """Hidden states f[B,G,C,D], each the one that predicts its target, of f[B,T,D]."""
  n, g, c = rows.targets.shape
  width = rows.prompt.shape[1]
  last = jnp.maximum(rows.prompt_valid.sum(axis=1) - 1, 0)
  first = jnp.take_along_axis(hidden[:, :width], last[:, None, None], axis=1)
  first = jnp.broadcast_to(first[:, None], (n, g, 1, hidden.shape[-1]))
  later = hidden[:, width:].reshape(n, g, c - 1, hidden.shape[-1])
  return jnp.concatenate([first, later], axis=2)
