# SPDX-License-Identifier: Apache-2.0
"""The loop: roll out, update, write down, checkpoint.

A run that is started again goes on as if it had not stopped. A checkpoint holds the train state,
what novelty and dynamic sampling carry, counts, and nothing random: every draw is a function of
(seed, step, …). It is written in the background: a kill goes back to the last one that is complete,
or to the one before if that one is damaged, and the rows of the steps after it are removed on
resume, since they are written again.

Several processes do the same steps on the same values (`core.runtime`): each writes its share of
the completions to a shard of its own, the first one everything else. They stop together.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
from typing import Any

from auditdm_jax.core import checkpoint, jsonio, machine, metrics, paths, runtime
from auditdm_jax.core.config import UserError, check, did_you_mean
from auditdm_jax.core.records import Records
from auditdm_jax.core.wandb_log import WandbConfig
from auditdm_jax.rl import flops
from auditdm_jax.rl.batch import LearnerBatch
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.rollout import Rollout
from auditdm_jax.rl.stopping import NEVER, LiveGroups, StopConfig
from auditdm_jax.vlm import Vlm, save_vlm

COMPLETIONS = "completions"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How a run is kept.

  Attributes:
    checkpoint_every: steps between checkpoints; the last step always gets one.
    keep: how many of the latest stay.
    best: a metric; the checkpoint with its greatest mean since the one before stays too. "" = none.
    harvest: numbers of updates after which the auditor is stored as a model of its own.
    peak_tflops: of one device, to say which share of it is used; 0 = by its kind, if that is known.
  """

  checkpoint_every: int = 10
  keep: int = 2
  best: str = ""
  harvest: tuple[int, ...] = ()
  peak_tflops: float = 0.0

  def __post_init__(self):
    check(vars(self), "checkpoints", "checkpoint_every", "keep", least=1)
    check(vars(self), "checkpoints", "peak_tflops", least=0)
    for updates in self.harvest:
      check({"harvest": updates}, "checkpoints", least=1)


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a finished run leaves.

  Attributes:
    steps: updates made, over all resumptions.
    completions: samples that were drawn, over all resumptions.
    probes: probes that were put to the bank, over all resumptions.
    best: step of the best checkpoint; None without `TrainConfig.best`.
    auditors: stored auditors by number of updates; the last is the final one.
  """

  steps: int
  completions: int
  probes: int
  best: int | None
  auditors: dict[int, pathlib.Path]


def train(
  config: TrainConfig,
  rollout: Rollout,
  learner: Learner,
  *,
  auditor: Vlm,
  workdir: str | os.PathLike,
  name: str = "train",
  identity: Any = None,
  stop: StopConfig = NEVER,
  wandb: WandbConfig = WandbConfig(),  # noqa: B008  Frozen.
) -> TrainResult:
  """Trains the auditor for `learner.config.optim.steps` steps, or what is left of them.

  Args:
    config: checkpoints.
    rollout: makes the batches.
    learner: holds the auditor being trained.
    auditor: the initial auditor: what the stored ones are besides their params.
    workdir: gets checkpoints/<name>, metrics, records/completions and auditors/<name>.
    name: of the run.
    identity: what else makes it this run; with another one it does not go on from a checkpoint.
    stop: when it gives up; by default never.
    wandb: where its numbers go besides the workdir.

  Returns:
    What was made.

  Raises:
    UserError: the checkpoint is of another config, or too few groups are live; then there is a
      checkpoint of the last step.
    KeyboardInterrupt: Ctrl-C, after a checkpoint of the step in progress.
    SystemExit: SIGTERM, likewise.
  """
  run = Run(
    config,
    rollout,
    learner,
    auditor=auditor,
    workdir=paths.as_path(workdir),
    name=name,
    identity=identity,
    stop=stop,
    wandb=wandb,
  )
  with contextlib.closing(run), _asked_to_stop() as asked:
    first, steps = run.resume(), learner.config.optim.steps
    run.check_live(first)
    with contextlib.closing(metrics.Progress(steps, name, done=first)) as progress:
      for step in range(first, steps):
        row = run.step(step)
        done, stops = step + 1, any(runtime.gather(asked.signum))
        run.keep(done, force=done == steps or stops or run.gives_up(done))
        progress.update(done, **_shown(row))
        if stops:
          break
        run.check_live(done)
    if signum := max(runtime.gather(asked.signum)):  # Also while the last step was stored.
      run.wait()
      _leave(signum)
    return run.result()


class Run:
  """The files of one run."""

  def __init__(
    self,
    config: TrainConfig,
    rollout: Rollout,
    learner: Learner,
    *,
    auditor: Vlm,
    workdir: pathlib.Path,
    name: str,
    identity: Any,
    stop: StopConfig,
    wandb: WandbConfig,
  ):
    self._identity, self._wandb = identity, wandb
    self._live = LiveGroups(stop, group_size=learner.config.grpo.group_size)
    self._config, self._rollout, self._learner, self._auditor = config, rollout, learner, auditor
    self._workdir, self._name = workdir, name
    self._checkpoints = checkpoint.Checkpointer(
      workdir / "checkpoints" / name, keep=config.keep, keep_best=bool(config.best)
    )
    self._records = Records(workdir / "records" / name, runtime.index(), processes=runtime.count())
    self._writer: metrics.Writer | None = None
    self._compiled = machine.Compilations()
    self._counts = {"completions": 0, "probes": 0}
    self._window = metrics.Means()  # of the metric that decides which checkpoint is the best

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
    self._compiled.close()
    self._checkpoints.close()

  def wait(self) -> None:
    """Returns when the last checkpoint is on disk."""
    self._checkpoints.wait()

  def resume(self) -> int:
    """Number of updates already made; rows of later steps are removed."""
    first = self._checkpoints.latest() or 0
    if first:
      first, self._learner.state, extras = self._checkpoints.restore(
        None, self._learner.abstract_state()
      )
      if extras["config"] != self._fingerprint():
        raise UserError(f"{self._checkpoints.dir}: made with other settings; use another --workdir")
      self._rollout.load(extras["rollout"])
      self._counts = {name: int(count) for name, count in extras["counts"].items()}
      self._window.load(extras["window"])
      self._live.load(extras["live"])
    self._records.rewind(COMPLETIONS, first - 1)
    if runtime.is_main():
      self._writer = metrics.Writer(
        self._workdir, self._name, resume_step=first - 1, wandb=self._wandb
      )
    return first

  def step(self, step: int) -> dict[str, float]:
    """One GRPO step, written down; returns its metrics."""
    timer = metrics.Timer()
    with timer("total"):
      result = self._rollout.step(self._learner.sampling_params(), step)
      with timer("learner"):
        row = result.metrics | self._learner.update(result.batch)
    for name in self._counts:
      self._counts[name] += int(row[name])
    if self._config.best:
      self._window.add(self._config.best, self._metric(row))
    self._live.add(row)
    seconds = result.seconds | timer.seconds
    runtime.agree([result.records, row], f"step {step}")
    self._records.append(COMPLETIONS, runtime.mine(result.records))
    row |= {f"seconds/{phase}": value for phase, value in seconds.items()}
    row |= self._machine(row["tokens"], result.flops | self._work(result.batch), seconds)
    if self._writer is not None:
      self._writer.write(step, row)
    return row

  def _metric(self, row: dict[str, float]) -> float:
    if self._config.best not in row:
      hint = did_you_mean(self._config.best, row)
      raise UserError(f"config.checkpoints.best={self._config.best!r}: no such metric{hint}")
    return row[self._config.best]

  def _work(self, batch: LearnerBatch) -> dict[str, float]:
    grpo = self._learner.config.grpo
    once = flops.learning(self._learner.config.model, batch, kl=bool(grpo.kl_coef))
    return {"learner": once * grpo.updates}

  def _machine(
    self, tokens: float, work: dict[str, float], seconds: dict[str, float]
  ) -> dict[str, float]:
    """Speed, and the share of the devices' peak where that is known."""
    out = {
      "machine/tokens_per_s": tokens / seconds["total"],
      "machine/peak_memory_gib": machine.peak_memory() / 2**30,
      "machine/compilations": float(self._compiled.count),
    }
    out |= {f"{metrics.FLOPS}{phase}": value for phase, value in work.items()}
    peak = self._config.peak_tflops * 1e12 or machine.peak_flops()
    if peak:
      peak *= self._learner.mesh.size
      out |= {f"machine/mfu/{p}": w / (peak * max(seconds[p], 1e-9)) for p, w in work.items()}
    return out

  def keep(self, done: int, *, force: bool) -> None:
    """Stores the auditor where it is to be harvested, and a checkpoint when one is due."""
    if done in self._config.harvest or done == self._learner.config.optim.steps:
      extras = {k: v for k, v in self._auditor.extras.items() if k != "tower"} | {"updates": done}
      params = self._learner.params
      if runtime.count() > 1:  # The writer of one process takes a leaf at a time.
        params = runtime.fetch(params)
      if runtime.is_main():
        trained = dataclasses.replace(self._auditor, params=params, extras=extras)
        with paths.writing(self._folder(done)) as folder:
          save_vlm(folder, trained)
    due = done % self._config.checkpoint_every == 0
    if force or due:
      # When a signal forces one, its window is a part of that of a run that was not stopped.
      whole = due or done == self._learner.config.optim.steps
      score = self._window.result().get(self._config.best) if whole else None
      if due:
        self._window = metrics.Means()
      extras = {
        "config": self._fingerprint(),
        "rollout": self._rollout.state(),
        "counts": self._counts,
        "window": self._window.state(),
        "live": self._live.state(),
      }
      self._checkpoints.save(done, self._learner.state, extras, score=score)

  def gives_up(self, done: int) -> bool:
    """Whether training should stop after so many updates, though there are more to make."""
    return done < self._learner.config.optim.steps and bool(self._live.reason())

  def check_live(self, done: int) -> None:
    """Raises a UserError if training should stop here, once the checkpoint is on disk."""
    if self.gives_up(done):
      self.wait()
      raise UserError(
        f"{self._name} stopped after step {done}, of which there is a checkpoint:"
        f" {self._live.reason()}"
      )

  def result(self) -> TrainResult:
    """What is there, once it is all on disk."""
    runtime.barrier()
    return TrainResult(
      steps=self._learner.config.optim.steps,
      best=self._checkpoints.best(),
      auditors=self.auditors(),
      **self._counts,
    )

  def auditors(self) -> dict[int, pathlib.Path]:
    """Stored auditors by number of updates."""
    wanted = sorted({*self._config.harvest, self._learner.config.optim.steps})
    return {n: self._folder(n) for n in wanted if self._folder(n).exists()}

  def _folder(self, done: int) -> pathlib.Path:
    return self._workdir / "auditors" / self._name / f"{done:06d}"

  def _fingerprint(self) -> str:
    """What a run must not change between its parts."""
    static = self._learner.config
    return jsonio.canonical_hash(
      [static.grpo, static.optim, static.banned, self._identity, *self._rollout.identity()]
    )


def _shown(row: dict[str, float]) -> dict[str, float]:
  """What the progress line says."""
  shown = {"reward": row["reward"], "live groups": row["frac_live"]}
  if "oracle_success" in row:
    shown["oracle"] = row["oracle_success"]
  return shown | {"tokens/s": round(row["machine/tokens_per_s"])}


class _Stop:
  """The first signal that came, 0 = none so far."""

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
    signal.signal(signum, old[signum])

  for signum in (signal.SIGINT, signal.SIGTERM):
    old[signum] = signal.signal(signum, handle)
  try:
    yield stop
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


def _leave(signum: int) -> None:
  if signum == signal.SIGTERM:
    raise SystemExit(128 + signal.SIGTERM)
  raise KeyboardInterrupt
