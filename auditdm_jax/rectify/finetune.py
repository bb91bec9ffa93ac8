# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a model on new examples and, so that it does not forget, on replay from its old mix.

1. Rows of tokens are made once; images come as features of the frozen vision tower.
2. The batch of a step is a pure function of (seed, step): new examples and replay walk through
   their own shuffled passes.
3. `supervised.train_step`, with the optimiser of `tuning`.
4. Every `save_every` steps a checkpoint; a run that is started again goes on as if it had not
  stopped.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import os
from typing import Any

import jax
import numpy as np

from auditdm_jax.core import checkpoint, jsonio, metrics, paths, runtime, streams
from auditdm_jax.core import config as config_lib
from auditdm_jax.models import multimodal
from auditdm_jax.rectify import recipes, rows, supervised, tuning

_NEW, _REPLAY = "new", "replay"
_MAX_SKIPPED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Examples to train on: `image[i]` is the row of `features` that question i is about.

  Attributes:
    features: f[U,P,Dv] of the vision tower.
    image: i32[B].
    questions: B texts, as the model's template takes them.
    labels: B texts.
  """

  features: np.ndarray
  image: np.ndarray
  questions: Sequence[str]
  labels: Sequence[str]

  def __post_init__(self):
    if not len(self.image) == len(self.questions) == len(self.labels):
      raise ValueError(
        f"{len(self.image)} images, {len(self.questions)} questions, {len(self.labels)} labels"
      )

  def __len__(self) -> int:
    return len(self.questions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The tuned parameters, the number of updates, and how many were non-finite and skipped."""

  params: Any
  steps: int
  skipped: int
  loss: float | None


def indices(seed: int, part: str, step: int, *, count: int, size: int) -> np.ndarray:
  """Returns i64[count]: the step's share of an endless walk through shuffled passes over `size`."""
  places = step * count + np.arange(count)
  passes = places // size
  orders = {
    int(p): streams.rng(seed, "finetune", part, int(p)).permutation(size) for p in set(passes)
  }
  return np.array([orders[int(p)][place % size] for p, place in zip(passes, places, strict=True)])


class _Batches:
  """Batches by step, from tokens that are made once."""

  def __init__(
    self,
    layout: rows.RowLayout,
    recipe: recipes.Recipe,
    new: Data,
    replay: Data | None,
    seed: int,
  ):
    self._seed = seed
    parts = [(_NEW, new, recipe.new_per_batch)]
    if replay is not None:
      parts.append((_REPLAY, replay, recipe.batch_size - recipe.new_per_batch))
    self._parts = [
      (part, data, count, layout.rows(data.questions, data.labels)) for part, data, count in parts
    ]

  def __call__(self, step: int) -> supervised.Batch:
    features, columns = [], []
    for part, data, count, texts in self._parts:
      at = indices(self._seed, part, step, count=count, size=len(data))
      features.append(data.features[data.image[at]])
      columns.append({name: values[at] for name, values in texts.items()})
    joined = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    images = np.concatenate(features)
    return supervised.Batch(images=images, image=np.arange(len(images), dtype=np.int32), **joined)


def finetune(
  config: multimodal.VlmConfig,
  params: Any,
  recipe: recipes.Recipe,
  *,
  layout: rows.RowLayout,
  new: Data,
  seed: int,
  replay: Data | None = None,
  mesh: jax.sharding.Mesh | None = None,
  workdir: str | os.PathLike | None = None,
  name: str = "rectify",
  save_every: int = 200,
  log_every: int = 25,
) -> Result:
  """Tunes `params` by `recipe` and returns them on the host.

  Args:
    layout: how questions and labels become rows.
    new: the examples to learn.
    seed: decides the order of the examples and the dropout.
    replay: examples of the old mix; needed if and only if the recipe has a share of replay.
    mesh: devices that share rows and masters; None is the default device.
    workdir: where checkpoints (`checkpoints/<name>`) and metrics go; nothing is stored if None.
    name: name of the run, on the screen and in the files.

  Raises:
    UserError: recipe and data do not fit, or a checkpoint is of other data or another recipe.
    FloatingPointError: too many gradients were not finite.
  """
  _check(recipe, params, new, replay)
  steps = recipe.num_steps(len(new))
  tune = tuning.Tuning(config, recipe, steps=steps, seed=seed, mesh=mesh)
  state = tune.init(params)
  with contextlib.ExitStack() as stack:
    run = None
    if workdir:
      run = _Run(workdir, name, _fingerprint(recipe, new, replay, steps, seed))
      stack.callback(run.close)
      state = run.restore(state)
    first = int(state.step)
    if first >= steps:
      return _result(state, None)
    batches = _Batches(layout, recipe, new, replay, seed)
    writer = None
    if workdir and runtime.is_main():
      writer = metrics.Writer(paths.as_path(workdir), name, resume_step=first)
    if writer:
      stack.callback(writer.close)
    progress = stack.enter_context(contextlib.closing(metrics.Progress(steps, name, done=first)))
    loss = None
    for step in range(first, steps):
      state, m = tune.update(state, batches(step))
      done = step + 1
      if done % log_every == 0 or done == steps:
        loss, skipped = float(m["loss"]), int(state.skipped)
        if skipped > max(_MAX_SKIPPED, done // 10):
          raise FloatingPointError(f"{name}: {skipped} of {done} gradients were not finite")
        if writer:
          writer.write(done, {"loss": loss, "grad_norm": float(m["grad_norm"]), "skipped": skipped})
        progress.update(done, loss=loss)
      if run and (done % save_every == 0 or done == steps):
        run.save(state)
  return _result(state, loss)


def _check(recipe: recipes.Recipe, params: Any, new: Data, replay: Data | None) -> None:
  wants_replay = recipe.new_per_batch < recipe.batch_size
  if not len(new):
    raise config_lib.UserError("there are no new examples to train on")
  if wants_replay != (replay is not None and len(replay) > 0):
    have = "none was given" if wants_replay else "some was given"
    raise config_lib.UserError(f"the recipe's share of replay is {recipe.replay}, but {have}")
  if tuning.trains_tower(recipe, params):
    raise config_lib.UserError(
      "the recipe trains the vision tower, whose features were made before; freeze it with"
      " parts=(('img/(?!head/).*', None), ('.*', 1.0))"
    )


def _fingerprint(
  recipe: recipes.Recipe, new: Data, replay: Data | None, steps: int, seed: int
) -> str:
  """Tells this run from one with other examples or another recipe."""
  digest = hashlib.sha256()
  for data in (new, replay) if replay is not None else (new,):
    digest.update(np.ascontiguousarray(data.features[data.image[:64]]).tobytes())
    digest.update(jsonio.canonical_hash([list(data.questions), list(data.labels)]).encode())
  return jsonio.canonical_hash([dataclasses.asdict(recipe), steps, seed, digest.hexdigest()])


class _Run:
  """The checkpoints of one run: the state's arrays by place, without the optimiser's classes."""

  def __init__(self, workdir: str | os.PathLike, name: str, fingerprint: str):
    self._checkpointer = checkpoint.Checkpointer(
      paths.as_path(workdir) / "checkpoints" / name, keep=1
    )
    self._fingerprint = fingerprint

  def save(self, state: supervised.State) -> None:
    self._checkpointer.save(int(state.step), _flat(state), {"fingerprint": self._fingerprint})

  def close(self) -> None:
    """Returns when what was saved is on disk."""
    self._checkpointer.close()

  def restore(self, state: supervised.State) -> supervised.State:
    """Returns the latest state, or `state` itself if there is none."""
    if self._checkpointer.latest() is None:
      return state
    step, arrays, extras = self._checkpointer.restore(None, _flat(state))
    if extras["fingerprint"] != self._fingerprint:
      raise config_lib.UserError(
        f"{self._checkpointer.dir}: the checkpoint of step {step} is of other examples or another"
        " recipe; use another workdir or remove it"
      )
    leaves = [arrays[key] for key in sorted(arrays)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _flat(state: supervised.State) -> Mapping[str, jax.Array]:
  return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _result(state: supervised.State, loss: float | None) -> Result:
  return Result(
    params=runtime.fetch(state.params),
    steps=int(state.step),
    skipped=int(state.skipped),
    loss=loss,
  )
