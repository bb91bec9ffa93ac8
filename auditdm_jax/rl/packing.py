# SPDX-License-Identifier: Apache-2.0
"""Step 7 of a rollout: groups become the learner's batch, whose shapes never change."""

from collections.abc import Sequence
from typing import Any

from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import shapes
from auditdm_jax.rl.dynamic import Group
from auditdm_jax.rl.sight import Sight


class Packer:
  """Lays out batches."""

  def __init__(self, calls: shapes.Calls, sight: Sight):
    """Takes the static sizes, and the auditor's view of images."""
    self._calls, self._sight = calls, sight

  def pack(self, params: Any, groups: Sequence[Group]) -> batch_lib.LearnerBatch:
    """Returns the batch: first turns and, where a strategy has them, second ones."""
    samples = [
      (turns, advantage)
      for group in groups
      for turns, advantage in zip(group.turns, group.advantages)
    ]
    images = list(dict.fromkeys(turn.image_id for turns, _ in samples for turn in turns))
    place = {image_id: i for i, image_id in enumerate(images)}
    parts = []
    for part in self._calls.parts:
      replies = [(turns[part.turn], a) for turns, a in samples if len(turns) > part.turn]
      chosen = [(turn, a) for turn, a in replies if turn.kind in part.kinds]
      parts.append(
        batch_lib.pack_rows(
          [turn for turn, _ in chosen],
          [a for _, a in chosen],
          image=[place[turn.image_id] for turn, _ in chosen],
          rows=part.rows,
          prompt_width=part.prompt,
          completion_width=part.completion,
          per_row=part.per_row,
        )
      )
    images += [groups[0].source_image_id] * (self._calls.images - len(images))
    if self._sight.trains:
      pixels: Any = self._sight.pixels(images)  # On the host; the learner places it.
      return batch_lib.LearnerBatch(None, pixels, tuple(parts))
    features: Any = self._sight.features(params, images)
    return batch_lib.LearnerBatch(features, None, tuple(parts))
