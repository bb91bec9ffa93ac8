# SPDX-License-Identifier: Apache-2.0
"""rectify: verified failures become training data that repairs the target, next to its controls.

Labels are the references' consensus, never the oracle. Every arm has the same recipe and replay:
  repaired         failures the auditor found
  control_random   random questions with a consensus, at equal training examples
  control_mined    failures among random questions, at equal total queries (GRPO's included), taken
                   as evenly over modes as the auditor's

The loop runs all three; this stage by itself repairs from the failures.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import pathlib

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit import taxonomy
from auditdm_jax.audit.attempt import Attempt, unique_attempts, unique_finds
from auditdm_jax.core import paths, runtime, streams
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify import finetune, rows
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import UNNAMED, from_failures
from auditdm_jax.vlm import Vlm, save_vlm

MAX_REPLAY = 6_000


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "rectify") as ctx:
    _ = ctx.models.weights  # Before anything is asked: an endpoint has none.
    check_replay(ctx)
    examples = from_failures(ctx)
    if not examples:
      raise UserError(f"{ctx.folder.path}: no failure was verified, so there is nothing to repair")
    repair(ctx, "repaired", examples, replay_examples(ctx, len(examples)))
    print(f"repaired target: {ctx.folder.repaired()}")
  return 0


def repair(
  ctx: Context, name: str, examples: Sequence[TrainingExample], replay: Sequence[TrainingExample]
) -> Vlm:
  """Fine-tunes the target on `examples` and saves it as rectify/<name>."""
  section, target = ctx.settings.rectify, ctx.models.weights
  layout = rows.RowLayout(
    target.writer(),
    target.template,
    target.config.num_image_tokens,
    target.stop_ids[0],
    length=section.length,
    suffix=section.suffix,
  )
  folder = ctx.folder.repaired(name)
  result = finetune.finetune(
    target.config,
    target.params,
    section.recipe,
    layout=layout,
    new=_data(ctx, target, examples),
    replay=_data(ctx, target, replay) if section.recipe.replay else None,
    workdir=folder.parent,
    name=name,
    seed=ctx.settings.seed,
    mesh=ctx.models.mesh,
  )
  model = target.with_params(result.params, name=name)
  extras = {k: v for k, v in model.extras.items() if k != "tower"}
  if runtime.is_main():
    with paths.writing(folder) as local:
      save_vlm(local, dataclasses.replace(model, extras=extras | {"examples": len(examples)}))
  runtime.barrier()
  return model


def check_replay(ctx: Context) -> None:
  """Checks, before hours are spent, that a recipe that replays has questions to replay.

  Raises:
    UserError: there are none.
  """
  pool, replay = ctx.pool("images"), ctx.settings.rectify.recipe.replay
  if replay and not any(pool.questions(i) for i in range(len(pool))):
    raise UserError(
      f"config.rectify.recipe.replay={replay}: no image of {pool.split} has a question to replay;"
      " 0 is right"
    )


def replay_examples(ctx: Context, new: int) -> list[TrainingExample]:
  """Returns questions of the target's own kind, answered by itself: what it must not forget.

  They are as many as the recipe replays in addition to `new` examples, at most `MAX_REPLAY`.

  A target's training mix is rarely at hand, so replay is its own behaviour where all references say
  the same: abstentions too, or the repaired target would forget to abstain.
  """
  recipe = ctx.settings.rectify.recipe
  size = min(int(recipe.num_steps(new) * recipe.batch_size * recipe.replay), MAX_REPLAY)
  if not size:
    return []
  pool, rng = ctx.pool("images"), streams.rng(ctx.settings.seed, "replay")
  asked = pool.asked()
  chosen = [asked[int(k)] for k in rng.permutation(len(asked))[: 2 * size]]
  verdicts = ctx.models.bank().verdicts(
    ctx.images,
    [q for _, q in chosen],
    image_ids=[pool.image_id(i) for i, _ in chosen],
    cascade=False,
  )
  kept = []
  for (i, question), verdict in zip(chosen, verdicts, strict=True):
    said = verdict.answers[verdict.target]
    if said and all(
      ctx.judge.same(said, verdict.answers[r] or "", question=question) for r in verdict.references
    ):
      kept.append(TrainingExample(image_id=pool.image_id(i), question=question, label=said))
  if not kept:
    raise UserError(
      f"config.rectify.recipe.replay={recipe.replay}: of {len(chosen)} questions none is answered"
      " alike by target and references; 0 is right"
    )
  return kept[:size]


def random_examples(ctx: Context, attempts: Iterable[Attempt], size: int) -> list[TrainingExample]:
  """Returns random questions with a consensus, whether the target knew them or not."""
  known = [a for a in attempts if a.verdict and a.verdict.consensus is not None]
  config = curate_lib.Config(size=size, cap=1.0, balanced=False)
  offered = [TrainingExample.of(a, group="random") for a in known]
  return curate_lib.curate(offered, config, seed=ctx.settings.seed)[0]


def mined_examples(ctx: Context, attempts: Iterable[Attempt], size: int) -> list[TrainingExample]:
  """Returns random questions on which the target conflicts with the consensus.

  They are taken as evenly as the audit's failures, over the modes that the random questions show by
  themselves: what the auditor found is not for its control.
  """
  tax = taxonomy.discover_modes(
    unique_attempts(attempts), ctx.seeds, config=ctx.settings.taxonomy.modes, gallery=ctx.gallery
  )
  finds = unique_finds(attempts)
  images = ctx.gallery.terms(tax.looks, [f.probe for f in finds])
  modes = tax.match([f.probe.question for f in finds], [f.consensus for f in finds], images)
  offered = [
    TrainingExample.of(f, group=mode.mode_id if mode else UNNAMED)
    for f, mode in zip(finds, modes, strict=True)
  ]
  config = dataclasses.replace(ctx.settings.rectify.curate, size=size)
  return curate_lib.curate(offered, config, seed=ctx.settings.seed)[0]


def _data(ctx: Context, vlm: Vlm, examples: Sequence[TrainingExample]) -> finetune.Data:
  ids = list(dict.fromkeys(e.image_id for e in examples))
  row = {image_id: i for i, image_id in enumerate(ids)}
  features = ctx.models.cache.features(ctx.models.answering(vlm), ids, ctx.images)
  return finetune.Data(
    features=features.astype(np.float16),
    image=np.array([row[e.image_id] for e in examples], np.int32),
    questions=[vlm.style.put(e.question) for e in examples],
    labels=[e.label for e in examples],
  )
