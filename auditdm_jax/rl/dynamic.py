# SPDX-License-Identifier: Apache-2.0
"""Dynamic sampling: a batch of groups that have something to teach (DAPO, arXiv:2503.14476).

A group whose rewards are all equal has no advantages. With dynamic sampling on, a step draws more
rounds of prompts until each strategy has its number of live groups, or the rounds are used up:

  fresh live groups -> carried live groups, the youngest first -> fresh dead groups

fill the batch in this order, so that its shape is the same in every step. Live groups that are left
over wait for a later step, if they are not too old by then. A carried group was sampled by an older
auditor: its advantages are those of its own step, and the loss needs the TIS weight.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from auditdm_jax.core.config import UserError
from auditdm_jax.rl.batch import AuditorReply


@dataclasses.dataclass(frozen=True)
class DynamicConfig:
  """Dynamic sampling; off by default, which is plain GRPO.

  Attributes:
    rounds: rounds of prompts that a step may draw beside the first; 0 = off.
    max_age: steps that a surplus live group may wait; 0 = none is carried.
  """

  rounds: int = 0
  max_age: int = 0

  def __post_init__(self):
    for name, value in vars(self).items():
      if value < 0:
        raise UserError(f"rollout.dynamic.{name}={value}: must be at least 0")
    if self.max_age and not self.rounds:
      raise UserError("rollout.dynamic.max_age: without rounds there is no surplus to carry")


@dataclasses.dataclass(frozen=True)
class Group:
  """What the learner needs of the samples of one prompt.

  Attributes:
    strategy: how the probes were made.
    source_image_id: the prompt's image.
    step: at which it was drawn.
    turns: per sample; () for an invalid one.
    advantages: per sample.
  """

  strategy: str
  source_image_id: str
  step: int
  turns: tuple[tuple[AuditorReply, ...], ...]
  advantages: tuple[float, ...]

  @property
  def is_live(self) -> bool:
    """Whether there is anything to learn from it."""
    return any(self.advantages)

  def to_dict(self) -> dict[str, Any]:
    """For the checkpoint; survives JSON bit for bit."""
    turns = [[_turn_to_dict(turn) for turn in sample] for sample in self.turns]
    return {f.name: vars(self)[f.name] for f in dataclasses.fields(self)} | {"turns": turns}

  @classmethod
  def from_dict(cls, d: Mapping[str, Any]) -> "Group":
    turns = tuple(tuple(_turn_from_dict(turn) for turn in sample) for sample in d["turns"])
    return cls(**{**d, "turns": turns, "advantages": tuple(d["advantages"])})


class Carry:
  """Fills batches; holds the live groups that wait for one."""

  def __init__(self, config: DynamicConfig, counts: Mapping[str, int]):
    """Takes the settings and the number of groups per strategy in a batch."""
    self._config, self._counts = config, dict(counts)
    self._waiting: list[Group] = []

  def is_enough(self, fresh: Sequence[Group], step: int) -> bool:
    """Whether a batch can be filled with live groups, or dynamic sampling is off."""
    if not self._config.rounds:
      return True
    live = [g.strategy for g in (*fresh, *self._young(step)) if g.is_live]
    return all(live.count(strategy) >= count for strategy, count in self._counts.items())

  def fill(
    self, fresh: Sequence[Group], *, step: int, rounds: int
  ) -> tuple[list[Group], dict[str, float]]:
    """The step's batch, and what became of the groups; keeps the surplus.

    Args:
      fresh: groups that the step drew, in their order.
      step: of training.
      rounds: how many the step drew.
    """
    if not self._config.rounds:
      return list(fresh), {}
    carried = self._young(step)
    expired = len(self._waiting) - len(carried)
    batch: list[Group] = []
    surplus: list[Group] = []
    for strategy, count in self._counts.items():
      mine = [g for g in fresh if g.strategy == strategy]
      live = [g for g in mine if g.is_live] + [g for g in carried if g.strategy == strategy]
      dead = [g for g in mine if not g.is_live]
      batch += [*live, *dead][:count]
      surplus += live[count:]
    # The youngest first, which `sorted` keeps stable in the order they were drawn.
    self._waiting = sorted(surplus, key=lambda g: -g.step) if self._config.max_age else []
    return batch, {
      "dynamic/rounds": float(rounds),
      "dynamic/live": sum(g.is_live for g in batch) / len(batch),
      "dynamic/carried": sum(g.step < step for g in batch) / len(batch),
      "dynamic/waiting": float(len(self._waiting)),
      "dynamic/expired": float(expired + len(surplus) - len(self._waiting)),
    }

  def state(self) -> list[dict[str, Any]]:
    """For the checkpoint."""
    return [group.to_dict() for group in self._waiting]

  def load(self, state: Sequence[Mapping[str, Any]]) -> None:
    """Restores `state`."""
    self._waiting = [Group.from_dict(d) for d in state]

  def _young(self, step: int) -> list[Group]:
    return [g for g in self._waiting if step - g.step <= self._config.max_age]


def _turn_to_dict(turn: AuditorReply) -> dict[str, Any]:
  drawn = {name: vars(turn)[name][: turn.length].tolist() for name in ("tokens", "logprobs")}
  return {f.name: vars(turn)[f.name] for f in dataclasses.fields(turn)} | drawn


def _turn_from_dict(d: Mapping[str, Any]) -> AuditorReply:
  return AuditorReply(
    **{
      **d,
      "prompt": tuple(d["prompt"]),
      "tokens": np.array(d["tokens"], np.int32),
      "logprobs": np.array(d["logprobs"], np.float32),
    }
  )
