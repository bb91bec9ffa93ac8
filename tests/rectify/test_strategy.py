# SPDX-License-Identifier: Apache-2.0
"""Which consensus may become a label: by grade without an oracle, by trials, by margin."""

import pytest

from auditdm_jax.audit.attempt import Failure, Opinion, Stability
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.verdict import UNANIMOUS, ConsensusRule
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify.strategy import (
  ConfidenceConfig,
  StrategyConfig,
  confident,
  grade_without_oracle,
  margin,
)


def _failure(said=("red", "red"), *, grade="V1", by="", trials=(5, 5), kinds=None) -> Failure:
  names = tuple(f"r{i}" for i in range(len(said)))
  probe = Probe.make("i", "what color is the cup")
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": "blue", **dict(zip(names, said, strict=True))},
    target="t",
    references=names,
    consensus="red",
    agree=True,
    disagreement=True,
    reason="disagreement",
    kinds=kinds or {},
  )
  return Failure(
    probe=probe,
    verdict=verdict,
    consensus="red",
    said="blue",
    grade=grade,
    opinion=Opinion(by=by, side="consensus", answer="red") if by else None,
    stability=Stability(k=trials[0], n=trials[1]),
  )


def _kept(failure, **config):
  kept, left_out = confident([failure], ConfidenceConfig(**config), Judge(), UNANIMOUS)
  assert len(kept) + sum(left_out.values()) == 1
  return next(iter(left_out), "kept")


def test_an_oracle_makes_no_label_surer():
  assert grade_without_oracle(_failure(grade="V2", by="oracle")) == "V1"
  assert _kept(_failure(grade="V2", by="oracle"), grade="V2") == "below V2"
  assert _kept(_failure(grade="V2", by="model m"), grade="V2") == "kept"
  assert _kept(_failure(grade="V3", by="oracle"), grade="V3") == "kept", "people are no oracle"
  assert _kept(_failure(grade="V0")) == "below V1"


def test_who_is_not_sure_stands_behind_no_label():
  for said, ahead in ((("red", "red", "red"), 2 / 3), (("red", "red", "blue"), 2 / 3)):
    failure = _failure(said, kinds={"r2": "unsure"})
    assert margin(failure, Judge(), ConsensusRule(0.67)) == pytest.approx(ahead)


def test_a_label_that_does_not_come_back_is_left_out():
  assert _kept(_failure(trials=(4, 5)), stable=0.9) == "unstable"
  assert _kept(_failure(trials=(5, 5)), stable=0.9) == "kept"
  assert _kept(_failure(trials=(0, 0)), stable=0.9) == "unstable", "what was not tried is not sure"


def test_the_margin_is_what_the_consensus_is_ahead_of_the_next_answer():
  assert margin(_failure(("red", "red")), Judge(), UNANIMOUS) == 1.0
  assert margin(_failure(("red", "red", "green")), Judge(), UNANIMOUS) == pytest.approx(1 / 3)
  split = _failure(("red", "red", "green", "white", ""))
  assert margin(split, Judge(), UNANIMOUS) == pytest.approx(1 / 5), "no answer is behind nothing"
  heavy = ConsensusRule(0.6, weights=(("r0", 4.0),))
  assert margin(_failure(("red", "red", "green")), Judge(), heavy) == pytest.approx(4 / 6)
  assert _kept(_failure(("red", "red", "green")), margin=0.5) == "margin"


@pytest.mark.parametrize(
  ("shares", "message"),
  [
    (dict(probes=1.0, labelled=0.5), "labelled=0.5.*do not add up to 1"),
    (dict(probes=1.5, labelled=-0.5), "probes"),
  ],
)
def test_shares_add_up_to_one(shares, message):
  with pytest.raises(UserError, match=message):
    StrategyConfig(**shares)
  with pytest.raises(UserError, match="'V0' is not V1, V2, V3"):
    ConfidenceConfig(grade="V0")
