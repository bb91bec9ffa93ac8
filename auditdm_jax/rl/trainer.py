# SPDX-License-Identifier: Apache-2.0
"""The loop: roll out, update, write down, checkpoint.

A run that is started again goes on as if it had not stopped. A checkpoint holds the train state,
the counts of novelty and of probes, and nothing random: every draw is a function of (seed, step,
…). Rows of steps after the checkpoint are removed on resume, since they are written again.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
from typing import Any

import numpy as np

from auditdm_jax.core import checkpoint, metrics, store
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.rollout import Rollout
from auditdm_jax.vlm import Vlm, save_vlm

COMPLETIONS = "completions"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How a run is kept.

  Attributes:
    checkpoint_every: steps between checkpoints; the last step always gets one.
    keep: how many of the latest stay.
    harvest: numbers of updates after which the auditor is stored as a model of its own.
  """

  checkpoint_every: int = 10
  keep: int = 2
  harvest: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a finished run leaves.

  Attributes:
    steps: updates made, over all resumptions.
    probes: probes that were put to the bank, over all resumptions.
    auditors: stored auditors by number of updates; the last is the final one.
  """

  steps: int
  probes: int
  auditors: dict[int, pathlib.Path]


def train(
  cfg: TrainConfig,
  rollout: Rollout,
  learner: Learner,
  *,
  auditor: Vlm,
  workdir: str | os.PathLike,
  name: str = "train",
) -> TrainResult:
  """Trains the auditor for `learner.config.optim.steps` steps, or what is left of them.

  Args:
    cfg: checkpoints.
    rollout: makes the batches.
    learner: holds the auditor being trained.
    auditor: the initial auditor: what the stored ones are besides their params.
    workdir: gets checkpoints/<name>, metrics, records/completions and auditors/<name>.
    name: of the run.

  Returns:
    What was made.

  Raises:
    UserError: the checkpoint is of another config.
    KeyboardInterrupt: Ctrl-C, after a checkpoint of the step in progress.
    SystemExit: SIGTERM, likewise.
  """
  run = _Run(cfg, rollout, learner, auditor=auditor, workdir=pathlib.Path(workdir), name=name)
  with contextlib.closing(run), _asked_to_stop() as stop:
    first, steps = run.resume(), learner.config.optim.steps
    with contextlib.closing(metrics.Progress(steps, name, done=first)) as progress:
      for step in range(first, steps):
        row = run.step(step)
        done = step + 1
        run.keep(done, force=done == steps or stop.is_set())
        progress.update(done, **_shown(row))
        if stop.is_set():
          _leave(stop)
  return TrainResult(steps, run.probes, run.auditors())


class _Run:
  """The files of one run."""

  def __init__(
    self,
    cfg: TrainConfig,
    rollout: Rollout,
    learner: Learner,
    *,
    auditor: Vlm,
    workdir: pathlib.Path,
    name: str,
  ):
    self._cfg, self._rollout, self._learner, self._auditor = cfg, rollout, learner, auditor
    self._workdir, self._name = workdir, name
    self._checkpoints = checkpoint.Checkpointer(workdir / "checkpoints" / name, keep=cfg.keep)
    self._records = store.Records(workdir / "records" / name)
    self._writer: metrics.Writer | None = None
    self.probes = 0

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
    self._checkpoints.close()

  def resume(self) -> int:
    """Number of updates already made; rows of later steps are removed."""
    first = self._checkpoints.latest() or 0
    if first:
      _, self._learner.state, extras = self._checkpoints.restore(
        first, self._learner.abstract_state()
      )
      if extras["config"] != self._fingerprint():
        raise UserError(f"{self._checkpoints.dir}: made with other settings; use another --workdir")
      self._rollout.novelty.load(extras["novelty"])
      self.probes = extras["probes"]
    self._records.rewind(COMPLETIONS, first - 1)
    self._writer = metrics.Writer(self._workdir, self._name, resume_step=first - 1)
    return first

  def step(self, step: int) -> dict[str, float]:
    """One GRPO step, written down; returns its metrics."""
    timer = metrics.Timer()
    with timer("total"):
      result = self._rollout.step(self._learner.params, step)
      with timer("learner"):
        row = result.metrics | self._learner.update(result.batch)
    seconds = result.seconds | timer.seconds
    self.probes += int(row["probes"])
    self._records.append(COMPLETIONS, result.records)
    row |= {f"seconds/{phase}": value for phase, value in seconds.items()}
    row["seconds/tokens_per_s"] = row["tokens"] / seconds["total"]
    self._writer.write(step, row)
    return row

  def keep(self, done: int, *, force: bool) -> None:
    """Stores the auditor where it is to be harvested, and a checkpoint when one is due."""
    if done in self._cfg.harvest or done == self._learner.config.optim.steps:
      extras = {k: v for k, v in self._auditor.extras.items() if k != "tower"} | {"updates": done}
      trained = dataclasses.replace(self._auditor, params=self._learner.params, extras=extras)
      save_vlm(self._folder(done), trained)
    if force or done % self._cfg.checkpoint_every == 0:
      extras = {
        "config": self._fingerprint(),
        "novelty": self._rollout.novelty.state(),
        "probes": self.probes,
      }
      self._checkpoints.save(done, self._learner.state, extras)

  def auditors(self) -> dict[int, pathlib.Path]:
    """Stored auditors by number of updates."""
    wanted = sorted({*self._cfg.harvest, self._learner.config.optim.steps})
    return {n: self._folder(n) for n in wanted if self._folder(n).exists()}

  def _folder(self, done: int) -> pathlib.Path:
    return self._workdir / "auditors" / self._name / f"{done:06d}"

  def _fingerprint(self) -> str:
    """What a run must not change between its parts."""
    static = self._learner.config
    return store.canonical_hash(
      [static.grpo, static.optim, static.banned, *self._rollout.identity()]
    )


def _shown(row: dict[str, float]) -> dict[str, float]:
  """What the progress line says."""
  shown = {"reward": row["reward"], "live": row["frac_live"]}
  if "oracle_success" in row:
    shown["oracle"] = row["oracle_success"]
  return shown | {"tokens/s": float(np.round(row["seconds/tokens_per_s"]))}


class _Stop(threading.Event):
  """Set by the first signal; keeps which one it was."""

  signum: int = 0


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
  """The first SIGINT or SIGTERM asks to stop after the step; the second one stops at once."""
  stop = _Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  old: dict[int, Any] = {}

  def handle(signum, frame):
    del frame
    stop.signum = signum
    stop.set()
    signal.signal(signum, old[signum])

  for signum in (signal.SIGINT, signal.SIGTERM):
    old[signum] = signal.signal(signum, handle)
  try:
    yield stop
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


def _leave(stop: _Stop) -> None:
  if stop.signum == signal.SIGTERM:
    raise SystemExit(128 + signal.SIGTERM)
  raise KeyboardInterrupt
