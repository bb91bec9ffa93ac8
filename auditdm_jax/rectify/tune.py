# SPDX-License-Identifier: Apache-2.0
"""The config of a fine-tuning, apart from it: configs are read where nothing is tuned."""

import dataclasses

from auditdm_jax.core.config import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig:
  """How a fine-tuning is watched and stored.

  Attributes:
    validation: share of the source images whose examples are held back; 0 = none, and the last
      step's parameters are the result.
    eval_every: steps between two losses on what was held back.
    patience: losses in a row that are no better than the best, after which the training ends; 0 =
      it never ends early.
    eval_examples: most examples of new and of replay each that a loss is taken on.
    feature_bytes: most bytes on disk for the features of a frozen tower. If they take more, the
      tower runs in each step.
    save_every: steps between two checkpoints.
    log_every: steps between two rows of metrics.
  """

  validation: float = 0.1
  eval_every: int = 100
  patience: int = 5
  eval_examples: int = 1_024
  feature_bytes: int = 1 << 36
  save_every: int = 200
  log_every: int = 25

  def __post_init__(self):
    mine = vars(self)
    check(mine, "rectify.tune", "validation", least=0, most=0.5)
    counts = ("eval_every", "eval_examples", "save_every", "log_every")
    check(mine, "rectify.tune", *counts, least=1)
    check(mine, "rectify.tune", "patience", "feature_bytes", least=0)
