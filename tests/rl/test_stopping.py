# SPDX-License-Identifier: Apache-2.0
"""Training stops where too few groups are live, for the reason that most samples had."""

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.rl.stopping import LiveGroups, StopConfig


def step(live, *, full=0, malformed=0.0, no_consensus=0.0, agree=1.0, groups=10):
  return {
    "completions": 8.0 * groups,
    "frac_live": live / groups,
    "frac_all0": (groups - live - full) / groups,
    "share_malformed": malformed,
    "share_no_consensus": no_consensus,
    "share_all_agree": agree,
  }


def reason(steps, **config):
  groups = LiveGroups(StopConfig(**config), group_size=8)
  for row in steps:
    groups.add(row)
  return groups.reason()


def test_a_window_must_be_full_and_only_its_steps_count():
  config = {"window": 3, "least_live": 0.1}
  assert reason([step(0)] * 2, **config) == ""
  assert "0 of 30 groups were live (0.0%, 95 % interval 0.0% to 11.4%" in reason(
    [step(10), *[step(0)] * 3], **config
  )
  assert "2 of 30 groups" in reason([step(1), step(1), step(0)], **config)
  assert reason([step(1)] * 3, **config) == "", "the floor itself is enough"
  assert reason([step(0), step(0), step(10)], **config) == ""


def test_no_window_is_no_rule():
  assert reason([step(0)] * 100, window=0) == ""


def test_groups_that_are_rewarded_throughout_are_no_reason():
  assert reason([step(0, full=10)] * 3, window=3) == ""
  assert reason([step(1, full=8)] * 3, window=3, least_live=0.4) == ""
  assert "of 6 groups" in reason([step(0, full=8)] * 3, window=3)


@pytest.mark.parametrize(
  ("shares", "cause", "key"),
  [
    ({"malformed": 0.7, "agree": 0.3}, "replies of the auditor hold no question", "rollout.task"),
    ({"no_consensus": 0.9, "agree": 0.1}, "no consensus about most questions", "bank.styles"),
    ({"agree": 0.9, "malformed": 0.1}, "says what the references say", "grpo.group_size"),
  ],
)
def test_the_reason_is_the_most_frequent_one_and_says_what_to_change(shares, cause, key):
  said = reason([step(0, **shares)] * 3, window=3)
  assert cause in said and f"config.{key}" in said and "config.stop.window=0" in said
  assert "\n" not in said


def test_the_state_is_all_there_is_and_may_have_had_a_longer_window():
  groups = LiveGroups(StopConfig(window=5), group_size=8)
  for live in (9, 9, 0, 0, 0):
    groups.add(step(live))
  again = LiveGroups(StopConfig(window=3), group_size=8)
  again.load(groups.state())
  assert groups.reason() == "" and "0 of 30" in again.reason()


def test_shares_are_shares():
  for wrong in ({"window": -1}, {"least_live": 1.1}, {"least_live": float("nan")}):
    with pytest.raises(UserError, match="stop"):
      StopConfig(**wrong)
