# SPDX-License-Identifier: Apache-2.0
"""Reward terms as plain functions; each is logged on its own.

The default is the binary signal of AuditDM: 1 when the reply parses, the references agree on an
answer and the target says something else. Everything else is off unless a config names it. The
oracle of a synthetic world is no part of any term.

Novelty is a weight on the reward of a find, by the inverse frequency of its key among the finds so
far. It enters after the advantages were scaled by the std of the unweighted reward (see
`grpo.advantages`).
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

NOVELTY_MODES = ("off", "archive", "ema")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Which terms make the reward.

  Attributes:
    novelty: "off", "archive" (counts since the start) or "ema" (counts that fade).
    novelty_power: exponent of the inverse frequency.
    novelty_low: least weight of a find.
    novelty_high: greatest weight of a find.
    novelty_decay: per-step factor on the counts of "ema".
    repetition: penalty for the share of repeated n-grams.
    length: penalty for the share of tokens above `length_limit`.
    length_limit: in tokens.
  """

  novelty: str = "off"
  novelty_power: float = 1.0
  novelty_low: float = 0.1
  novelty_high: float = 3.0
  novelty_decay: float = 0.9
  repetition: float = 0.0
  length: float = 0.0
  length_limit: int = 64

  def __post_init__(self):
    if self.novelty not in NOVELTY_MODES:
      raise ValueError(
        f"reward.novelty={self.novelty!r}: must be one of {', '.join(NOVELTY_MODES)}"
      )
    if not 0 < self.novelty_low <= self.novelty_high:
      raise ValueError("reward.novelty_low must be above 0 and at most novelty_high")
    if not 0 <= self.novelty_decay < 1:
      raise ValueError(f"reward.novelty_decay={self.novelty_decay}: must be in [0, 1)")


def disagreement(*, parsed: bool, disagrees: bool) -> float:
  """AuditDM's signal: 1 iff the reply parsed, and the target conflicts with a consensus."""
  return float(parsed and disagrees)


def repetition(tokens: Sequence[int], *, n: int = 3) -> float:
  """Share of n-grams that occurred before in the same text, in [0, 1)."""
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def length(tokens: int, *, limit: int) -> float:
  """Tokens (never characters) above the limit, as a share of the limit."""
  return max(0, tokens - limit) / max(limit, 1)


def total(cfg: RewardConfig, parts: Mapping[str, float]) -> float:
  """The reward: the signal less the weighted penalties."""
  return parts["disagreement"] - cfg.repetition * parts["repetition"] - cfg.length * parts["length"]


class Novelty:
  """Inverse frequency of a find's keys among the finds so far.

  A find has one or more keys, for instance (skill, answer) or its slot values; the most frequent
  one decides:

    weight = clip(((mean count + 1) / (count of the key + 1)) ** power, low, high)

  with the mean over the keys seen so far. The first step has weight 1 everywhere.
  """

  def __init__(self, cfg: RewardConfig):
    self._cfg = cfg
    self._counts: dict[str, float] = {}

  def weight(self, keys: Iterable[str]) -> float:
    """Weight of a find with these keys, by the counts before this step."""
    keys = tuple(keys)
    if self._cfg.novelty == "off" or not self._counts or not keys:
      return 1.0
    mean = math.fsum(self._counts.values()) / len(self._counts)  # the same in any order
    count = max(self._counts.get(key, 0.0) for key in keys)
    weight = ((mean + 1.0) / (count + 1.0)) ** self._cfg.novelty_power
    return min(max(weight, self._cfg.novelty_low), self._cfg.novelty_high)

  def update(self, finds: Iterable[Iterable[str]]) -> None:
    """Adds the finds of a step, in their order."""
    if self._cfg.novelty == "off":
      return
    if self._cfg.novelty == "ema":
      faded = {key: count * self._cfg.novelty_decay for key, count in self._counts.items()}
      self._counts = {key: count for key, count in faded.items() if count > 1e-3}
    for keys in finds:
      for key in keys:
        self._counts[key] = self._counts.get(key, 0.0) + 1.0

  def state(self) -> dict[str, Any]:
    """For the checkpoint; survives JSON bit for bit."""
    return {"counts": dict(self._counts)}

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    self._counts = {str(key): float(count) for key, count in state["counts"].items()}
