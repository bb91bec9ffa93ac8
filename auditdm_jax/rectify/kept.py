# SPDX-License-Identifier: Apache-2.0
"""What is kept of a fine-tuning: its latest state, and the parameters that were best."""

from collections.abc import Mapping
import math
import os
from typing import Any

import jax

from auditdm_jax.core import checkpoint, paths, runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import supervised

_WORST = -1e30  # Orbax warns of checkpoints without a score.


class Kept:
  """The checkpoints of one run, and how the loss on what was held back went.

  The state's arrays are stored by place, without the optimiser's classes.

  Attributes:
    best_step: the step with the least loss, None without any.
    best_loss: that loss.
  """

  def __init__(
    self,
    workdir: str | os.PathLike | None,
    name: str,
    fingerprint: str,
    *,
    patience: int,
    validates: bool,
  ):
    """Opens `<workdir>/checkpoints/<name>`; without a workdir the best is kept in memory.

    Args:
      workdir: the folder, or None.
      name: of the run.
      fingerprint: tells it from one with other examples or another recipe.
      patience: losses in a row that are no better, after which it is over; 0 = never.
      validates: whether there will be losses.
    """
    self._checkpointer = None
    if workdir:
      folder = paths.as_path(workdir) / "checkpoints" / name
      self._checkpointer = checkpoint.Checkpointer(folder, keep=1, keep_best=validates)
    self._fingerprint, self._patience = fingerprint, patience
    self.best_step: int | None = None
    self.best_loss: float | None = None
    self._worse = 0
    self._params: Any = None

  def __enter__(self) -> "Kept":
    return self

  def __exit__(self, *exc) -> None:
    """Returns when what was saved is on disk."""
    if self._checkpointer:
      self._checkpointer.close()

  @property
  def is_over(self) -> bool:
    """Whether the loss has not become less for too long."""
    return 0 < self._patience <= self._worse

  def see(self, step: int, loss: float) -> bool:
    """Takes a loss on what was held back; returns whether it is the least so far."""
    better = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
    if better:
      self.best_step, self.best_loss, self._worse = step, loss, 0
    else:
      self._worse += 1
    return better

  def save(self, state: supervised.State) -> None:
    """Keeps a state; it stays if it is the best."""
    step = int(state.step)
    is_best = step == self.best_step
    if self._checkpointer is None:
      self._params = runtime.fetch(state.params) if is_best else self._params
      return
    extras = {
      "fingerprint": self._fingerprint,
      "best_step": self.best_step,
      "best_loss": self.best_loss,
      "worse": self._worse,
    }
    score = -self.best_loss if is_best and self.best_loss is not None else _WORST
    self._checkpointer.save(step, flat(state), extras, score=score)

  def restore(self, state: supervised.State) -> supervised.State:
    """Returns the latest state, or `state` itself if there is none.

    Raises:
      UserError: it is of another run.
    """
    if self._checkpointer is None or self._checkpointer.latest() is None:
      return state
    step, arrays, extras = self._checkpointer.restore(None, flat(state))
    if extras["fingerprint"] != self._fingerprint:
      raise UserError(
        f"{self._checkpointer.dir}: the checkpoint of step {step} is of other examples or another"
        " recipe; use another workdir or remove it"
      )
    self.best_step, self.best_loss = extras["best_step"], extras["best_loss"]
    self._worse = extras["worse"]
    return unflat(arrays, state)

  def take_best(self, state: supervised.State) -> Any:
    """Returns the best parameters on the host; the last state's memory is given up for them."""
    if self.best_step in (None, int(state.step)):
      return runtime.fetch(state.params)
    if self._checkpointer is None:
      return self._params
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    jax.tree.map(lambda x: x.delete(), state)
    _, arrays, _ = self._checkpointer.restore(self.best_step, flat(shapes))
    return runtime.fetch(unflat(arrays, shapes).params)


def flat(state: Any) -> Mapping[str, Any]:
  """Returns a state's leaves as a checkpoint holds them."""
  return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def unflat(arrays: Mapping[str, Any], like: Any) -> Any:
  """Returns the state of a checkpoint's leaves, with the structure of `like`."""
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[key] for key in sorted(arrays)])
