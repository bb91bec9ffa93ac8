# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by step: a tree of arrays and a JSON object, whole or not there at all.

A save returns once the arrays are on the host and writes on in the background; a step counts from
the moment orbax has renamed it into place. What a kill interrupts is removed by the next opening.
Orbax's blocks have no checksums: SHA-256 sums of all files lie beside them. An object store has
checksums of its own, and reading a checkpoint back from it would cost as much as writing it.
"""

from collections.abc import Mapping
import logging
import math
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from auditdm_jax.core import disk, jsonio, paths, runtime, sums
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError

# What tensorstore says of a store that cannot be reached: its files may be as good as new.
_NO_DAMAGE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")


class _Damaged(UserError):
  """A checkpoint that cannot be read."""


class ChangedFileError(ValueError):
  """A file that is not the one that was written."""


class _SummedArrays(ocp.StandardCheckpointHandler):
  """Arrays with sums of their files; process 0 writes them before the folder gets its name."""

  def finalize(self, directory: Any) -> None:
    super().finalize(directory)  # Merges what the processes have written.
    _write_sums(directory)


class _SummedJson(ocp.JsonCheckpointHandler):
  """JSON with the sum of its file."""

  def finalize(self, directory: Any) -> None:
    super().finalize(directory)
    _write_sums(directory)


def _write_sums(directory: Any) -> None:
  if not paths.is_remote(directory):
    sums.write(pathlib.Path(directory))


class Checkpointer:
  """Saves and restores `<dir>/<step>/`."""

  def __init__(
    self,
    dir: str | pathlib.Path,
    *,
    keep: int = 2,
    keep_best: bool = False,
  ):
    """Opens the folder, which is made if it is not there.

    Args:
      dir: the folder.
      keep: how many of the latest checkpoints stay.
      keep_best: the step with the greatest score stays until another one is better.
    """
    self.dir = paths.as_path(dir)
    if not paths.is_remote(dir):
      self.dir = self.dir.absolute()
    policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep)]
    if keep_best:
      policies.append(
        preservation_policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
      )
    self._keep_best = keep_best
    # absl's logger, which is orbax's; a filter that is there is not added again.
    logging.getLogger("absl").addFilter(_is_news)
    self._manager = ocp.CheckpointManager(
      self.dir,
      # With handlers: a new process reads the trees' shapes before it restores.
      handler_registry=_handlers(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,  # What a killed run left half-written.
        best_fn=_score if keep_best else None,
      ),
    )

  def save(
    self, step: int, arrays: Any, extras: Mapping[str, Any], *, score: float | None = None
  ) -> None:
    """Starts a checkpoint; `wait` returns when it is on disk.

    The arrays may be donated as soon as this returns. A save that is still under way is waited for
    first, and its error, if it had one, is raised here.

    Args:
      step: the last step that is in it.
      arrays: a pytree of arrays.
      extras: what else a resumed run must know, as JSON.
      score: for `keep_best`; None, and what is not finite, is never the best.
    """
    metrics = None
    if self._keep_best and score is not None and math.isfinite(score):
      metrics = {"score": float(score)}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), extras=ocp.args.JsonSave(jsonio.plain(extras))
      ),
      metrics=metrics,
    )

  def wait(self) -> None:
    """Returns when everything saved so far is on disk; raises what went wrong."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def restore(self, step: int | None, abstract: Any) -> tuple[int, Any, dict[str, Any]]:
    """Returns (step, arrays, extras) of `step`, or of the latest whole checkpoint if it is None.

    In a run of one process a latest checkpoint that is damaged is set aside, as `damaged-<step>`,
    and the one before it is taken; a warning says so. Without one before it nothing is touched:
    what would be lost then is for people to decide.

    Args:
      step: which one.
      abstract: a tree of arrays or ShapeDtypeStructs with the wanted structure, dtypes and, where
        it has them, shardings; they need not be those of the run that saved.

    Raises:
      UserError: there is no such checkpoint, it cannot be read, or it holds another tree.
    """
    if step is not None:
      return self._restored(step, abstract)
    while True:
      step = self.latest()
      try:
        return self._restored(step, abstract)
      except _Damaged as e:
        if step == min(self.steps()) or paths.is_remote(self.dir) or jax.process_count() > 1:
          raise
        self._set_aside(int(step or 0), e)

  def _restored(self, step: int | None, abstract: Any) -> tuple[int, Any, dict[str, Any]]:
    if step is None or step not in self.steps():
      raise UserError(f"{self.dir}: no checkpoint of step {step}; there are {self.steps()}")
    wanted = ocp.args.Composite(
      arrays=ocp.args.StandardRestore(jax.tree.map(_abstract, abstract)),
      extras=ocp.args.JsonRestore(),
    )
    try:
      self._check_sums(step)
      self._check(step, abstract)
      restored = self._manager.restore(step, args=wanted)
    except (UserError, RuntimeError):  # The latter of the devices, or of another process.
      raise
    except Exception as e:  # What orbax raises about a damaged file has no class of its own.
      if disk.trouble(e) or any(word in str(e) for word in _NO_DAMAGE):
        raise
      before = max((s for s in self.steps() if s < step), default=None)
      start = "the start" if before is None else f"step {before}"
      reason = str(e).strip().partition("\n")[0][:160]
      raise _Damaged(
        f"{self.dir}/{step}: the checkpoint cannot be read ({type(e).__name__}: {reason}). If it is"
        f" damaged, remove this folder and run the same command: it goes on from {start}"
      ) from e
    return step, restored["arrays"], restored["extras"]

  def _set_aside(self, step: int, error: Exception) -> None:
    """Moves a damaged checkpoint out of the way of the same step, which is made again."""
    aside = self.dir / f"damaged-{step}"
    if aside.exists():
      shutil.rmtree(aside)
    (self.dir / str(step)).rename(aside)
    self._manager.reload()
    reason = str(error.__cause__).strip().partition("\n")[0][:160]
    logging.warning(
      "%s/%d: the checkpoint is damaged (%s) and was moved to %s; going on from step %s",
      *(self.dir, step, reason, aside.name, self.latest()),
    )

  def latest(self) -> int | None:
    """Returns the latest complete step; None if there is none."""
    self.wait()
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Returns the complete step with the greatest score; None without scores."""
    self.wait()
    return self._manager.best_step() if self._keep_best else None

  def steps(self) -> list[int]:
    """Returns the complete steps that are still there, in order."""
    self.wait()
    return sorted(self._manager.all_steps())

  def close(self) -> None:
    """Ends what is under way."""
    self._manager.close()

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *exc) -> None:
    self.close()

  def _check_sums(self, step: int) -> None:
    """Looks at every file; each process reads its share and all of them learn what is wrong."""
    if paths.is_remote(self.dir):
      return
    share = (runtime.index(), runtime.count())
    found = []
    for item in ("arrays", "extras", "metrics"):
      if name := sums.wrong(self.dir / str(step) / item, share=share):
        found.append(f"{item}/{name}")
    everywhere = sorted(name for names in runtime.gather(found) for name in names)
    if everywhere:
      raise ChangedFileError(f"{everywhere[0]} is not the file that was written")

  def _check(self, step: int, abstract: Any) -> None:
    wrong = tree_lib.diff(abstract, self._manager.item_metadata(step).arrays.tree)
    if wrong:
      raise UserError(f"{self.dir}/{step} does not fit this model:\n{wrong}")


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
  """Returns who writes and reads what; "metrics" are orbax's own, from which it takes the best."""
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  json, metrics = _SummedJson(), _SummedJson("metrics")
  for item, handler, args in (
    ("arrays", _SummedArrays(), (ocp.args.StandardSave, ocp.args.StandardRestore)),
    ("extras", json, (ocp.args.JsonSave, ocp.args.JsonRestore)),
    ("metrics", metrics, (ocp.args.JsonSave, ocp.args.JsonRestore)),
  ):
    for kind in args:
      registry.add(item, kind, handler)
  return registry


def _is_news(record: logging.LogRecord) -> bool:
  """Leaves out tracebacks that orbax's threads print of errors which `wait` and `save` raise."""
  return not (record.exc_info and "orbax" in pathlib.PurePath(record.pathname).parts)


def _score(metrics: Mapping[str, float]) -> float:
  return metrics["score"]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Gives a leaf without a sharding the first device, whatever it was saved on."""
  sharding = leaf.sharding if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
