# SPDX-License-Identifier: Apache-2.0
"""Yield by queries, and the calibration of what was asked, from rows of attempts."""

import pytest

from auditdm_jax.audit.rates import rate
from auditdm_jax.audit.summary import Yield, YieldPoint
from auditdm_jax.core import jsonl
from auditdm_jax.rl.batch import Pick
from auditdm_jax.stages import searched
from auditdm_jax.stages.rows import AttemptRow
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.searched import Checked
from auditdm_jax.stages.truth import Truth


def _row(i, *, find=False, gap=None, real=None, way="", score=None, queries=1, answers=3):
  return AttemptRow(
    arm="a",
    strategy="question",
    step=0,
    probe_id=f"p{i}",
    origin_id=f"i{i}",
    asked=True,
    agreed=True,
    disagreed=find,
    find=find,
    real=bool(gap) if real is None else real,
    truth=Truth(bool(gap), gap),
    exposed=None,
    queries=queries,
    answers=answers,
    way=way,
    score=score,
  )


def test_a_curve_counts_distinct_finds_and_the_gaps_that_have_enough_of_them():
  rows = [_row(i, find=i % 2 == 0, gap="dial" if i % 4 == 0 else None) for i in range(48)]
  rows += rows  # All of it once more, which is nothing new.
  points = searched.curve(rows, Checked({}), ("dial", "purple"))
  assert [p.queries for p in points] == [4 * i for i in range(1, 25)]
  assert [p.answers for p in points] == [3 * p.queries for p in points]
  by = {p.queries: p for p in points}
  assert by[48].finds == by[96].finds == 24 and by[48].confirmed == by[96].confirmed == 12
  assert by[16].gaps == 0 and by[20].gaps == 1, "the fifth find of a gap is query 17"
  assert (by[48].precision.k, by[48].precision.n) == (1, 2) and by[96].precision.n == 0
  assert all(p.modes is None for p in points)


def test_a_curve_is_over_queries_of_which_some_ask_again():
  rows = [_row(i, find=i % 4 == 0, queries=2 if i % 4 == 0 else 1) for i in range(48)]
  points = searched.curve(rows, Checked({}), ())
  assert [p.queries for p in points][-1] == 60 and len(points) == 24
  assert all(-0.5 <= p.queries - 60 * (i + 1) / 24 <= 1.5 for i, p in enumerate(points))
  assert points[-1].finds == 12


def test_without_an_oracle_only_what_was_looked_at_has_a_precision():
  rows = [_row(i, find=True, real=i < 6) for i in range(24)]
  checked = Checked({f"p{i}": "m" if i < 6 else None for i in range(12)})
  points = searched.curve(rows, checked, None)
  assert sum(p.precision.n for p in points) == 12 and sum(p.precision.k for p in points) == 6
  assert [p.modes for p in points][3:6] == [0, 1, 1] and points[-1].gaps is None
  assert points[-1].confirmed == 6
  control = searched.curve(rows, Checked({}), None, verified=False)
  assert control[-1].confirmed is None and control[-1].finds == 24
  assert not any(p.precision.n for p in control)


def test_fewer_attempts_than_points_and_none():
  assert [p.queries for p in searched.curve([_row(0), _row(1)], Checked({}), ())][-1] == 2
  assert searched.curve([], Checked({}), ()) == ()


def test_the_cost_of_a_find_needs_all_that_it_is_made_of():
  end = YieldPoint(10, 30, 5, 4, None, None, rate(4, 5))
  assert Yield((end,), 8.0, {"answers": 4.0, "sample": 4.0}).flops_per_find == 2.0
  assert Yield((end,), 8.0, {"sample": 4.0}).flops_per_find is None, "endpoints' work is unknown"
  assert Yield((end,), 8.0).seconds_per_find == 2.0
  none = YieldPoint(10, 30, 5, 0, None, None, rate(0, 5))
  assert Yield((none,), 8.0).seconds_per_find is None


def test_calibration_is_told_apart_by_how_questions_were_chosen():
  trained = [_row(i, find=i < 5, way="rank" if i < 6 else "lot", score=0.5) for i in range(10)]
  blind = [_row(i, find=True, way="lot") for i in range(20)]
  swept = [_row(i, find=True, way="kind", score=0.9) for i in range(4)]
  found = {(c.where, c.chosen): c for c in searched.calibrations(trained, [*blind, *swept])}
  assert {key: c.found.n for key, c in found.items()} == {
    ("grpo", "all"): 10,
    ("grpo", "ranked"): 6,
    ("grpo", "lot"): 4,
    ("sweep", "all"): 4,
    ("sweep", "ranked"): 4,
  }
  assert found["grpo", "all"].error == 0 and found["sweep", "all"].error == pytest.approx(0.1)
  assert searched.calibrations(blind, blind) == ()


def test_what_training_predicted_and_its_work_are_read_from_its_records(tmp_path):
  folder = RunFolder(tmp_path, config_hash="h")
  assert folder.training_flops() is None
  rows = [
    {"step": s, "time": 0.0, "reward": 1.0, "machine/flops/answers": 3.0, "machine/flops/sample": s}
    for s in range(3)
  ]
  jsonl.JsonLines(tmp_path / "metrics/train.jsonl").append(rows)
  assert folder.training_flops() == {"answers": 9.0, "sample": 3.0}
  probe = {"probe_id": "p", "image_id": "i", "question": "q"}
  picks = [Pick("q", 0.25, False, 64), Pick("q", None, True, 64), None]
  records = [
    {"step": 0, "prompt_id": i, "sample": 0, "invalid": None, "probe": probe, "verdict": None}
    | {"key": str(i), "pick": pick and vars(pick)}
    for i, pick in enumerate(picks)
  ]
  folder.records("records/train").append("completions", records)
  told = [(a.probe.way, a.probe.score) for a in folder.completions()]
  assert told == [("rank", 0.25), ("lot", None), ("", None)]
