# SPDX-License-Identifier: Apache-2.0
"""When training gives up: GRPO learns only from live groups, those whose rewards differ.

The share of live groups is looked at over a window of steps. Where the target fails at almost
nothing, or the references agree about almost nothing, a step costs what it always costs and changes
nothing. Groups that are rewarded throughout are left out: there is nothing more to learn from them
either, but the audit finds what it is after.

The window is in the checkpoint, so that a run that is killed and goes on stops at the same step.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses

from auditdm_jax.audit.rates import rate
from auditdm_jax.core.config import check

# What most samples came to, by the metric that counts them: the cause, and what to change.
_CAUSES = {
  "share_malformed": (
    "most replies of the auditor hold no question",
    "give it config.rollout.task that it understands, or more of config.rollout.max_new_tokens",
  ),
  "share_no_consensus": (
    "the references have no consensus about most questions",
    "look at how they answer by the stage doctor: config.bank.styles, config.judge.model",
  ),
  "share_all_agree": (
    "the target says what the references say",
    "take references that know more, images that are harder for the target, or a larger"
    " config.grpo.group_size",
  ),
}


@dataclasses.dataclass(frozen=True)
class StopConfig:
  """When the training of the first round stops before its last step.

  The defaults are ours. A target that fails at one question in 400 gives 2 % live groups of 8. In
  the runs of README the fewest live groups of any 50 steps were 41 %, those of the target that
  fails rarely.

  Attributes:
    window: steps that are looked at, the latest ones; 0 = training never stops by itself.
    least_live: share of live groups in them; below it training stops.
  """

  window: int = 50
  least_live: float = 0.02

  def __post_init__(self):
    check(vars(self), "stop", "window", least=0)
    check(vars(self), "stop", "least_live", least=0.0, most=1.0)


NEVER = StopConfig(window=0)


class LiveGroups:
  """What the groups of the latest steps were."""

  def __init__(self, config: StopConfig, *, group_size: int):
    """Takes the rule and the samples of a group."""
    self._config, self._group_size = config, group_size
    # Of each step: live groups, groups without any reward, and the shares of `_CAUSES`.
    self._steps: collections.deque[tuple[float, ...]] = collections.deque(maxlen=config.window)

  def add(self, row: Mapping[str, float]) -> None:
    """Takes the metrics of a step."""
    groups = row["completions"] / self._group_size
    counts = (round(row[name] * groups) for name in ("frac_live", "frac_all0"))
    self._steps.append((*counts, *(row[name] for name in _CAUSES)))

  def reason(self) -> str:
    """Returns why training should stop and what to change; "" if it should not."""
    window = self._config.window
    if not window or len(self._steps) < window:
      return ""
    live, dead, *shares = (sum(column) for column in zip(*self._steps))
    groups = int(live + dead)
    if live >= self._config.least_live * groups:
      return ""
    found = rate(int(live), groups)
    low, high = found.ci95
    cause, remedy = _CAUSES[max(zip(shares, _CAUSES))[1]]
    return (
      f"{cause}, so that in the last {window} steps {int(live)} of {groups} groups were live"
      f" ({found.value:.1%}, 95 % interval {low:.1%} to {high:.1%}; config.stop.least_live is"
      f" {self._config.least_live:.1%}), and GRPO learns from no others; {remedy};"
      " config.stop.window=0 trains all the same"
    )

  def state(self) -> list[list[float]]:
    """Returns what is known of the steps, for a checkpoint."""
    return [list(step) for step in self._steps]

  def load(self, state: Sequence[Sequence[float]]) -> None:
    """Restores `state`; of a longer window its latest steps."""
    self._steps.clear()
    self._steps.extend(tuple(step) for step in state)
