# SPDX-License-Identifier: Apache-2.0
"""train: trains the auditor with GRPO against the target and the references.

The trained checkpoints then ask: `sample_attempts` is the auditor's inference pass.
"""

import dataclasses
import functools
import pathlib

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import store
from auditdm_jax.core.checkpoint import Checkpointer
from auditdm_jax.core.config import build
from auditdm_jax.rl import grpo, reward, rollout, trainer
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.learner import Learner, OptimConfig
from auditdm_jax.stages import attempts as attempts_lib
from auditdm_jax.stages.attempts import Attempt, ModeKey
from auditdm_jax.stages.context import Context

FOLDER = "train"


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir) as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> dict:
  """Trains to config.optim.steps; resumes."""
  if (found := ctx.done(FOLDER)) is not None:
    return found
  train_auditor(ctx, ctx.bank(), folder=FOLDER, steps=ctx.config.optim.steps)
  rows = (
    ctx.config.optim.steps * sum(ctx.config.rollout.prompts.values()) * ctx.config.grpo.group_size
  )
  return ctx.finish(FOLDER, {"steps": ctx.config.optim.steps, "probes": rows})


def train_auditor(ctx: Context, bank: ModelBank, *, folder: str, steps: int, start=None) -> Learner:
  """One GRPO training in <workdir>/<folder>, from the auditor of the config or params `start`."""
  workdir = ctx.workdir / folder
  learner = make_learner(ctx, steps=steps, start=start)
  key = ModeKey(ctx.seeds)
  trainer.train(
    make_rollout(ctx, bank), learner,
    trainer.TrainerConfig(
      steps=steps, checkpoint_every=ctx.config.checkpoint_every,
      harvest=tuple(s for s in ctx.config.harvest if s < steps),
      fingerprint=ctx.config_hash, seed=ctx.config.seed, arm=folder,
    ),
    reward=build(reward.RewardConfig, ctx.config.reward, name="config.reward"),
    key=key.of, workdir=workdir,
    confirmed=functools.partial(_confirmed, ctx, folder) if ctx.world.oracle else None,
  )  # fmt: skip
  return learner


def make_learner(ctx: Context, *, steps: int, start=None) -> Learner:
  optim = build(OptimConfig, ctx.config.optim, name="config.optim")
  vlm = ctx.auditor
  return Learner(
    vlm.cfg, build(grpo.GrpoConfig, ctx.config.grpo, name="config.grpo"),
    optim=dataclasses.replace(optim, steps=steps),
    mesh=mesh_lib.make_mesh(ctx.config.mesh.to_dict()),
    rules=[(regex, tuple(spec)) for regex, spec in ctx.config.rules],
    params=vlm.params if start is None else start,
    banned=vlm.tokenizer.unsampled_ids(vlm.stop_ids),
  )  # fmt: skip


def make_rollout(ctx: Context, bank: ModelBank) -> rollout.Rollout:
  return rollout.Rollout(
    build(rollout.RolloutConfig, ctx.config.rollout, name="config.rollout"), ctx.auditor,
    pool=ctx.pool("images"), images=ctx.images, bank=bank, cache=ctx.cache,
    client=lambda: ctx.client, seed=ctx.config.seed, temperature=ctx.config.grpo.temperature,
  )  # fmt: skip


def _confirmed(ctx: Context, arm: str, t: Trajectory) -> bool:
  if t.verdict is None:
    return False
  return attempts_lib.truth_of(ctx, _attempt(t, arm=arm, step=0, seed=0)).confirmed


def _attempt(t: Trajectory, *, arm: str, step: int, seed: int) -> Attempt:
  return Attempt(rollout.probe_of(t, arm=arm, step=step, seed=seed), t.verdict)


def checkpoints(ctx: Context) -> list[int]:
  """Steps of the trained auditors that discovery harvests from, in order."""
  with Checkpointer(ctx.workdir / FOLDER / "checkpoints") as found:
    wanted = {*ctx.config.harvest, ctx.config.optim.steps}
    return [s for s in found.steps() if s in wanted]


def load_attempts(ctx: Context, folder: str = FOLDER) -> list[Attempt]:
  """Every completion of a GRPO training as an attempt; invalid ones (nobody's fault) are left out."""
  rows = store.Records(ctx.workdir / folder).read(trainer.RECORDS)
  return [
    Attempt(Probe.from_dict(r["probe"]), Verdict.from_dict(r["verdict"]) if r["verdict"] else None)
    for r in rows
    if not r["invalid"]
  ]


class Asker:
  """Asks with an auditor's checkpoint: one probe per image, strategies in the config's shares."""

  def __init__(self, ctx: Context, bank: ModelBank, *, folder: str = FOLDER):
    self._ctx, self._folder = ctx, folder
    self._rollout = make_rollout(ctx, bank)
    self._learner = make_learner(ctx, steps=1)

  def params(self, step: int | None):
    """The untrained auditor (None) or the one after `step` updates."""
    if step is None:
      return self._ctx.auditor.params
    return self._load(step)

  @functools.lru_cache(maxsize=8)  # noqa: B019
  def _load(self, step: int):
    directory = self._ctx.workdir / self._folder / "checkpoints"
    return trainer.load_params(directory, step, self._learner)

  def ask(
    self, step: int | None, n: int, *, arm: str, stream: int, strategies=None
  ) -> list[Attempt]:
    """`n` attempts, in chunks of one static shape; a pure function of the arguments.

    Args:
      step: of the checkpoint, None = untrained.
      n: how many.
      arm: name in the records.
      stream: separates draws; images follow from it.
      strategies: {strategy: prompts per chunk}, default the config's rollout mix.
    """
    mix = dict(strategies or self._rollout.config.prompts)
    group = self._ctx.config.grpo.group_size
    names = [s for s, k in mix.items() for _ in range(k * group)]
    out: list[Attempt] = []
    chunk = 0
    while len(out) < n:
      # Which images: the walk through the pool goes on where this arm's last chunk ended.
      first = (stream * 97 + chunk) * len(names)
      prompts = self._rollout.make_prompts(names, first=first)
      done = self._rollout.trajectories(
        self.params(step), prompts, group=1, stream=1_000_003 + stream * 64 + chunk
      )
      keep = np.random.default_rng((self._ctx.config.seed, stream, chunk)).permutation(len(done))
      done = [done[int(i)] for i in sorted(keep[: n - len(out)])]
      out += [
        _attempt(t, arm=arm, step=step or 0, seed=self._ctx.config.seed)
        for t in self._rollout.answer(done)
      ]
      chunk += 1
    return out
