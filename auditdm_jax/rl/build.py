# SPDX-License-Identifier: Apache-2.0
"""Puts the phases of a rollout together from what a run has opened."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from auditdm_jax.rl import shapes
from auditdm_jax.rl.drawing import Drawing
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.gauges import Gauges
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.packing import Packer
from auditdm_jax.rl.probing import Pool, Prober
from auditdm_jax.rl.rollout import Rollout
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.rl.scoring import Scorer
from auditdm_jax.rl.sight import Sight
from auditdm_jax.vlm import Vlm


def prober(
  config: RolloutConfig,
  grpo: GrpoConfig,
  *,
  auditor: Vlm,
  pool: Pool,
  sight: Sight,
  drawing: Drawing | None = None,
  well_formed: Callable[[str], bool] | None = None,
  mesh: Mesh | None = None,
) -> Prober:
  """Returns what makes probes with an auditor, whose params are given to each call.

  Args:
    config: prompts and limits.
    grpo: group size and temperature.
    auditor: its architecture, tokenizer and template.
    pool: source images.
    sight: what the auditor sees of them.
    drawing: the image service; needed by strategies that make images.
    well_formed: says whether a question is one at all.
    mesh: the one that the auditor's params lie on; the sampler's prompts are split over it.
  """
  sampler = Sampler(auditor, seed=config.seed, temperature=grpo.temperature, mesh=mesh)
  calls = shapes.calls_of(config, grpo.group_size, length=sampler.length)
  return Prober(
    config, calls, pool=pool, sampler=sampler, sight=sight, drawing=drawing, well_formed=well_formed
  )


def rollout(
  grpo: GrpoConfig,
  learner: Learner,
  *,
  run: str,
  prober: Prober,
  scorer: Scorer,
  gauges: Gauges | None = None,
  before: Any = None,
) -> Rollout:
  """Returns the rollout of a training run.

  Args:
    grpo: group size and advantages.
    learner: what the batches are for; it says how rows are laid out.
    run: name of the run, which its randomness depends on.
    prober: makes the probes.
    scorer: rewards them.
    gauges: watch for reward hacking.
    before: params of the auditor before training, if it writes a share of the proposals.
  """
  calls = shapes.calls_of(
    prober.config,
    grpo.group_size,
    length=prober.sampler.length,
    per_row=learner.per_row(sum(prober.config.prompts.values())),
    padded=learner.padded,
  )
  packer = Packer(calls, prober.sight)
  return Rollout(
    grpo, run=run, prober=prober, scorer=scorer, packer=packer, gauges=gauges, before=before
  )
