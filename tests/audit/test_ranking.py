# SPDX-License-Identifier: Apache-2.0
"""How a batch is chosen: turns over kinds, limits per image, what is left to chance."""

from collections import Counter

import numpy as np
import pytest

from auditdm_jax.audit.ranking import Candidate, RankingConfig, pick

SURE = RankingConfig(per_image=4, likely=0.7, unsure=0.0, lot=0.0)


def _candidates(*, seed=0, images=200):
  """Of kind `common` a third are sure finds, of `rare` one in twenty, of `never` none."""
  rng = np.random.default_rng(seed)
  out = []
  for i in range(3_000):
    kind = ("common", "rare", "never")[i % 3]
    likely = rng.random() < {"common": 0.33, "rare": 0.05, "never": 0.0}[kind]
    score = rng.uniform(0.8, 1.0) if likely else rng.uniform(0.0, 0.6)
    out.append(
      Candidate(
        image=f"i{rng.integers(images)}", kind=kind, score=score, raw=score, open=bool(i % 2)
      )
    )
  return out


def _pick(candidates, config=SURE, *, size=200, seed=0, blind=False):
  rng = np.random.default_rng(seed)
  return pick(candidates, size=size, config=config, rng=rng, blind=blind)


def test_kinds_have_equal_shares_as_long_as_their_best_are_likely():
  candidates = _candidates()
  supply = Counter(c.kind for c in candidates if c.score >= 0.7)
  assert supply["rare"] < 100 < supply["common"] and "never" not in supply
  ways = _pick(candidates)
  assert len(ways) == 200
  kinds = Counter(candidates[i].kind for i in ways)
  assert kinds == {"rare": supply["rare"], "common": 200 - supply["rare"]}
  small = Counter(candidates[i].kind for i in _pick(candidates, size=40))
  assert small == {"rare": 20, "common": 20}, "the shares are equal while there is enough of both"


def test_within_a_kind_the_best_come_first_and_the_rest_goes_to_the_best_of_all():
  candidates = _candidates()
  ways = _pick(candidates, RankingConfig(4, likely=0.95, unsure=0.0, lot=0.0))
  for kind in ("common", "rare"):
    likely = {i for i, c in enumerate(candidates) if c.kind == kind and c.score >= 0.95}
    assert likely and likely <= set(ways), "as many of them as there are"
  rest = [i for i, way in ways.items() if way == "rank"]
  left_out = max(c.score for i, c in enumerate(candidates) if i not in ways)
  assert rest and min(candidates[i].score for i in rest) >= left_out


def test_those_of_equal_probability_are_in_the_order_of_the_net():
  candidates = [
    Candidate(image=f"i{i}", kind="a", score=0.9, raw=raw, open=False)
    for i, raw in enumerate(np.random.default_rng(4).permutation(200) / 200)
  ]
  for likely in (0.8, 1.0):
    ways = _pick(candidates, RankingConfig(4, likely=likely, unsure=0.0, lot=0.0), size=20)
    assert [candidates[i].raw for i in ways] == [(199 - i) / 200 for i in range(20)]


@pytest.mark.parametrize("most", [1, 2])
def test_an_image_has_no_more_than_its_share_while_there_are_others(most):
  candidates = _candidates(images=120)
  config = RankingConfig(per_image=most, likely=0.7, unsure=0.1, lot=0.1)
  of_image = Counter(candidates[i].image for i in _pick(candidates, config, size=100))
  assert max(of_image.values()) == most
  everyone = _pick(candidates, config, size=1_000)
  assert len(everyone) == 1_000, "a batch is filled whatever the limit says"


def test_a_kind_has_no_more_than_its_share_while_there_are_others():
  candidates = _candidates()
  config = RankingConfig(4, per_kind=0.4, likely=0.7, unsure=0.0, lot=0.1)
  ways = _pick(candidates, config)
  ranked = Counter(candidates[i].kind for i, way in ways.items() if way in ("kind", "rank"))
  assert ranked["common"] == 80 and sum(ranked.values()) == 180
  likely = sum(c.kind == "rare" and c.score >= 0.7 for c in candidates)
  assert ranked["rare"] >= likely - 2, "the others are not asked less"
  alone = [c for c in candidates if c.kind == "common"]
  assert len(_pick(alone, config)) == 200, "a batch is filled whatever the limit says"


def test_shares_of_the_lot_and_of_the_unsure():
  candidates = _candidates()
  ways = _pick(candidates, RankingConfig(4, likely=0.7, unsure=0.1, lot=0.05))
  assert Counter(ways.values())["lot"] == 10 and Counter(ways.values())["unsure"] == 20
  assert all(candidates[i].open for i, way in ways.items() if way == "lot")
  assert all(abs(candidates[i].score - 0.5) < 0.02 for i, way in ways.items() if way == "unsure")


def test_what_is_new_comes_after_the_lot_whatever_its_score():
  candidates = _candidates()
  worst = sorted(range(len(candidates)), key=lambda i: candidates[i].score)[:30]
  rng, config = np.random.default_rng(0), RankingConfig(4, likely=0.7, unsure=0.0, lot=0.05)
  ways = pick(candidates, size=200, config=config, rng=rng, new=worst)
  new = [i for i, way in ways.items() if way == "new"]
  assert set(new) <= set(worst) and len(new) >= 28, "but for those that the lot drew"
  assert Counter(ways.values())["lot"] == 10


def test_before_it_knows_anything_all_is_by_lot():
  candidates = _candidates()
  ways = _pick(candidates, blind=True)
  assert set(ways.values()) == {"lot"} and len(ways) == 200
  assert np.mean([candidates[i].kind == "never" for i in ways]) == pytest.approx(1 / 3, abs=0.12)


def test_fewer_candidates_than_wanted_are_all_taken_once():
  candidates = _candidates()[:50]
  assert sorted(_pick(candidates)) == list(range(50))
  assert _pick([]) == {}


def test_the_choice_depends_on_the_seed_alone():
  candidates = _candidates()
  config = RankingConfig()
  assert list(_pick(candidates, config).items()) == list(_pick(candidates, config).items())
  assert set(_pick(candidates, config)) != set(_pick(candidates, config, seed=1))
