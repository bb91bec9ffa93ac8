# SPDX-License-Identifier: Apache-2.0
"""train: trains the auditor with GRPO against the target and the references.

Reads:  the images that config.pool.images names, the models.
Writes: WORKDIR/auditors, WORKDIR/checkpoints, WORKDIR/records/train, WORKDIR/metrics.
Costs:  config.optim.steps steps, each of config.rollout.prompts x config.grpo.group_size probes
        that target and references answer; `plan` says more.
"""

import pathlib

from ml_collections import ConfigDict

from auditdm_jax.stages import asking, preflight
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Trained
from auditdm_jax.stages.run import TRAIN


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, TRAIN) as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> Trained:
  """Trains to config.optim.steps, which may be 0, if the preflight finds nothing wrong; resumes."""
  if (found := ctx.folder.done(TRAIN, Trained)) is not None:
    return found
  preflight.run(ctx)
  settings = ctx.settings
  if not settings.optim.steps:
    return ctx.folder.finish(TRAIN, Trained(0, 0, 0, None))
  result = asking.train_auditor(ctx, ctx.models.bank())
  return ctx.folder.finish(
    TRAIN, Trained(result.steps, result.completions, result.probes, result.best)
  )
