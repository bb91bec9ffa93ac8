# SPDX-License-Identifier: Apache-2.0
"""A mode is confirmed by fresh probes, or it is not, or there are too few."""

import dataclasses
import math

import numpy as np
import pytest

from auditdm_jax.audit import confirm, rates, rounds, stability
from auditdm_jax.audit.confirm import ConfirmConfig, FreshProbe
from auditdm_jax.audit.mode import Mode, ModeRule
from auditdm_jax.audit.taxonomy import Taxonomy, discover_modes, gather, name_modes


def _mode(name, lower=0.5):
  return Mode(
    mode_id=name,
    name=name,
    kind="term",
    skills=(),
    terms=(),
    definition="",
    rules=(),
    n=20,
    k=15,
    lower=lower,
    q_value=0.0,
  )


def _probes(mode, n, k, *, for_all=True, images=None):
  possible = frozenset([mode] if mode else [])
  return [
    FreshProbe(f"{mode}{i % (images or n)}", mode, possible, i < k, for_all) for i in range(n)
  ]


def _statuses(modes, probes):
  return {t.mode_id: t.status for t in confirm.confirm(modes, probes)}


def test_statuses():
  rest = _probes(None, 1000, 50)
  modes = [_mode(name) for name in ("held", "base", "little", "refuted", "none")]
  probes = rest + _probes("held", 100, 70) + _probes("base", 100, 5) + _probes("little", 10, 2)
  probes += _probes("refuted", 40, 3)
  tests = {t.mode_id: t for t in confirm.confirm(modes, probes)}
  assert {i: t.status for i, t in tests.items()} == {
    "held": "confirmed",
    "base": "not confirmed",
    "little": "too few",
    "refuted": "not confirmed",
    "none": "too few",
  }
  planned = rates.plan_rate(half_width=0.1)
  assert (tests["little"].needs, tests["none"].needs) == (planned - 10, planned)
  held = tests["held"]
  assert held.ratio == pytest.approx(14) and held.ratio_ci95[0] > 9 < held.ratio_ci95[1]
  assert held.base.n == 1000 and held.images == 100


def test_a_failure_in_two_confirms_nothing():
  probes = _probes(None, 1000, 3) + _probes("two", 2, 1) + _probes("eight", 8, 5)
  assert _statuses([_mode("two"), _mode("eight")], probes) == {
    "two": "too few",
    "eight": "confirmed",
  }


def test_the_level_holds_over_all_modes():
  """Alone a mode passes that is one of fifty tries."""
  rest, some = _probes(None, 2000, 100), _probes("m", 100, 11)
  assert _statuses([_mode("m")], rest + some)["m"] == "confirmed"
  others = [_mode(f"o{i}") for i in range(49)]
  probes = rest + some + [p for m in others for p in _probes(m.mode_id, 100, 5)]
  assert _statuses([_mode("m"), *others], probes)["m"] == "not confirmed"


def test_images_are_the_units():
  rest = _probes(None, 2000, 100)
  spread, few = _probes("m", 96, 14), _probes("m", 96, 0, images=12)
  few = [FreshProbe(p.image_id, "m", p.possible, p.image_id in ("m0", "m1"), True) for p in few]
  assert sum(p.failed for p in few) == 16 > 14
  assert _statuses([_mode("m")], rest + spread)["m"] == "confirmed"
  assert _statuses([_mode("m")], rest + few)["m"] == "not confirmed"


def test_probes_that_were_asked_for_a_mode_count_for_modes_alone_and_up_to_the_plan():
  planned = ConfirmConfig().planned
  modes = [_mode("m"), _mode("other")]
  for_mode = _probes("m", 300, 200, for_all=False) + _probes(None, 500, 499, for_all=False)
  probes = _probes(None, 1000, 50) + _probes("m", 20, 10) + for_mode
  held = confirm.confirm(modes, probes)[0]
  assert held.fresh.n == planned and held.base.n == 1000 and held.consensus.n == 20
  assert confirm.lacking(modes, probes, planned=ConfirmConfig().planned) == {"other"}
  more = _probes("m", 2 * planned, 50)
  assert confirm.confirm(modes, probes + more)[0].fresh.n == 2 * planned + 20
  silent = [FreshProbe("x", None, frozenset(["m"]), None)] * 30
  assert confirm.confirm(modes, probes + silent)[0].consensus.n == 50


def test_modes_that_cost_too_much_get_no_more_probes():
  config, modes = ConfirmConfig(), [_mode("often"), _mode("seldom")]
  rest = [FreshProbe(f"i{i}", None, frozenset(["seldom"]), False) for i in range(1000)]
  probes = rest + _probes("often", 50, 25) + _probes("seldom", 2, 1)

  def afford(asks, draws=10**9, probes=probes):
    return confirm.affordable(modes, probes, asks=asks, draws=draws, config=config)

  assert [sorted(afford(n)) for n in (10, 100, 10**6)] == [[], ["often"], ["often", "seldom"]]
  turned = [dataclasses.replace(p, failed=not p.failed) for p in probes]
  assert afford(100, probes=turned) == afford(100)
  # All that there is to look at can be asked, so that no mode is left as it is.
  assert sorted(afford(100, draws=100)) == ["often", "seldom"]


def test_modes_that_the_same_questions_may_fall_under_share_them():
  config = ConfirmConfig()
  both = frozenset(["a", "b"])
  same = [FreshProbe(f"i{i}", "ab"[i % 2] if i < 20 else None, both, False) for i in range(400)]
  apart = [dataclasses.replace(p, possible=frozenset("ab"[i % 2])) for i, p in enumerate(same)]
  rare = [FreshProbe(f"r{i}", None, frozenset("c"), False) for i in range(400)]
  modes = [_mode("a"), _mode("b"), _mode("c")]

  def afford(asks, probes):
    return sorted(confirm.affordable(modes, probes, asks=asks, draws=10**9, config=config))

  # Of 800 questions 400 may be either; 83 more of each of two in 40 take 3,160.
  assert afford(3_400, same + rare) == ["a", "b"] and afford(3_000, same + rare) == []
  # As many, if each may be one of them: half of them for the first, and all for both.
  assert afford(3_400, apart + rare) == ["a", "b"] and afford(1_700, apart + rare) == ["a"]


def test_the_ratio_of_two_rates_is_covered():
  rng = np.random.default_rng(0)
  hits, draws = 0, 600
  for _ in range(draws):
    above, below = (rates.rate(int(rng.binomial(n, p)), n) for n, p in ((80, 0.4), (1500, 0.06)))
    low, high = confirm.ratio_interval(above, below)
    hits += low <= 0.4 / 0.06 <= high
  assert rates.wilson(hits, draws)[1] > 0.95 > rates.wilson(hits, draws)[0] - 0.03
  low, high = confirm.ratio_interval(rates.rate(5, 10), rates.rate(0, 50))
  assert 0 <= low < high == math.inf


def test_a_planted_mode_is_stable_and_one_of_chance_is_not(world, seeds):
  attempts, _ = world(0, 1200, ["dial", "purple"])
  evidence = gather(attempts, seeds)
  taxonomy = name_modes(evidence)
  assert stability.stability(evidence, taxonomy, seed=0, samples=5) == {
    m.mode_id: 1.0 for m in taxonomy.modes
  }, "one image has all probes, so that each sample is the whole"
  spread = dataclasses.replace(evidence, images=np.arange(len(attempts)))
  shares = stability.stability(spread, taxonomy, seed=0)
  assert len(shares) == 2 and min(shares.values()) > 0.8
  assert stability.stability(spread, taxonomy, seed=0) == shares
  rule = ModeRule(skill="", terms=("q:cyan",))
  odd = dataclasses.replace(_mode("odd"), rules=(rule,), terms=rule.terms)
  odd = dataclasses.replace(taxonomy, modes=(odd,))
  assert stability.stability(spread, odd, seed=0, samples=5)["odd"] < stability.UNSTABLE
  # A part of a mode that is found as a whole.
  rule = ModeRule(skill="", terms=("a:north", "q:dial"))
  part = dataclasses.replace(_mode("part"), rules=(rule,), terms=rule.terms)
  part = dataclasses.replace(taxonomy, modes=(part,))
  assert 0 < stability.stability(spread, part, seed=0, samples=5)["part"] < stability.UNSTABLE


def test_modes_of_two_rounds(world, seeds):
  first = discover_modes(world(0, 4000, ["purple", "dial", "star counts"])[0], seeds)
  attempts, _ = world(1, 4000, ["purple", "dial east", "digit seven"])
  second = discover_modes(attempts, seeds)
  was, now = (
    t.match([a.probe.question for a in attempts], [a.consensus for a in attempts])
    for t in (first, second)
  )
  traced = {d.mode_id: d for d in rounds.descent(first.modes, second.modes, was, now)}
  by_name = {m.name: traced[m.mode_id] for m in second.modes}
  assert {name: d.relation for name, d in by_name.items()} == {
    "colour purple": "same",
    "dial: answer=east": "split",
    "digit: answer=seven": None,
  }
  assert by_name["colour purple"].covered.rate > 0.95

  def test(rate, status="confirmed"):
    base = rates.rate(5, 100)
    return confirm.ModeTest("m", status, rate, base, 1.0, (0.0, 1.0), 0.0, 1, base, 0)

  high, low = rates.rate(80, 96), rates.rate(4, 96)
  unknown, known = by_name["digit: answer=seven"], by_name["colour purple"]
  assert rounds.relation(unknown, test(high), before=test(low, "not confirmed")) == "new"
  assert rounds.relation(unknown, test(high), before=test(high)) == "missed"
  assert rounds.relation(unknown, test(low, "too few"), before=test(low)) == "too few"
  assert rounds.relation(known, test(high), before=test(low)) == "same"


def test_several_old_modes_in_one_are_merged(world, seeds):
  first = discover_modes(world(0, 5000, ["dial east", "digit seven", "purple"])[0], seeds)
  attempts, _ = world(1, 4000, ["dial east", "digit seven", "purple"])
  now = [m and dataclasses.replace(m, mode_id="all") for m in _matched(first, attempts)]
  one = Taxonomy(seeds, (_mode("all"),))
  (found,) = rounds.descent(first.modes, one.modes, _matched(first, attempts), now)
  assert found.relation == "merged" and len(found.parents) >= 2


def _matched(taxonomy, attempts):
  return taxonomy.match([a.probe.question for a in attempts], [a.consensus for a in attempts])
