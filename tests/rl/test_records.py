# SPDX-License-Identifier: Apache-2.0
"""Numbers of a step, from records that were made up."""

import dataclasses

import pytest

from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.verdict import verdict
from auditdm_jax.rl import records


def judged(target, *references, question="what color is it"):
  answers = {"t": target, **dict(zip("ab", references))}
  return verdict(question, answers, Judge(), target="t", references=("a", "b"))


def row(text="", *, result=None, reward=0.0, strategy="question", turns=(), key="", **fields):
  return {
    "probe": {"question": text, "strategy": strategy, "probe_id": key or text},
    "verdict": result.to_dict() if result else None,
    "malformed": None,
    "invalid": None,
    "reward": reward,
    "turns": list(turns),
    "weight": 1.0,
    "oracle_success": None,
    "full": True,
    "parts": {"disagreement": float(bool(result and result.disagreement)), "length": 0.5},
  } | fields


def turn(kind, length, truncated=False):
  return {"kind": kind, "length": length, "truncated": truncated}


FIND, AGREE = judged("red", "blue", "blue"), judged("red", "red", "red")
SPLIT = judged("red", "blue", "green")


def test_where_the_reward_came_from_or_went():
  rows = [
    row("q1", result=FIND, reward=1.0),
    row("q2", result=AGREE),
    row("q3", result=SPLIT),
    row(malformed="empty"),
    row("q4", reward=None, invalid="late"),
    row("q5", result=AGREE),
  ]
  out = records.metrics(rows, group_size=3)
  shares = [out[f"share_{k}"] for k in ("find", "all_agree", "no_consensus", "malformed")]
  assert shares == pytest.approx([1 / 5, 2 / 5, 1 / 5, 1 / 5])
  assert out["frac_invalid"] == 1 / 6 and out["reward"] == 1 / 5 and out["probes"] == 4
  assert (out["frac_live"], out["frac_all0"], out["frac_all1"]) == (0.5, 0.5, 0.0)
  assert out["reward/disagreement"] == 0.2 and out["reward/length"] == 0.5


def test_what_a_cascade_leaves_open_is_told_from_those_put_to_all():
  """Not from those that all have answered: a cascade goes to its end where there is dispute."""
  skipped = judged("red", "red", None)
  assert skipped.reason == "skipped"
  lot = [row(f"q{i}", result=r) for i, r in enumerate([AGREE, AGREE, SPLIT, FIND])]
  rest = [skipped, skipped, skipped, SPLIT]
  hidden = [row(f"s{i}", result=r, full=False) for i, r in enumerate(rest)]
  out = records.metrics(lot + hidden, group_size=4)
  assert out["share_find"] == 1 / 8
  assert out["share_all_agree"] == pytest.approx(7 / 8 * 2 / 3)
  assert out["share_no_consensus"] == pytest.approx(7 / 8 * 1 / 3)


def test_agreement_of_each_two_models():
  assert records.agreement([("", v) for v in (FIND, AGREE, SPLIT)], Judge()) == {
    "agreement/probes": 3.0,
    "agreement/t~a": pytest.approx(1 / 3),
    "agreement/t~b": pytest.approx(1 / 3),
    "agreement/a~b": pytest.approx(2 / 3),
  }
  assert records.agreement([], Judge()) == {"agreement/probes": 0.0}


def test_models_without_an_answer_do_not_agree_in_it():
  silent = dataclasses.replace(SPLIT, answers={**AGREE.answers, "a": "", "b": ""})
  found = records.agreement([("", AGREE), ("", silent)], Judge())
  assert found["agreement/a~b"] == found["agreement/t~a"] == 1.0
  assert set(records.agreement([("", silent)], Judge())) == {"agreement/probes"}


def test_lengths_are_of_replies_that_came_to_an_end():
  rows = [
    row(strategy="edit", turns=[turn("instruction", 4), turn("question", 8)]),
    row(strategy="edit", turns=[turn("instruction", 9, True)]),
    row(strategy="question", turns=[turn("question", 2)]),
    row(strategy="question", turns=[turn("question", 7, True)], invalid="late", reward=None),
  ]
  out = records.metrics(rows, group_size=2)
  assert out["length/edit/instruction"] == 4 and out["truncated/edit/instruction"] == 0.5
  assert out["length/edit/question"] == 8 and out["truncated/edit/question"] == 0
  assert out["length/question/question"] == 2 and out["truncated/question/question"] == 0
  assert out["tokens"] == 23


def test_diversity():
  texts = ["a b c d e", "a b c d e", "a b c d", "x"]
  ids = ["1", "1", "2", "3"]
  rows = [row(t, result=AGREE, key=i) for t, i in zip(texts, ids)]
  out = records.metrics(rows, group_size=2)
  assert out["unique_questions"] == 3 / 4
  assert out["unique_questions_in_group"] == pytest.approx((1 / 2 + 1) / 2)
  assert out["distinct_4"] == 2 / 5  # abcd bcde, twice, and abcd
  assert out["duplicates"] == 1 / 4
