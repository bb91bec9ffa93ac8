# SPDX-License-Identifier: Apache-2.0
"""Which proposals are asked: properties of the choice, and of a step that has one."""

import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.rl.picking import area, choose
from auditdm_jax.rl.surrogate import Surrogate, SurrogateConfig
from tests.rl import fakes, tiny

TINY = SurrogateConfig(proposals=9, random=1, least=8, batch=8, fits=2, width=8, heads=2)


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_some_by_lot_then_the_best_distinct_ones(seed):
  rng = np.random.default_rng(seed)
  n, by_lot = int(rng.integers(8, 40)), int(rng.integers(0, 4))
  said = [None if k > 9 else str(k) for k in rng.integers(0, 14, n)]
  scores = rng.random(n)
  places, lot = choose(said, scores, size=8, by_lot=by_lot, rng=np.random.default_rng(seed))
  assert places == sorted(set(places)) and len(places) == 8 and len(lot) == by_lot
  assert lot <= set(places)
  drawn = {said[i] for i in lot}
  best = {}  # The likeliest sample of each question that the lot has not drawn.
  for i in range(n):
    if said[i] is not None and said[i] not in drawn:
      if said[i] not in best or scores[i] > scores[best[said[i]]]:
        best[said[i]] = i
  want = sorted(best.values(), key=lambda i: -scores[i])[: 8 - by_lot]
  assert set(want) <= set(places) - lot
  assert len(want) == 8 - by_lot or len(want) == len(best)


def test_the_lot_draws_each_proposal_alike():
  counts = np.zeros(10)
  for seed in range(4000):
    _, lot = choose(
      [None, *"abcdefghi"],
      np.arange(10.0),
      size=4,
      by_lot=2,
      rng=np.random.default_rng(seed),
    )
    counts[list(lot)] += 1
  assert abs(counts / 4000 - 0.2).max() < 0.03


def test_area_is_the_share_of_pairs_in_order():
  rng = np.random.default_rng(0)
  scores, found = rng.integers(0, 5, 60), rng.random(60) < 0.4
  pairs = [(a > b) + (a == b) / 2 for a in scores[found] for b in scores[~found]]
  assert area(scores, found) == pytest.approx(np.mean(pairs))
  assert area([1, 2], [True, True]) is None


@pytest.fixture(scope="module")
def steps():
  """(rollout, bank, results of four steps)."""
  bank = fakes.Bank()
  made = fakes.rollout(fakes.MIXED, surrogate=TINY, bank=bank)
  return made, bank, [made.step(tiny.auditor().params, step) for step in range(4)]


def rows_of(steps):
  return [row for result in steps[2] for row in result.records]


def test_what_is_not_picked_is_not_asked(steps):
  rows = rows_of(steps)
  assert len(rows) == 4 * 6 * 4
  assert len(steps[1].asked) == sum(row["verdict"] is not None for row in rows)
  assert all(result.metrics["completions"] == 24 for result in steps[2])
  assert all(result.metrics["surrogate/proposals"] == 6 * 9 for result in steps[2])
  assert {row["pick"]["proposals"] for row in rows} == {9}
  assert max(row["sample"] for row in rows) == 8


def test_the_best_distinct_ones_are_asked(steps):
  """None is malformed but by lot, unless a group has too few distinct ones."""
  groups = {}
  for row in rows_of(steps):
    groups.setdefault((row["step"], row["prompt_id"]), []).append(row)
  for group in groups.values():
    assert sum(row["pick"]["by_lot"] for row in group) == 1
    picked = [row["pick"]["text"] for row in group if not row["pick"]["by_lot"]]
    texts = [text for text in picked if text is not None]
    if len(texts) == 3:
      assert len(set(texts)) == 3


def test_the_net_is_told_what_became_of_its_picks(steps):
  """It reads an instruction with the source image; it does not hear of malformed first turns."""
  told = [row for row in rows_of(steps) if row["pick"]["text"] and not row["invalid"]]
  net = steps[0]._picker.surrogate
  assert net._images == [row["probe"]["source_image_id"] for row in told]
  assert list(net._found) == [row["parts"]["disagreement"] == 1 for row in told]
  for row in told:
    strategy, text = row["probe"]["strategy"], row["pick"]["text"]
    said = row["turns"][0]["text"].strip()
    assert text == (said if strategy == "question" else f"{strategy} {said}")


def test_predictions_are_beside_what_was_found(steps):
  """Only from when it had seen enough; a step's own verdicts are not in them."""
  first, *later = steps[2]
  assert first.metrics["surrogate/picked"] == 0 and "surrogate/predicted" not in first.metrics
  assert {row["pick"]["predicted"] for row in first.records} == {None}
  for result in later:
    rows = [row for row in result.records if not row["invalid"]]
    best = [r for r in rows if not r["pick"]["by_lot"] and r["pick"]["predicted"] is not None]
    assert result.metrics["surrogate/picked"] == len(best) > 0
    for name, values in (
      ("predicted", [r["pick"]["predicted"] for r in best]),
      ("found", [r["parts"]["disagreement"] for r in best]),
      ("lot_found", [r["parts"]["disagreement"] for r in rows if r["pick"]["by_lot"]]),
    ):
      assert result.metrics[f"surrogate/{name}"] == pytest.approx(np.mean(values))


def test_all_that_is_written_is_work_and_so_is_the_net(steps):
  plain = fakes.rollout(fakes.MIXED).step(tiny.auditor().params, 0)
  with_net = steps[2][0]
  assert with_net.flops["sample"] > plain.flops["sample"]
  want = Surrogate(TINY, look=fakes.features, seed=3).flops(54, fits=2)
  assert with_net.flops["surrogate"] == want and "surrogate" not in plain.flops
  assert with_net.seconds["surrogate"] > 0 and "surrogate" not in plain.seconds


def test_a_surrogate_that_keeps_all_changes_nothing():
  """As many proposals as are asked: the samples of a run without one."""
  config = SurrogateConfig(proposals=4, random=0, least=8, batch=8, fits=1, width=8, heads=2)
  results = [
    fakes.rollout({"question": 2, "edit": 1}, **options).step(tiny.auditor().params, 0)
    for options in ({"surrogate": config}, {})
  ]
  rows = [[{**row, "pick": None} for row in result.records] for result in results]
  assert rows[0] == rows[1]
  assert all(row["pick"] is None for row in results[1].records)
  assert not any(name.startswith("surrogate") for name in results[1].metrics)


def test_fewer_proposals_than_are_asked_are_refused():
  with pytest.raises(UserError, match="surrogate.proposals=3: must be at least grpo.group_size=4"):
    fakes.rollout(surrogate=SurrogateConfig(proposals=3))
