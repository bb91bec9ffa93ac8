# SPDX-License-Identifier: Apache-2.0
"""rectify: verified failures become training data that repairs the target, next to its controls.

Labels are the references' consensus or the data set's own, never the oracle. All models have the
same recipe and replay:
  repaired         `rectify.strategy`: failures that the auditor found, unless it says otherwise
  control_random   random questions with a consensus, at equal training examples
  control_mined    failures among random questions, at equal total queries (GRPO's included), taken
                   as evenly over modes as the auditor's
  NAME             further strategies, `rectify.beside`
  repaired_grpo    the examples of `repaired`, by GRPO, if `rectify.answering.optim.steps` is not 0

In the controls random questions take the place of failures; labelled ones are the same. The loop
trains all of them, in later rounds the first one; this stage by itself repairs from the failures.

Reads:  WORKDIR/verify, and the target's weights.
Writes: WORKDIR/rectify/repaired.
Costs:  fine-tuning of the target by config.rectify.recipe; `plan` says more.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
import dataclasses
import pathlib
from typing import Any, cast

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit import taxonomy
from auditdm_jax.audit.answer import Heard, ModelBank
from auditdm_jax.audit.ask import Answer, AnswerKind
from auditdm_jax.audit.attempt import Attempt, unique_attempts, unique_finds
from auditdm_jax.audit.skills import Kinds
from auditdm_jax.audit.verdict import unsure_of
from auditdm_jax.core import paths, runtime, streams
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify import features, finetune, rows, tuning
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rectify.examples import ListedExamples
from auditdm_jax.stages import rewarded
from auditdm_jax.stages.asking import CONTROL
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import UNNAMED, Chosen, by_strategy
from auditdm_jax.stages.results import REPAIRED, Controlled
from auditdm_jax.stages.sections import REWARDED
from auditdm_jax.vlm import Vlm, save_vlm

MAX_REPLAY = 20_000
_LOOKED_AT = 8  # Times as many questions are looked through for those that are alike.


class RepairFailed(UserError):
  """The repair of a target went wrong, which says something of the recipe or of the data."""


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "rectify") as ctx:
    _ = ctx.models.weights  # Before anything is asked: an endpoint has none.
    check(ctx)
    examples = to_learn(ctx).all
    if not examples:
      raise UserError(f"{ctx.folder.path}: no failure was verified, so there is nothing to repair")
    ctx.folder.append_examples(REPAIRED, examples)
    replay = replay_examples(ctx, examples)
    repair(ctx, REPAIRED, examples, replay)
    print(f"repaired target: {ctx.folder.repaired()}")
    if ctx.settings.rectify.answering.optim.steps:
      repair_by_reward(ctx, REWARDED, examples, replay)
      print(f"and by GRPO: {ctx.folder.repaired(REWARDED)}")
  return 0


def repair(
  ctx: Context, name: str, examples: Sequence[TrainingExample], replay: Sequence[TrainingExample]
) -> Vlm:
  """Fine-tunes the target of the first round on `examples` and saves it as rectify/<name>.

  Raises:
    RepairFailed: too many gradients were not finite.
  """
  section, target = ctx.settings.rectify, ctx.models.weights
  if not ctx.round.is_first:
    target = ctx.models.load(ctx.written.models.target)
  recipe = section.recipe
  layout = rows.RowLayout.of(target, length=section.length, suffix=section.suffix)
  folder = ctx.folder.repaired(name)
  try:
    result = finetune.finetune(
      target.config,
      target.params,
      recipe,
      layout=layout,
      new=_asked(ctx, target, examples),
      replay=_asked(ctx, target, replay) if recipe.replay else None,
      eye=_eye(ctx, target),
      tune=section.tune,
      workdir=folder.parent,
      name=name,
      seed=ctx.settings.seed,
      mesh=ctx.models.repair_mesh,
      wandb=ctx.settings.wandb,
    )
  except FloatingPointError as e:
    raise RepairFailed(f"the training diverged: {e}; try a lower config.rectify.recipe.lr") from e
  return _save(ctx, name, result.params, len(examples))


def repair_by_reward(
  ctx: Context, name: str, examples: Sequence[TrainingExample], replay: Sequence[TrainingExample]
) -> Vlm:
  """As `repair`, by GRPO: what is rewarded is an answer that the judge takes for the label."""
  return _save(ctx, name, rewarded.tuned(ctx, name, examples, replay), len(examples))


def _save(ctx: Context, name: str, params: Any, examples: int) -> Vlm:
  """Saves the target with these parameters as rectify/<name>."""
  folder, model = ctx.folder.repaired(name), ctx.models.weights.with_params(params, name=name)
  extras = {k: v for k, v in model.extras.items() if k != "tower"}
  if runtime.is_main():
    with paths.writing(folder) as local:
      save_vlm(local, dataclasses.replace(model, extras=extras | {"examples": examples}))
  runtime.barrier()
  return model


def to_learn(ctx: Context) -> Chosen:
  """Returns what the repaired target of a round learns: in a later one, from all rounds so far.

  Each round repairs the target of the first one, as DAgger does (arXiv:1011.0686): repairs of
  repairs add up what each of them forgets. What is asked again is learned once.
  """
  own = by_strategy(ctx, ctx.settings.rectify.strategy)
  if ctx.round.is_first:
    return own
  asked = {(e.image_id, e.question) for e in own.all}
  before = ctx.earlier()[-1].examples(REPAIRED)
  earlier = [e for e in before if (e.image_id, e.question) not in asked]
  return dataclasses.replace(own, examples={**own.examples, "earlier rounds": earlier})


def check(ctx: Context) -> None:
  """Checks the recipe before hours are spent.

  Raises:
    UserError: it replays and there are no questions to replay, or the mesh does not divide its
      micro-batches.
  """
  recipe = ctx.settings.rectify.recipe
  tuning.check_micro_rows(recipe, ctx.models.repair_mesh)
  pool, replay = ctx.pool("images"), recipe.replay
  if replay and not any(pool.questions(i) for i in range(len(pool))):
    raise UserError(
      f"config.rectify.recipe.replay={replay}: no image of {pool.split} has a question to replay;"
      " 0 is right"
    )


def replay_examples(ctx: Context, examples: Sequence[TrainingExample]) -> list[TrainingExample]:
  """Returns questions of the target's own kind, answered by itself: what it must not forget.

  They are as many as the recipe replays in addition to these examples, at most `MAX_REPLAY`, and
  `rectify.alike` of them ask what the examples ask.

  A target's training mix is rarely at hand, so replay is its own behaviour where all references say
  the same and are sure of it: abstentions too, or the repaired target would forget to abstain.
  """
  recipe = ctx.settings.rectify.recipe
  size = min(int(recipe.num_steps(len(examples)) * recipe.batch_size * recipe.replay), MAX_REPLAY)
  if not size:
    return []
  pool, rng = ctx.pool("images"), streams.rng(ctx.settings.seed, "replay")
  kept, looked_at = list[TrainingExample](), 0
  drawn = _to_replay(ctx, pool.asked(), examples, 2 * size, rng)
  order = [(pool.image_id(i), question) for i, question in drawn]
  bank = ctx.models.bank(heard=_heard(ctx, set(order)))
  while len(kept) < size and looked_at < len(order):
    # A few more than are wanted still, since some fall out.
    chosen = order[looked_at : looked_at + (size - len(kept)) * 21 // 20 + 1]
    looked_at += len(chosen)
    kept += _answered_alike(ctx, bank, chosen)
  if not kept:
    raise RepairFailed(
      f"config.rectify.recipe.replay={recipe.replay}: of {looked_at} questions none is answered"
      " alike by target and references; 0 is right"
    )
  return kept[:size]


def _to_replay(
  ctx: Context,
  asked: Sequence[tuple[int, str]],
  examples: Sequence[TrainingExample],
  n: int,
  rng: np.random.Generator,
) -> list[tuple[int, str]]:
  """Returns up to `n` of the pool's (image, question) in the order of a lot."""
  share = ctx.settings.rectify.alike
  order = [asked[int(k)] for k in rng.permutation(len(asked))[: _LOOKED_AT * n if share else n]]
  if not share:
    return order
  kind_of = Kinds(ctx.seeds)
  learned = Counter(kind_of(e.question) for e in examples)
  left = Counter({kind: round(n * share * k / len(examples)) for kind, k in learned.items()})
  alike, others = [], []
  for row in order:
    kind = kind_of(row[1])
    (alike if left[kind] > 0 else others).append(row)
    left[kind] -= 1
  both = (alike + others)[:n]  # Rounded, the shares may add up to a few more.
  return [both[int(k)] for k in rng.permutation(len(both))]


def _heard(ctx: Context, wanted: Collection[tuple[str, str]]) -> Heard:
  """Returns what the control's models said to those of its random questions that are wanted."""
  heard: dict[str, dict[tuple[str, str], Answer]] = {}
  if ctx.folder.done(CONTROL, Controlled) is None:  # So in a later round, of another target.
    return heard
  for attempt in ctx.folder.control():
    pair, verdict = (attempt.probe.image_id, attempt.probe.question), attempt.verdict
    if verdict is None or pair not in wanted:
      continue
    for name, text in verdict.answers.items():
      kind = cast(AnswerKind, verdict.kinds.get(name, "answer"))
      if text is not None and kind != "failed":
        heard.setdefault(name, {})[pair] = Answer(text, kind, verdict.raw.get(name, text))
  return heard


def _answered_alike(
  ctx: Context, bank: ModelBank, asked: Sequence[tuple[str, str]]
) -> list[TrainingExample]:
  """Returns those of (image id, question) that the target and all references answer alike."""
  verdicts = bank.verdicts(
    ctx.images, [q for _, q in asked], image_ids=[i for i, _ in asked], cascade=False
  )
  kept = []
  for (image_id, question), verdict in zip(asked, verdicts, strict=True):
    said = verdict.answers[verdict.target]
    if (
      said
      and not unsure_of(verdict.kinds)
      and all(
        ctx.judge.same(said, verdict.answers[r] or "", question=question)
        for r in verdict.references
      )
    ):
      kept.append(TrainingExample(image_id=image_id, question=question, label=said))
  return kept


def controls(ctx: Context, repaired: Chosen) -> dict[str, Chosen]:
  """Returns the controls: random questions in place of failures, beside the same labelled ones."""
  own = {name: part for name, part in repaired.examples.items() if name == "labelled"}
  size, asked = len(repaired.all) - len(own.get("labelled", ())), ctx.folder.control()
  if not size:
    return {}
  return {
    "control_random": Chosen({**own, "random": random_examples(ctx, asked, size)}),
    "control_mined": Chosen({**own, "random": mined_examples(ctx, asked, size)}),
  }


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
  offered = [
    TrainingExample.of(f, group=mode.mode_id if mode else UNNAMED)
    for f, mode in zip(finds, tax.match_attempts(finds, ctx.gallery), strict=True)
  ]
  config = dataclasses.replace(ctx.settings.rectify.curate, size=size)
  return curate_lib.curate(offered, config, seed=ctx.settings.seed)[0]


def _asked(ctx: Context, vlm: Vlm, examples: Sequence[TrainingExample]) -> ListedExamples:
  return ListedExamples(examples, load=ctx.images, put=vlm.style.put)


def _eye(ctx: Context, vlm: Vlm) -> features.Eye:
  """How the target sees what it trains on: pixels are those of a transfer, if it is one."""
  form, pixels = ctx.settings.rectify.recipe.format, vlm.pixels
  if form.res and pixels.origin == "big_vision":
    pixels = dataclasses.replace(pixels, antialias=form.antialias)
  return features.Eye(pixels, ctx.models.answering(vlm).encode, vlm.tower_id)
