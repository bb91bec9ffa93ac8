# SPDX-License-Identifier: Apache-2.0
"""What a run has to train on; repair here and exports take their examples from one place."""

from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Verified

UNNAMED = "unnamed"  # The group of failures that belong to no mode.


def from_failures(ctx: Context) -> list[TrainingExample]:
  """Returns examples of the verified failures, evenly over modes and over sources."""
  if ctx.folder.done("verify", Verified) is None:
    raise UserError(f"{ctx.folder.path}: no verified failures; run the stage verify first")
  ctx.pool("images")  # So that their images are found by id.
  # The grades above V1 make no difference: only a world with an oracle has them.
  offered = [
    TrainingExample.of(f, group=f.mode_id or UNNAMED) for f in ctx.folder.failures() if f.verified
  ]
  return curate_lib.curate(offered, ctx.settings.rectify.curate, seed=ctx.settings.seed)[0]
