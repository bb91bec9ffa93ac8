# SPDX-License-Identifier: Apache-2.0
"""The bandit: sums, floors, replay, and the trade between yield and coverage."""

import numpy as np
import pytest

from auditdm_jax.audit.arms import Arms, ArmsConfig

MODES = [f"m{i}" for i in range(12)]


def _play(rng, arm, n):
  """`trained` finds two modes often, `late` three others, `random` all twelve rarely."""
  odds = {"trained": (0.6, MODES[:2]), "late": (0.3, MODES[2:5]), "random": (0.04, MODES)}
  odds["useless"] = (0.0, MODES)
  hit, modes = odds[arm]
  return [str(rng.choice(modes)) if rng.random() < hit else None for _ in range(n)]


def _run(names, seed, batches=40, batch=256, config=None):
  rng, arms = np.random.default_rng(seed), Arms(names, config=config or ArmsConfig())
  for _ in range(batches):
    for arm, n in arms.allocate(batch).items():
      arms.observe(arm, _play(rng, arm, n))
  return arms


def _covered(arms, least=8):
  total = sum(arms.finds.values(), start=type(arms.probes)())
  return sum(total[m] >= least for m in MODES), total.total()


def test_allocations_sum_and_keep_floors():
  arms = _run(["trained", "random", "useless"], 0)
  for batch in (1, 7, 100, 999):
    got = arms.allocate(batch)
    assert sum(got.values()) == batch and min(got.values()) >= int(0.08 * batch)


@pytest.mark.parametrize("seed", range(3))
def test_coverage_of_random_and_most_of_the_yield(seed):
  mixed = _run(["trained", "late", "random", "useless"], seed)
  only = _run(["random"], seed, config=ArmsConfig(floor=0))
  covered, finds = _covered(mixed)
  covered_random, finds_random = _covered(only)
  assert covered_random == 12 and covered >= 11
  assert finds >= 3 * finds_random
  useless = mixed.probes["useless"] / mixed.probes.total()
  assert useless <= 0.15


def test_first_batch_is_even_and_new_modes_draw_budget():
  arms = Arms(["a", "b"])
  assert set(arms.allocate(100).values()) == {50}
  arms.observe("a", ["x"] * 50)
  arms.observe("b", [f"y{i}" for i in range(10)] + [None] * 40)
  assert arms.index("b") > arms.index("a")


def test_a_history_played_again_ends_in_the_same_bandit():
  straight, again = (_run(["trained", "random"], 3) for _ in range(2))
  assert [again.allocate(77) for _ in range(3)] == [straight.allocate(77) for _ in range(3)]
  assert again.summary() == straight.summary()
  assert again.summary()["random"]["modes"] == 12


def test_misuse_is_named():
  with pytest.raises(ValueError, match="unique"):
    Arms(["a", "a"])
  with pytest.raises(ValueError, match="floor"):
    Arms(["a", "b"], config=ArmsConfig(floor=0.6))
  with pytest.raises(ValueError, match="no arm named 'c'"):
    Arms(["a"]).observe("c", [])
