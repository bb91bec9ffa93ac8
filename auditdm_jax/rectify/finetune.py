# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a model on new examples and, so that it does not forget, on replay from its old mix.

1. All examples are read once: `survey`. Those of some source images are held back for validation.
2. Batches come from a stream that is ahead of the steps; the batch of a step is a pure function of
   (seed, step). A frozen tower's features come from a file, if they fit into its bound.
3. `supervised.train_step`, with the optimiser of `tuning`.
4. Every `eval_every` steps the loss on what was held back. The best parameters so far are kept and
   returned; without a better loss for `patience` times the training ends.
5. Every `save_every` steps a checkpoint; a run that is started again goes on as if it had not
   stopped.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import jsonio, metrics, paths, runtime
from auditdm_jax.core.wandb_log import WandbConfig
from auditdm_jax.models import multimodal
from auditdm_jax.rectify import features, kept, looks, recipes, rows, stream, tuning
from auditdm_jax.rectify import survey as survey_lib
from auditdm_jax.rectify.examples import Examples
from auditdm_jax.rectify.meter import StepMeter
from auditdm_jax.rectify.tune import TuneConfig
from auditdm_jax.rectify.validation import Validation

_MAX_SKIPPED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The tuned parameters and how they came about.

  Attributes:
    params: of step `best`, on the host.
    steps: updates that were made.
    best: the step with the least loss on what was held back, the last one if nothing was.
    validation: that loss, or None.
    skipped: updates that were non-finite.
    loss: of the last batch, None if there was nothing left to do.
  """

  params: Any
  steps: int
  best: int
  validation: float | None
  skipped: int
  loss: float | None


def finetune(
  config: multimodal.VlmConfig,
  params: Any,
  recipe: recipes.Recipe,
  *,
  layout: rows.RowLayout,
  new: Examples,
  eye: features.Eye,
  seed: int,
  replay: Examples | None = None,
  tune: TuneConfig | None = None,
  mesh: jax.sharding.Mesh | None = None,
  workdir: str | os.PathLike | None = None,
  name: str = "rectify",
  wandb: WandbConfig = WandbConfig(),  # noqa: B008  Frozen.
) -> Result:
  """Tunes `params` by `recipe` and returns them on the host.

  Args:
    layout: how questions and labels become rows.
    new: the examples to learn.
    eye: how the model looks at pictures.
    seed: decides the order of the examples, what is held back, and the dropout.
    replay: examples of the old mix; needed if and only if the recipe has a share of replay.
    tune: how it is watched and stored; None = the defaults.
    mesh: devices that share rows and masters; None is the default device.
    workdir: where checkpoints (`checkpoints/<name>`) and metrics go; nothing is stored if None.
    name: name of the run, on the screen and in the files.
    wandb: where its numbers go besides the workdir.

  Raises:
    UserError: recipe and data do not fit, an example is invalid, or a checkpoint is of other data
      or another recipe.
    FloatingPointError: too many gradients were not finite.
  """
  _check(recipe, new, replay)
  tune = tune or TuneConfig()
  sources = [new] if replay is None else [new, replay]
  surveys = [survey_lib.survey(source, layout, seed=seed) for source in sources]
  held = survey_lib.held_back(surveys, tune.validation)
  steps = recipe.num_steps(int(np.sum(~held[0])))
  trains = tuning.trains_tower(recipe, params)
  with contextlib.ExitStack() as stack:
    shown = stack.enter_context(
      looks.opened(
        config, surveys, eye, trains=trains, most=tune.feature_bytes, workdir=workdir, name=name
      )
    )
    parts = _parts(recipe, surveys, shown, held)
    layout = survey_lib.fitted(layout, surveys)
    feed = stream.Stream(layout, parts, seed=seed, answers=recipe.format.answers, mesh=mesh)
    tuned = tuning.Tuning(config, recipe, steps=steps, seed=seed, mesh=mesh)
    chosen = [np.flatnonzero(own)[: tune.eval_examples] for own in held]
    kept_back = [dataclasses.replace(p, chosen=c) for p, c in zip(parts, chosen, strict=True)]
    found = [dataclasses.asdict(recipe), steps, seed, tune.validation, tune.eval_every]
    fingerprint = jsonio.canonical_hash([found, [s.digest for s in surveys]])
    validation = Validation(tuned, feed, kept_back)
    run = kept.Kept(
      *(workdir, name, fingerprint), patience=tune.patience, validates=bool(validation)
    )
    passes = 3 if trains else 1 if isinstance(shown[0], looks.AsPixels) else 0
    loop = _Loop(
      tuned=tuned,
      feed=feed,
      validation=validation,
      run=stack.enter_context(run),
      meter=StepMeter(config, tower_passes=passes, devices=1 if mesh is None else mesh.size),
      config=tune,
      steps=steps,
      name=name,
      wandb=wandb,
    )
    return loop(params, workdir)


def _parts(
  recipe: recipes.Recipe,
  surveys: Sequence[survey_lib.Survey],
  shown: Sequence[looks.Look],
  held: Sequence[np.ndarray],
) -> list[stream.Part]:
  """Returns the examples that are trained on: new ones and, if there are any, replay."""
  counts = (recipe.new_per_batch, recipe.batch_size - recipe.new_per_batch)
  return [
    stream.Part(name, s.source, np.flatnonzero(~own), look, count)
    for name, s, own, look, count in zip(("new", "replay"), surveys, held, shown, counts)
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loop:
  """The steps from where a state is to the last one."""

  tuned: tuning.Tuning
  feed: stream.Stream
  validation: Validation
  run: kept.Kept
  meter: StepMeter
  config: TuneConfig
  steps: int
  name: str
  wandb: WandbConfig

  def __call__(self, params: Any, workdir: str | os.PathLike | None) -> Result:
    state, loss = self.run.restore(self.tuned.init(params)), None
    first = int(state.step)
    if first >= self.steps or self.run.is_over:
      return self._result(state, loss)
    with contextlib.ExitStack() as stack:
      writer = None
      if workdir and runtime.is_main():
        writer = metrics.Writer(
          paths.as_path(workdir), self.name, resume_step=first, wandb=self.wandb
        )
        stack.callback(writer.close)
      progress = metrics.Progress(self.steps, self.name, done=first)
      stack.enter_context(contextlib.closing(progress))
      batches = stack.enter_context(self.feed.batches(first, self.steps))
      for done in range(first + 1, self.steps + 1):
        self.meter.go_on()
        fed = self.meter.take(batches)
        state, m = self.tuned.update(state, fed.batch)
        self.meter.ran(m["loss"], fed)
        if not self._is_due(done):
          continue
        self.meter.pause()
        loss, more = float(m["loss"]), self._watched(state, done)
        is_logged = done % self.config.log_every == 0 or done == self.steps
        if writer and (is_logged or "validation" in more):
          row = {"loss": loss, "grad_norm": float(m["grad_norm"])} | more
          writer.write(done, row | self.meter.rates())
        progress.update(done, loss=loss)
        if self.run.is_over:
          break
    return self._result(state, loss)

  def _is_due(self, done: int) -> bool:
    """Returns whether there is something to do after a step."""
    config = self.config
    every = (config.log_every, config.save_every, config.eval_every)
    return done == self.steps or any(done % n == 0 for n in every)

  def _watched(self, state: Any, done: int) -> dict[str, float]:
    """Takes the loss on what was held back and saves, where it is time; returns more metrics."""
    skipped = int(state.skipped)
    if skipped > max(_MAX_SKIPPED, done // 10):
      raise FloatingPointError(f"{self.name}: {skipped} of {done} gradients were not finite")
    more: dict[str, float] = {"skipped": skipped}
    is_last, is_better = done == self.steps, False
    if self.validation and (is_last or done % self.config.eval_every == 0):
      more["validation"] = self.validation(state.params)
      is_better = self.run.see(done, more["validation"])
    if is_last or is_better or self.run.is_over or done % self.config.save_every == 0:
      self.run.save(state)
    return more

  def _result(self, state: Any, loss: float | None) -> Result:
    steps, skipped = int(state.step), int(state.skipped)
    return Result(
      params=self.run.take_best(state),
      steps=steps,
      best=self.run.best_step or steps,
      validation=self.run.best_loss,
      skipped=skipped,
      loss=loss,
    )


def _check(recipe: recipes.Recipe, new: Examples, replay: Examples | None) -> None:
  wants_replay = recipe.new_per_batch < recipe.batch_size
  if not len(new):
    raise config_lib.UserError("there are no new examples to train on")
  if wants_replay != (replay is not None and len(replay) > 0):
    have = "none was given" if wants_replay else "some was given"
    raise config_lib.UserError(f"the recipe's share of replay is {recipe.replay}, but {have}")
