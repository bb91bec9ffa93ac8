# SPDX-License-Identifier: Apache-2.0
"""Curves over runs: equal shares of the queries, pairs of the same seed, what is not measured."""

import dataclasses

import pytest

from auditdm_jax.audit import figures, hacks
from auditdm_jax.audit.calibration import calibration
from auditdm_jax.audit.rates import NOTHING, rate
from auditdm_jax.audit.summary import ALL_ARMS, Arm, Coverage, Yield, YieldPoint
from auditdm_jax.bench.sweeps import record
from auditdm_jax.bench.sweeps.record import Cell, Sweep
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.results import Empty
from auditdm_jax.stages.run import RunFolder
from benchmarks import search
from tests.bench.summaries import summary


def _yield(finds, *, queries=240, gaps=4, seconds=60.0):
  """An arm with `finds` in all, at an even pace."""
  points = [
    YieldPoint(
      queries=queries * i // 24,
      answers=queries * i // 8,
      finds=finds * i // 24 + 1,
      confirmed=finds * i // 24,
      gaps=gaps * i // 24,
      modes=None,
      precision=rate(9, 10),
    )
    for i in range(1, 25)
  ]
  return Yield(tuple(points), seconds, {"answers": 2e9, "sample": 1e9})


def _values(lines, what, arm):
  return next(line.values for line in lines if (line.what, line.arm) == (what, arm))


def test_arms_are_compared_after_equal_shares_of_their_queries_and_by_seed():
  runs = {"default": {1: _yield(480), 2: _yield(240), 3: _yield(96)}}
  runs["random"] = {1: _yield(24), 2: _yield(48)}
  lines = search.lines(runs, "random")
  assert _values(lines, "confirmed finds", "random") == (
    (3, 6),
    (6, 12),
    (12, 24),
    (18, 36),
    (24, 48),
  )
  assert _values(lines, "gaps found", "default")[-1] == (4, 4, 4)
  times = _values(lines, "confirmed finds, times random", "default")
  assert times == ((20.0, 5.0),) * 5, "seed 3 has no pair"
  assert not [line for line in lines if line.what == "confirmed modes"], "not measured"
  precision = _values(lines, "precision of new finds, %", "default")
  assert precision[0] == pytest.approx((90, 90, 90))
  assert _values(search.costs(runs), "seconds for each find", "random") == ((2.5, 1.25),)
  assert _values(search.costs(runs), "GFLOP for each find", "random")[0][0] == 3 / 24


def test_an_arm_that_found_nothing_has_no_ratio_and_a_single_run_no_interval():
  runs = {"default": {1: _yield(24)}, "random": {1: _yield(0)}}
  assert not [line for line in search.lines(runs, "random") if "times" in line.what]
  assert search.said(()) == "–" and search.said((3.0,)) == "3 n=1"
  assert search.said((1.0, 3.0)).startswith("2 [") and search.said((1.0, 3.0)).endswith("n=2")


def test_it_reads_the_finished_runs_of_a_sweep_and_says_where_there_are_none(tmp_path, capsys):
  with pytest.raises(UserError, match="no sweep; run auditdm_jax sweep"):
    search.runs_of(tmp_path)
  cells = (Cell(name="default"), Cell(name="random"))
  configs = {f"{cell.name}/{seed}": "h" for cell in cells for seed in (1, 2)}
  record.write(tmp_path, Sweep(config="c", overrides=(), cells=cells, configs=configs))
  with pytest.raises(UserError, match="no run of the sweep is finished"):
    search.runs_of(tmp_path)
  for name, finds in (("default/1", 48), ("random/1", 24), ("random/2", 30)):
    folder = RunFolder(tmp_path / name, config_hash="h")
    folder.write_summary(dataclasses.replace(summary(900), yields={ALL_ARMS: _yield(finds)}))
    folder.finish("loop", Empty())
  runs = search.runs_of(tmp_path)
  assert {arm: list(own) for arm, own in runs.items()} == {"default": [1], "random": [1, 2]}
  assert _values(search.lines(runs, "random"), "confirmed finds, times random", "default")[-1] == (
    2,
  )


def test_figures_of_a_search():
  read = {f.name: f.read for f in figures.FIGURES}
  arm = Arm(100, None, 9, 4, (10, 20, 30, 90), None)
  cover = Coverage(9, {}, 5, 4, (10, 20, 30, 90), None, None)
  counts = hacks.HackCounts(100, rate(1, 100), rate(2, 100), NOTHING, rate(0, 100))
  run = dataclasses.replace(
    summary(900),
    arms={ALL_ARMS: arm},
    coverage=cover,
    hacks={ALL_ARMS: hacks.ArmHacks(counts, counts)},
    calibration=(
      calibration([0.9] * 10, [True] * 8 + [False] * 2, list("abcdefghij"), where="sweep"),
    ),
  )
  assert read["queries to 80 % of the gaps"](run) == 90, "four of five"
  assert read["queries to the last gap"](run) is None
  assert read["verified finds that are no failures, worst kind, %"](run) == pytest.approx(2)
  assert read["calibration error of the sweep, %"](run) == pytest.approx(10)
  none = summary(900)
  assert all(read[name](none) is None for name in read if "queries to" in name or "worst" in name)
