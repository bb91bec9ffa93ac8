# SPDX-License-Identifier: Apache-2.0
"""Reward terms."""

import json
import sys
import types

import pytest

from auditdm_jax.audit.probe import Verdict
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import reward
from auditdm_jax.rl.reward import Facts
from tests.rl import fakes, tiny

PLAIN = reward.RewardConfig()


def parts(**facts):
  return reward.evaluate(reward.terms_of(PLAIN), Facts(**facts))


def total(config=PLAIN, **values):
  return reward.total(reward.terms_of(config), values)


def test_disagreement_is_binary():
  assert reward.disagreement(Facts(parsed=True, find=True)) == 1.0
  assert reward.disagreement(Facts(parsed=True, find=False)) == 0.0
  assert reward.disagreement(Facts(parsed=False, find=True)) == 0.0


def test_repetition():
  assert reward.repetition(Facts(tokens=(1, 2, 3, 4))) == 0.0
  assert reward.repetition(Facts(tokens=(1, 1, 1, 1, 1))) == pytest.approx(2 / 3)
  assert reward.repetition(Facts(tokens=(1,))) == 0.0


def test_length_penalty_is_in_tokens():
  assert reward.length(Facts(tokens=(7,) * 10), limit=10) == 0.0
  assert reward.length(Facts(tokens=(7,) * 15), limit=10) == 0.5


def test_validity_is_that_the_references_agree_find_or_not():
  def verdict(consensus):
    return Verdict(
      probe_id="p",
      answers={"t": "blue", "r": "red"},
      target="t",
      references=("r",),
      consensus=consensus,
      agree=consensus is not None,
      disagreement=consensus == "red",
      reason="",
    )

  assert [reward.validity(Facts(verdict=verdict(c))) for c in ("red", "blue", None)] == [1, 1, 0]
  assert reward.validity(Facts()) == 0.0


def test_answerability_is_a_part_of_what_was_asked_again_only():
  assert "answerability" not in parts(find=True)
  assert parts(find=True, kept=True)["answerability"] == 1.0
  assert parts(find=True, kept=False)["answerability"] == 0.0


def test_answerability_takes_its_share_of_the_signal():
  values = {"disagreement": 1.0, "repetition": 0.0, "length": 0.0}
  config = reward.RewardConfig(answerability=0.75)
  assert total(config, **values, answerability=1.0) == 1.0
  assert total(config, **values, answerability=0.0) == 0.25
  assert total(config, **values) == 1.0  # nobody asked
  assert total(**values, answerability=0.0) == 1.0
  with pytest.raises(ValueError, match="answerability=2"):
    reward.RewardConfig(answerability=2.0)


def test_total_of_defaults_is_the_signal():
  values = {"disagreement": 1.0, "repetition": 0.7, "length": 2.0}
  assert total(**values) == 1.0
  config = reward.RewardConfig(repetition=0.1, length=0.2)
  assert total(config, **values) == pytest.approx(1 - 0.07 - 0.4)


@pytest.fixture
def outsider(monkeypatch):
  """A module outside the package with terms of its own."""
  module = types.ModuleType("outsider")
  module.brevity = lambda facts: 1.0 / len(facts.tokens) if facts.tokens else 0.0
  module.about_red = lambda facts: None if "red" in facts.question else 1.0
  module.broken = lambda facts: float("nan")
  module.length = module.brevity
  monkeypatch.setitem(sys.modules, "outsider", module)


def test_a_term_from_outside_is_weighted_and_logged(outsider):
  terms = (("outsider:brevity", 0.5), ("outsider:about_red", -2.0))
  made = fakes.rollout({"question": 3}, reward_config=reward.RewardConfig(terms=terms))
  plain = fakes.rollout({"question": 3}).step(tiny.auditor().params, 0)
  result = made.step(tiny.auditor().params, 0)
  for a, b in zip(plain.records, result.records):
    tokens = sum(turn["length"] for turn in b["turns"])
    want = a["reward"] + 0.5 / tokens - (0 if "red" in b["probe"]["question"] else 2)
    assert b["reward"] == pytest.approx(want)
    assert b["parts"]["brevity"] == 1 / tokens
    assert ("about_red" in b["parts"]) == ("red" not in b["probe"]["question"])
  counted = [r["parts"]["brevity"] for r in result.records]
  assert result.metrics["reward/brevity"] == pytest.approx(sum(counted) / len(counted))


def test_terms_that_cannot_be_meant_are_refused(outsider):
  with pytest.raises(UserError, match="two terms are called 'length'"):
    reward.RewardConfig(terms=(("outsider:length", 1.0),))
  with pytest.raises(UserError, match="has no 'brevty'"):
    reward.RewardConfig(terms=(("outsider:brevty", 1.0),))
  terms = reward.terms_of(reward.RewardConfig(terms=(("outsider:broken", 1.0),)))
  with pytest.raises(UserError, match="'broken' is nan: must be a finite number"):
    reward.evaluate(terms, Facts())


def test_novelty_off_is_one():
  novelty = reward.Novelty(reward.RewardConfig())
  novelty.update([("a",)] * 10)
  assert novelty.weight(("a",)) == 1.0


def test_archive_prefers_what_is_rare():
  novelty = reward.Novelty(reward.RewardConfig(novelty="archive"))
  assert novelty.weight(("a",)) == 1.0
  novelty.update([("a",)] * 8 + [("b",)] * 2)
  assert novelty.weight(("a",)) == pytest.approx(6 / 9)
  assert novelty.weight(("b",)) == pytest.approx(6 / 3)
  assert novelty.weight(("new",)) == 3.0
  assert novelty.weight(("a", "new")) == pytest.approx(6 / 9)


def test_ema_forgets_and_archive_does_not():
  weights = {}
  for mode in ("ema", "archive"):
    novelty = reward.Novelty(reward.RewardConfig(novelty=mode, novelty_high=100.0))
    novelty.update([("a",)] * 50)
    for _ in range(60):
      novelty.update([("b",)])
    weights[mode] = novelty.weight(("a",)) / novelty.weight(("b",))
  assert weights["ema"] > 2 > 1.3 > weights["archive"]


def test_state_survives_json_bit_for_bit():
  config = reward.RewardConfig(novelty="ema", novelty_power=0.5)
  straight, resumed = reward.Novelty(config), reward.Novelty(config)
  for step in range(5):
    straight.update([("k" + str((step * i) % 7), "x") for i in range(11)])
  resumed.load(json.loads(json.dumps(straight.state(), sort_keys=True)))
  for novelty in (straight, resumed):
    novelty.update([("k1", "y")])
  assert [straight.weight((k,)) for k in ("k1", "k2", "x", "y")] == [
    resumed.weight((k,)) for k in ("k1", "k2", "x", "y")
  ]


def test_text_novelty_is_the_distance_to_the_nearest_find():
  config = reward.RewardConfig(novelty="text", novelty_low=0.5, novelty_high=2.5)
  novelty = reward.Novelty(config)
  assert novelty.weight(("is it red",)) == 1.0
  novelty.update([("is it red",), ("what does the dial read",)])
  assert novelty.weight(("is it red",)) == 0.5
  assert novelty.weight(("how many circles",)) == 2.5
  # {is, it, is it} of {is, it, red, blue, is it, it red, it blue} are shared.
  assert novelty.weight(("is it blue",)) == pytest.approx(0.5 + 2 * (1 - 3 / 7))
  near, far = novelty.weight(("is it blue",)), novelty.weight(("where is",))
  assert 0.5 < near < far < 2.5


def test_the_archive_of_texts_is_bounded_and_survives_json(monkeypatch):
  monkeypatch.setattr(reward, "_ARCHIVE", 3)
  novelty, resumed = (reward.Novelty(reward.RewardConfig(novelty="text")) for _ in range(2))
  novelty.update([(f"word{i}",) for i in range(5)])
  novelty.update([("word2",)])
  resumed.load(json.loads(json.dumps(novelty.state(), sort_keys=True)))
  for each in (novelty, resumed):
    each.update([("new",)])
    assert sorted(each.state()["counts"]) == ["new", "word2", "word4"]


def test_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="reward.novelty"):
    reward.RewardConfig(novelty="curiosity")
