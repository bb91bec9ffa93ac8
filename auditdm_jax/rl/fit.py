# SPDX-License-Identifier: Apache-2.0
"""The GRPO loop: rollout, update, log, checkpoint; resumed exactly.

A checkpoint holds the train state and the novelty counts and nothing random: every draw is a
function of (seed, step, …). On resume, records and metrics after the checkpoint's step are dropped
and written again, so nothing is lost and nothing is there twice.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax

from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core import store
from auditdm_jax.core.checkpoint import Checkpointer
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import reward as reward_lib
from auditdm_jax.rl import collect as rollout_lib
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.collect import Rollout

RECORDS = "completions"
_WINDOW = 10  # steps that the live line averages over


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
  """The loop around `rollout.collect` and `Learner.update`.

  Attributes:
    steps: updates.
    checkpoint_every: steps between checkpoints.
    harvest: steps whose checkpoints stay for discovery, beside the last.
    fingerprint: of the config; a checkpoint of another one is refused.
    seed: named in every record.
    arm: name of this training in the records.
  """

  steps: int
  checkpoint_every: int
  harvest: tuple[int, ...]
  fingerprint: str
  seed: int
  arm: str = "grpo"


def train(
  rollout: Rollout,
  learner: Learner,
  config: TrainerConfig,
  *,
  reward: reward_lib.RewardConfig,
  key: Callable[[str, str], str],
  workdir: pathlib.Path,
  confirmed: Callable[[Trajectory], bool] | None = None,
) -> None:
  """Trains up to config.steps, from the latest checkpoint of `workdir` if there is one.

  Args:
    rollout: samples and asks.
    learner: holds the initial auditor.
    config: the loop.
    reward: which terms count.
    key: (question, consensus) -> what novelty counts.
    workdir: for checkpoints, metrics and records.
    confirmed: for the log only: whether an independent oracle confirms a find.
  """
  grpo = learner.config.grpo
  novelty = reward_lib.Novelty(reward)
  keep = sorted({*config.harvest, config.steps})
  with Checkpointer(workdir / "checkpoints", keep=2, keep_steps=keep) as checkpoints:
    first = _resume(checkpoints, learner, novelty, config.fingerprint)
    records = store.Records(workdir)
    records.rewind(RECORDS, first - 1)
    if first >= config.steps:
      return
    writer = metrics_lib.Writer(workdir, "train", resume_step=first)
    progress = metrics_lib.Progress(config.steps, config.arm, done=first)
    recent: deque[Mapping[str, float]] = deque(maxlen=_WINDOW)
    for step in range(first, config.steps):
      collected = rollout_lib.collect(
        rollout, learner.params, step=step, grpo=grpo, reward=reward, novelty=novelty, key=key,
        row_multiple=learner.row_multiple,
      )  # fmt: skip
      with rollout.timer("learn"):
        learned = learner.update(collected.batch)
      novelty.update(collected.finds)
      rows = [
        rollout_lib.record(t, step=step, arm=config.arm, seed=config.seed)
        for t in collected.trajectories
      ]
      records.append(RECORDS, rows)
      row = dict(collected.metrics) | {f"learner/{k}": v for k, v in learned.items()}
      if confirmed is not None:
        right = [confirmed(t) for t in collected.trajectories]
        row["confirmed_rate"] = sum(right) / len(right)
      seconds = rollout.timer.pop()
      row |= {f"seconds/{k}": v for k, v in seconds.items()}
      row["tokens_per_s"] = collected.metrics["tokens"] / max(sum(seconds.values()), 1e-9)
      writer.write(step + 1, row)
      recent.append(row)
      progress.update(step + 1, **_shown(recent))
      if (step + 1) % config.checkpoint_every == 0 or step + 1 in keep:
        checkpoints.save(
          step + 1, _leaves(learner.state),
          {"fingerprint": config.fingerprint, "novelty": novelty.state()},
        )  # fmt: skip
    progress.close()
    writer.close()


def _resume(checkpoints: Checkpointer, learner: Learner, novelty, fingerprint: str) -> int:
  """Restores the latest checkpoint; returns the number of steps done."""
  if checkpoints.latest() is None:
    return 0
  step, arrays, extras = checkpoints.restore(None, _leaves(learner.abstract_state()))
  if extras["fingerprint"] != fingerprint:
    raise UserError(
      f"{checkpoints.dir}: the checkpoint of step {step} was made with another config; use another"
      " --workdir, or remove that folder"
    )
  learner.state = _unleaves(arrays, learner.state)
  novelty.load(extras["novelty"])
  return step


def load_params(checkpoint_dir: pathlib.Path, step: int, learner: Learner) -> Any:
  """The auditor's parameters (a tree, with the frozen ones) as they were after `step` updates."""
  with Checkpointer(checkpoint_dir) as checkpoints:
    _, arrays, _ = checkpoints.restore(step, _leaves(learner.abstract_state()))
  return learner.params_of(_unleaves(arrays, learner.state))


def _leaves(state: Any) -> dict[str, Any]:
  """The state's arrays by place: a checkpoint does not depend on optax's classes."""
  return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _unleaves(arrays: Mapping[str, Any], like: Any) -> Any:
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[k] for k in sorted(arrays)])


def _shown(recent: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Means of the last steps for the live line."""
  names = {
    "finds": "find_rate", "confirmed": "confirmed_rate", "live": "frac_live", "tok/s": "tokens_per_s",
  }  # fmt: skip
  return {
    short: sum(r[name] for r in recent) / len(recent)
    for short, name in names.items()
    if name in recent[-1]
  }
