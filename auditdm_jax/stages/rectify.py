# SPDX-License-Identifier: Apache-2.0
"""rectify: verified failures become training data that repairs the target, beside its controls.

Labels are the references' consensus, never the oracle. Every arm has the same recipe and replay:
  repaired         failures the auditor found
  control_random   random questions with a consensus, at equal training examples
  control_mined    failures among random questions, at equal total queries (GRPO's included)

The loop runs all three; this stage by itself repairs from the failures.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit.probe import Failure
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.core import runtime, store
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify import finetune, supervised
from auditdm_jax.rectify.curate import Example
from auditdm_jax.stages import verify
from auditdm_jax.stages.attempts import Attempt, unique_finds
from auditdm_jax.stages.context import Context
from auditdm_jax.vlm import Vlm, save_vlm

MAX_REPLAY = 6_000


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "rectify") as ctx:
    check_replay(ctx)
    examples = from_failures(ctx, verify.load_failures(ctx))
    if not examples:
      raise UserError(f"{ctx.workdir}: no failure was verified, so there is nothing to repair")
    repair(ctx, "repaired", examples, replay_examples(ctx, len(examples)))
    print(f"repaired target: {ctx.workdir / 'rectify' / 'repaired'}")
  return 0


def repair(ctx: Context, name: str, examples: Sequence[Example], replay) -> Vlm:
  """Fine-tunes the target on `examples` and saves it as rectify/<name>."""
  section, target = ctx.settings.rectify, ctx.target
  layout = supervised.Layout(
    target.tokenizer, target.template, target.cfg.num_image_tokens, target.stop_ids[0],
    length=section.length, suffix=section.suffix,
  )  # fmt: skip
  result = finetune.finetune(
    target.cfg, target.params, section.recipe, layout=layout, new=_data(ctx, target, examples),
    replay=_data(ctx, target, replay) if section.recipe.replay else None,
    workdir=ctx.workdir / "rectify", name=name, mesh=ctx.mesh,
  )  # fmt: skip
  model = target.with_params(result.params, name=name)
  folder = ctx.workdir / "rectify" / name
  extras = {k: v for k, v in model.extras.items() if k != "tower"}
  if runtime.is_main():
    with store.writing(folder) as local:
      save_vlm(local, dataclasses.replace(model, extras=extras | {"examples": len(examples)}))
  runtime.barrier()
  return model


def check_replay(ctx: Context) -> None:
  """Before hours are spent: a recipe that replays needs questions to replay.

  Raises:
    UserError: there are none.
  """
  pool, replay = ctx.pool("images"), ctx.settings.rectify.recipe.replay
  if replay and not any(pool.questions(i) for i in range(len(pool))):
    raise UserError(
      f"config.rectify.recipe.replay={replay}: no image of {pool.split} has a question to replay;"
      " 0 is right"
    )


def replay_examples(ctx: Context, new: int) -> list[Example]:
  """Questions of the target's own kind, answered by the target itself: what it must not forget.

  As many as the recipe replays beside `new` examples, at most `MAX_REPLAY`.

  A target's training mix is rarely at hand, so replay is its own behaviour where all references say
  the same: abstentions too, or the repaired target would forget to abstain.
  """
  recipe = ctx.settings.rectify.recipe
  size = min(int(recipe.num_steps(new) * recipe.batch_size * recipe.replay), MAX_REPLAY)
  if not size:
    return []
  pool, rng = ctx.pool("images"), np.random.default_rng((ctx.settings.seed, 41))
  asked = [(i, q) for i in range(len(pool)) for q in pool.questions(i)]
  chosen = [asked[int(k)] for k in rng.permutation(len(asked))[: 2 * size]]
  bank = ctx.bank()
  verdicts = bank.verdicts(
    ctx.images, [q for _, q in chosen], image_ids=[pool.image_id(i) for i, _ in chosen],
    cascade=False,
  )  # fmt: skip
  kept = [
    Example(image_id=pool.image_id(i), question=q, label=v.answers[v.target])
    for (i, q), v in zip(chosen, verdicts, strict=True)
    if v.answers[v.target]
    and all(ctx.judge.same(v.answers[v.target], v.answers[r]) for r in v.references)
  ]
  if not kept:
    raise UserError(
      f"config.rectify.recipe.replay={recipe.replay}: of {len(chosen)} questions none is answered"
      " alike by target and references; 0 is right"
    )
  return kept[:size]


def from_failures(ctx: Context, failures: Sequence[Failure]) -> list[Example]:
  """Examples of verified failures, evenly over families of modes and over sources."""
  if (verified := ctx.done("verify")) is None:
    raise UserError(f"{ctx.workdir}: no verified failures; run the stage verify first")
  families = Taxonomy.from_dict(verified["taxonomy"]).families
  candidates = curate_lib.from_failures(
    failures, group=lambda f: families.get(f.mode_id, "unnamed")
  )
  return curate_lib.curate(candidates, ctx.settings.rectify.curate)[0]


def random_examples(ctx: Context, attempts: Sequence[Attempt], size: int) -> list[Example]:
  """Random questions with a consensus, whether the target knew them or not."""
  return _curated(ctx, [a for a in attempts if a.verdict.consensus is not None], size)


def mined_examples(ctx: Context, attempts: Sequence[Attempt], size: int) -> list[Example]:
  """Random questions on which the target conflicts with the consensus."""
  return _curated(ctx, unique_finds(attempts), size)


def _curated(ctx, attempts, size):
  candidates = [
    curate_lib.Candidate(
      image_id=a.probe.image_id, question=a.probe.question, label=a.verdict.consensus,
      group="random",
    )
    for a in attempts
  ]  # fmt: skip
  config = curate_lib.Config(size=size, cap=1.0, balanced=False, seed=ctx.settings.seed)
  return curate_lib.curate(candidates, config)[0]


def _data(ctx: Context, vlm: Vlm, examples: Sequence[Example]) -> finetune.Data:
  ids = list(dict.fromkeys(e.image_id for e in examples))
  row = {image_id: i for i, image_id in enumerate(ids)}
  return finetune.Data(
    features=ctx.cache.features(ctx.answering(vlm), ids, ctx.images).astype(np.float16),
    image=np.array([row[e.image_id] for e in examples], np.int32),
    questions=[vlm.style.put(e.question) for e in examples],
    labels=[e.label for e in examples],
  )
