# SPDX-License-Identifier: Apache-2.0
"""The discovery bandit: who may ask the next questions.

Arms are ways to make probes: trained auditor checkpoints, the untrained auditor, random questions.
A trained auditor brings many finds of few modes, random questions few finds of many modes. The
budget follows what is *new*:

  index(arm) = [ U + yield_weight · Σ_m f_m / C_m^power + prior ] / n

with n the arm's probes, f_m the arm's finds of mode m, C_m everybody's finds of m, and U the modes
that were found exactly once, and by this arm: U / n is the Good-Turing estimate of the mass of
modes that only this arm would still uncover (Bubeck, Ernst, Garivier, "Optimal discovery with
probabilistic expert advice", JMLR 14, 2013). The second term keeps the yield once all modes are
known; with power 1 each mode is worth one, shared among the arms by who brings it, so an arm that
alone brings many rare modes outweighs one that brings thousands of finds of two. Shares of the
budget follow the index. A prior and a floor keep every arm alive, since an arm's worth shows only
in what it finds; their optimism does not shrink slower than the index itself, as a confidence bonus
would, which ends in an even split once all modes are known.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.core.config import check


@dataclasses.dataclass(frozen=True)
class ArmsConfig:
  """How the budget moves.

  Attributes:
    floor: share of every batch that each arm keeps.
    yield_weight: worth of known modes against new ones.
    power: how fast the worth of a further find of a mode falls.
    prior: finds an arm is credited with before it has any.
  """

  floor: float = 0.08
  yield_weight: float = 1.0
  power: float = 1.0
  prior: float = 0.1

  def __post_init__(self):
    check(vars(self), "arms", "floor", least=0, most=1)
    check(vars(self), "arms", "yield_weight", "power", "prior", least=0)


class Arms:
  """Allocates probes to arms; a pure function of config and history."""

  def __init__(self, names: Sequence[str], *, config: ArmsConfig = ArmsConfig(), seed: int = 0):
    """Takes the arms' names; `seed` breaks ties."""
    if not names or len(set(names)) != len(names):
      raise ValueError(f"arm names must be unique and not empty: {list(names)}")
    if not 0 <= config.floor * len(names) <= 1:
      raise ValueError(f"a floor of {config.floor} for {len(names)} arms exceeds the budget")
    self.names = tuple(names)
    self.config, self._seed = config, seed
    self.probes: Counter[str] = Counter()
    self.finds: dict[str, Counter[str]] = {name: Counter() for name in names}
    self._batches = 0

  def allocate(self, batch: int) -> dict[str, int]:
    """Probes per arm for the next batch; they sum to `batch`, every arm present."""
    floor = int(batch * self.config.floor)
    shares = self._shares() * (batch - floor * len(self.names))
    counts = np.floor(shares).astype(int)
    # Largest remainders; equal ones in an order that changes from batch to batch.
    order = streams.rng(self._seed, "arms", self._batches).permutation(len(self.names))
    left = batch - floor * len(self.names) - int(counts.sum())
    rank = sorted(order, key=lambda i: -round(float(shares[i] - counts[i]), 9))
    for i in rank[:left]:
      counts[i] += 1
    self._batches += 1
    return {name: floor + int(c) for name, c in zip(self.names, counts)}

  def observe(self, arm: str, modes: Sequence[str | None]) -> None:
    """Books one entry per probe sent by the arm: the mode of its find, or None."""
    if arm not in self.finds:
      raise ValueError(f"no arm named {arm!r}; there are {list(self.names)}")
    self.probes[arm] += len(modes)
    self.finds[arm].update(m for m in modes if m is not None)

  def index(self, arm: str) -> float:
    """Worth of the next probe of this arm; infinite before its first."""
    n = self.probes[arm]
    if n == 0:
      return math.inf
    everyone = self._everyone()
    mine = self.finds[arm]
    new = sum(everyone[m] == 1 for m in mine)
    known = sum(f * everyone[m] ** -self.config.power for m, f in mine.items())
    return (new + self.config.yield_weight * known + self.config.prior) / n

  def summary(self) -> dict[str, dict[str, Any]]:
    """Per arm: probes, finds, modes, and modes that nobody else found."""
    everyone = self._everyone()
    return {
      name: {
        "probes": self.probes[name],
        "finds": self.finds[name].total(),
        "modes": len(self.finds[name]),
        "only_here": sum(everyone[m] == c for m, c in self.finds[name].items()),
      }
      for name in self.names
    }

  def _everyone(self) -> Counter[str]:
    return sum(self.finds.values(), Counter())

  def _shares(self) -> np.ndarray:
    values = np.array([self.index(name) for name in self.names])
    if np.isinf(values).any():
      values = np.isinf(values).astype(np.float64)
    if values.sum() == 0:
      values = np.ones(len(values))
    return values / values.sum()
