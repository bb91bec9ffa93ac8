# SPDX-License-Identifier: Apache-2.0
"""Repairs the target by GRPO: the examples of a repair, rewarded instead of imitated."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from auditdm_jax.core import jsonio
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rl import answering
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.rl.sight import Sight
from auditdm_jax.stages.context import Context
from auditdm_jax.vlm import Vlm


def tuned(
  ctx: Context,
  name: str,
  examples: Sequence[TrainingExample],
  replay: Sequence[TrainingExample],
) -> Any:
  """Returns the target's parameters after `rectify.answering`, on the host.

  Args:
    ctx: the run's config and models.
    name: of the model.
    examples: as supervised learning has them. An answer that the judge takes for the label is
      rewarded.
    replay: likewise.
  """
  section, target = ctx.settings.rectify, ctx.models.weights
  config, learner = section.answering, _learner(ctx, target)
  asked = answering.Asked(
    config,
    learner,
    sampler=Sampler(
      target,
      seed=ctx.settings.seed,
      temperature=config.grpo.temperature,
      mesh=learner.rollout_mesh if learner.rollout_mesh.size > 1 else None,
    ),
    sight=Sight(target, ctx.models.cache, load=ctx.images, trains=learner.trains_tower),
    judge=ctx.judge,
    new=[_agreed(e) for e in examples],
    replay=[_agreed(e) for e in replay],
    share=section.recipe.replay,
    style=target.style,
    name=name,
    seed=ctx.settings.seed,
  )
  data = [[dataclasses.astuple(_agreed(e)) for e in part] for part in (examples, replay)]
  identity = [jsonio.canonical_hash(data), section.recipe.replay, ctx.settings.seed]
  folder = ctx.folder.repaired(name).parent
  return answering.train(
    asked, config, workdir=folder, name=name, identity=identity, wandb=ctx.settings.wandb
  )


def _learner(ctx: Context, target: Vlm) -> Learner:
  config, models = ctx.settings.rectify.answering, ctx.models
  return Learner(
    target.config,
    config.grpo,
    optim=config.optim,
    mesh=mesh_lib.make_mesh(ctx.settings.mesh),
    rollout_mesh=None if models.rollout_mesh is models.mesh else models.rollout_mesh,
    rules=[(regex, tuple(spec)) for regex, spec in ctx.settings.rules],
    params=target.params,
    banned=target.writer().unsampled_ids(target.stop_ids),
  )


def _agreed(example: TrainingExample) -> answering.AgreedAnswer:
  return answering.AgreedAnswer(example.image_id, example.question, example.label)
