# SPDX-License-Identifier: Apache-2.0
"""GRPO of a model on questions whose answers are agreed on: a repair beside supervised learning.

A step of `train`:
  1. questions   `count` of new and replayed ones, the next of passes in shuffled order
  2. answers     the model as it now is answers each G times (`sampler`)
  3. reward      1 where the judge takes the answer for the agreed one, else 0 (`reward_of`)
  4. advantages  within the group of a question (`grpo.advantages`)
  5. update      `learner`

Where all G answers are right, or none is, a question teaches nothing. What the model never says
cannot be rewarded, so this repairs what it says sometimes. Nothing here knows an oracle.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
from typing import Any

import numpy as np

from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.core import checkpoint, jsonio, masked, metrics, paths, runtime, streams
from auditdm_jax.core.config import UserError, check
from auditdm_jax.core.wandb_log import WandbConfig
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl.batch import AuditorReply, LearnerBatch
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.rl.sight import Sight
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.text.styles import RawReply, Style

_NEW, _REPLAY = "new", "replay"
_ANSWER = "answer"  # The kind of reply.
_MULTIPLE = 8  # Of the tokens of a prompt, padding included.


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
  """GRPO on agreed answers.

  Attributes:
    questions: per step.
    max_new_tokens: longest answer; what is cut there is wrong.
    save_every: steps between checkpoints.
    grpo: group size and loss.
    optim: optimiser; `steps=0` = no such repair.
  """

  questions: int = 32
  max_new_tokens: int = 16
  save_every: int = 50
  grpo: grpo_lib.GrpoConfig = grpo_lib.GrpoConfig()
  optim: OptimConfig = OptimConfig(steps=0)

  def __post_init__(self):
    check(vars(self), "answering", "questions", "max_new_tokens", "save_every", least=1)


@dataclasses.dataclass(frozen=True)
class AgreedAnswer:
  """A question about an image, and the answer that is rewarded."""

  image_id: str
  question: str
  answer: str


def indices(seed: int, part: str, step: int, *, count: int, size: int) -> list[int]:
  """Returns the step's share of an endless walk through shuffled passes over `size` questions."""
  places = range(step * count, (step + 1) * count)
  orders = {
    p: streams.rng(seed, "answering", part, p).permutation(size)
    for p in {place // size for place in places}
  }
  return [int(orders[place // size][place % size]) for place in places]


def reward_of(said: Same, *, truncated: bool) -> float:
  """Returns 1 for the agreed answer and 0 for another; NaN where the judge is undecided.

  An answer that does not end is wrong whatever it says: whoever asks gets no answer.
  """
  if truncated:
    return 0.0
  return {Same.SAME: 1.0, Same.DIFFERENT: 0.0, Same.UNDECIDED: float("nan")}[said]


class Asked:
  """The questions of a step and the groups of answers to them.

  Attributes:
    learner: holds the model.
  """

  def __init__(
    self,
    config: AnsweringConfig,
    learner: Learner,
    *,
    sampler: Sampler,
    sight: Sight,
    judge: Judge,
    new: Sequence[AgreedAnswer],
    replay: Sequence[AgreedAnswer],
    share: float,
    style: Style,
    name: str,
    seed: int,
  ):
    """Takes the data and what answers, sees and judges.

    Args:
      config: sizes and the loss.
      learner: holds the model that is trained.
      sampler: of the same model.
      sight: what the model sees of images.
      judge: rewards.
      new: questions to learn.
      replay: questions that the model answers as it should, so that it does not forget.
      share: how much of a step is replay.
      style: how the model is asked, and how its answer is taken.
      name: of the run, on which the draws depend.
      seed: of the run.

    Raises:
      UserError: there are no questions to learn, or none to replay though `share` wants some.
    """
    if not new:
      raise UserError("there are no questions to learn to answer")
    old = min(round(share * config.questions), config.questions - 1)
    if old and not replay:
      raise UserError(f"a share of {share} is replay, but there are no questions to replay")
    self._config, self.learner, self._style = config, learner, style
    self._sampler, self._sight, self._judge = sampler, sight, judge
    self._parts = {_NEW: (new, config.questions - old)}
    if old:
      self._parts[_REPLAY] = (replay, old)
    self._name, self._seed = name, seed
    longest = max(len(self._prompt(x)) for part, _ in self._parts.values() for x in part)
    self._width = -(-longest // _MULTIPLE) * _MULTIPLE

  def _prompt(self, asked: AgreedAnswer) -> tuple[int, ...]:
    return self._sampler.prompt(self._style.put(asked.question))

  def step(self, step: int) -> tuple[LearnerBatch, dict[str, float]]:
    """Returns the batch of a step, and what its answers were."""
    asked = [
      part[i]
      for name, (part, count) in self._parts.items()
      for i in indices(self._seed, name, step, count=count, size=len(part))
    ]
    params, image_ids = self.learner.sampling_params(), [x.image_id for x in asked]
    groups = self._answers(params, step, asked, image_ids)
    rewards = self._rewards(asked, groups)
    grpo = self._config.grpo
    advantages = grpo_lib.advantages(rewards, std=grpo.std, eps=grpo.std_eps)
    new = rewards[: self._parts[_NEW][1]]
    row = {"reward": _mean(rewards), "reward/new": _mean(new)}
    row |= {name: s / n for name, (s, n) in grpo_lib.group_shares(rewards).items()}
    return self._pack(params, groups, advantages, image_ids), row

  def _answers(
    self, params: Any, step: int, asked: Sequence[AgreedAnswer], image_ids: Sequence[str]
  ) -> list[list[AuditorReply]]:
    n, size = len(asked), self._config.grpo.group_size
    return self._sampler.sample(
      params,
      [self._prompt(x) for x in asked],
      features=self._sight.features(params, image_ids),
      image_ids=image_ids,
      kind=_ANSWER,
      width=self._width,
      max_new_tokens=self._config.max_new_tokens,
      walk=("answering", self._name, step),
      turn=0,
      uids=np.arange(n, dtype=np.int32),
      samples=np.tile(np.arange(size, dtype=np.int32), (n, 1)),
    )

  def _rewards(
    self, asked: Sequence[AgreedAnswer], groups: Sequence[Sequence[AuditorReply]]
  ) -> np.ndarray:
    """Returns f64[B,G]."""
    pairs = [
      (x.question, self._short(reply, x.question), x.answer)
      for x, group in zip(asked, groups, strict=True)
      for reply in group
    ]
    replies = [reply for group in groups for reply in group]
    found = [
      reward_of(said, truncated=reply.truncated)
      for said, reply in zip(self._judge.compare_all(pairs), replies, strict=True)
    ]
    return np.array(found).reshape(len(asked), -1)

  def _short(self, reply: AuditorReply, question: str) -> str:
    """Returns the answer in a reply, taken as the audit takes it."""
    finish = "length" if reply.truncated else "stop"
    return self._style.short(RawReply(reply.text.strip(), finish), question).text or ""

  def _pack(
    self,
    params: Any,
    groups: Sequence[Sequence[AuditorReply]],
    advantages: np.ndarray,
    image_ids: Sequence[str],
  ) -> LearnerBatch:
    config = self._config
    per_row = self.learner.per_row(len(groups))
    part = batch_lib.pack_rows(
      [reply for group in groups for reply in group],
      advantages.ravel().tolist(),
      image=[i for i, group in enumerate(groups) for _ in group],
      rows=self.learner.padded(len(groups) * config.grpo.group_size // per_row),
      prompt_width=self._width,
      completion_width=config.max_new_tokens,
      per_row=per_row,
    )
    if self._sight.trains:
      pixels: Any = self._sight.pixels(image_ids)
      return LearnerBatch(None, pixels, (part,))
    features: Any = self._sight.features(params, image_ids)
    return LearnerBatch(features, None, (part,))


def _mean(rewards: np.ndarray) -> float:
  return float(masked.mean(rewards, np.isfinite(rewards)))


def train(
  asked: Asked,
  config: AnsweringConfig,
  *,
  workdir: str | os.PathLike,
  name: str,
  identity: Any,
  wandb: WandbConfig = WandbConfig(),  # noqa: B008  Frozen.
) -> Any:
  """Trains the learner's model for `config.optim.steps` steps, or what is left of them.

  Args:
    asked: makes the batches of `asked.learner`.
    config: of `asked`.
    workdir: gets checkpoints/<name> and metrics.
    name: of the run.
    identity: what makes it this run; with another one it does not go on from a checkpoint.
    wandb: where its numbers go besides the workdir.

  Returns:
    The tuned parameters, on the host.

  Raises:
    UserError: the checkpoint is of other questions or another config.
  """
  folder, learner, steps = paths.as_path(workdir), asked.learner, config.optim.steps
  own = jsonio.canonical_hash([dataclasses.asdict(config), identity])
  with contextlib.ExitStack() as stack:
    checkpoints = checkpoint.Checkpointer(folder / "checkpoints" / name, keep=1)
    stack.callback(checkpoints.close)
    first = checkpoints.latest() or 0
    if first:
      first, learner.state, extras = checkpoints.restore(None, learner.abstract_state())
      if extras["identity"] != own:
        raise UserError(
          f"{checkpoints.dir}: the checkpoint of step {first} is of other questions or another"
          " config; use another workdir or remove it"
        )
    writer = None
    if runtime.is_main():
      writer = metrics.Writer(folder, name, resume_step=first, wandb=wandb)
      stack.callback(writer.close)
    progress = stack.enter_context(contextlib.closing(metrics.Progress(steps, name, done=first)))
    for step in range(first, steps):
      batch, row = asked.step(step)
      row |= learner.update(batch)
      done = step + 1
      if writer:
        writer.write(done, row)
      if done % config.save_every == 0 or done == steps:
        checkpoints.save(done, learner.state, {"identity": own})
      progress.update(done, reward=row["reward/new"])
  return runtime.fetch(learner.params)
