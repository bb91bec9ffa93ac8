# SPDX-License-Identifier: Apache-2.0
"""Twins are noticed, independent references are not accused."""

import numpy as np
import pytest

from auditdm_jax.audit.health import health
from auditdm_jax.audit.judge import Judge


def _answers(rng, n, error):
  return ["red" if x else f"wrong{rng.integers(5)}" for x in rng.random(n) >= error]


def test_health():
  rng = np.random.default_rng(0)
  truth = [["red"]] * 2000
  answers = {"t": _answers(rng, 2000, 0.4), "a": _answers(rng, 2000, 0.2)}
  answers["b"] = _answers(rng, 2000, 0.2)
  fine = health(answers, truth, Judge(), target="t", references=("a", "b"))
  assert not fine.warnings and fine.effective_references == pytest.approx(2, abs=0.2)
  assert fine.error["t"].rate == pytest.approx(0.4, abs=0.03)
  assert fine.all_wrong.rate == pytest.approx(0.04, abs=0.02)
  assert fine.co_error["a"]["b"] == fine.co_error["b"]["a"] == fine.all_wrong
  assert fine.co_error["t"]["t"] == fine.error["t"] and abs(fine.phi["t"]["a"]) < 0.1
  answers["b"] = answers["t"]
  twins = health(answers, truth, Judge(), target="t", references=("a", "b"))
  assert len(twins.warnings) == 1 and "t and b" in twins.warnings[0]
  answers["b"] = answers["a"]
  one = health(answers, truth, Judge(), target="t", references=("a", "b"))
  assert one.effective_references == pytest.approx(1) and one.same_wrong.rate == 1


def test_what_the_judge_cannot_decide_is_left_out():
  answers = {
    "t": ["dog", "poodle", "red"],
    "a": ["cat", "cat", "blue"],
    "b": ["cow", "dog", "blue"],
  }
  found = health(answers, [["dog"], ["dog"], ["red"]], Judge(), target="t", references=("a", "b"))
  assert (found.error["t"].k, found.error["t"].n) == (0, 2)
  assert (found.all_wrong.k, found.all_wrong.n) == (2, 2)
  assert (found.same_wrong.k, found.same_wrong.n) == (1, 2)
  assert found.co_error["a"]["b"] == found.all_wrong


def test_who_is_not_sure_agrees_with_none():
  answers = {name: ["red", "red"] for name in "tab"}
  how = {"target": "t", "references": ("a", "b")}
  found = health(answers, [["blue"]] * 2, Judge(), **how, unsure=[{"b"}, ()])
  assert (found.same_wrong.k, found.same_wrong.n) == (1, 2)
  assert found.all_wrong.k == 2, "whether they are right is another question"


def test_no_question_is_no_rate():
  nothing = health({"t": [], "a": []}, [], Judge(), target="t", references=("a",))
  assert nothing.co_error["t"]["a"].rate is None and nothing.phi["t"]["a"] is None
  assert nothing.effective_references == 1


def test_references_that_never_err_are_not_called_independent():
  right = {name: ["red"] * 50 for name in "tab"}
  found = health(right, [["red"]] * 50, Judge(), target="t", references=("a", "b"))
  assert found.effective_references is None and found.phi["a"]["b"] is None
  assert not found.warnings


def test_labels_vote_and_one_that_strays_accuses_nobody():
  answers = {name: ["yes"] * 40 for name in "tab"}
  labels = [["no"] + ["yes"] * 9] * 30 + [["yes"] * 5 + ["no"] * 5] * 5 + [["no"] * 10] * 5
  found = health(answers, labels, Judge(), target="t", references=("a", "b"))
  assert (found.all_wrong.k, found.all_wrong.n) == (5, 40)
  split = [["yes"] * 2 + ["no"] * 8] * 40
  assert health(answers, split, Judge(), target="t", references=("a",)).error["t"].n == 0
