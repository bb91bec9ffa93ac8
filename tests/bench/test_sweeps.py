# SPDX-License-Identifier: Apache-2.0
"""Cells over seeds: statistics against scipy, budgets, and files whatever is in names."""

import csv
import io
import json
import xml.etree.ElementTree

import numpy as np
import pytest
from scipy import stats

from auditdm_jax.audit import rates
from auditdm_jax.bench import page
from auditdm_jax.bench.sweeps import compare, record, sheets
from auditdm_jax.bench.sweeps.compare import SweptRun
from auditdm_jax.bench.sweeps.record import Cell, Sweep
from auditdm_jax.core.config import UserError
from tests.bench.summaries import summary

TRAINED = "search success, trained, %"
HOSTILE = "reward.terms=<script>alert(1)</script>|`\u202e=1+1\x1b[2J"


def swept(cell, values, *, seeds=None, answers=5_000, **changes):
  seeds = range(len(values)) if seeds is None else seeds
  return [
    SweptRun(cell=cell, seed=seed, summary=summary(k, **changes), answers=answers)
    for seed, k in zip(seeds, values, strict=True)
  ]


def cells(*names):
  return [Cell(name=name) for name in names]


def row(table, name=TRAINED):
  return next(r for r in table.rows if r.figure == name)


def budget(table, cell):
  return next(b for b in table.budgets if b.cell == cell)


def test_means_and_paired_differences_are_scipys():
  control, other = [810, 850, 790, 880, 840], [860, 870, 850, 900, 840]
  runs = [*swept("a", control), *swept("b", other)]
  found = row(compare.tabulate(cells("a", "b"), runs, config="c"))
  first, second = found.cells
  alone = stats.ttest_1samp(np.array(control) / 10, 0.0).confidence_interval()
  assert first.found.ci95 == pytest.approx((alone.low, alone.high)) and first.change is None
  pairs = stats.ttest_rel(np.array(other) / 10, np.array(control) / 10)
  inner = pairs.confidence_interval()
  assert second.change.p == pytest.approx(pairs.pvalue)
  assert second.change.found.ci95 == pytest.approx((inner.low, inner.high))
  assert second.change.found.mean == pytest.approx(3.0)


def test_only_seeds_of_both_are_paired():
  runs = [
    *swept("a", [800, 700, 100], seeds=[1, 2, 9]),
    *swept("b", [950, 720, 810], seeds=[7, 2, 1]),
  ]
  found = row(compare.tabulate(cells("a", "b"), runs, config="c")).cells[1]
  assert sorted(found.change.found.values) == pytest.approx([1.0, 2.0])
  assert len(found.found.values) == 3


def test_q_is_adjusted_over_all_cells_and_figures():
  runs = [
    *swept("a", [800, 810, 790], confirmed=3),
    *swept("b", [850, 880, 850], confirmed=3),
    *swept("c", [805, 800, 795], confirmed=3),
  ]
  table = compare.tabulate(cells("a", "b", "c"), runs, config="c")
  changes = [c.change for r in table.rows for c in r.cells if c.change and c.change.p is not None]
  p = [change.p for change in changes]
  assert len(p) > 4 and [c.q for c in changes] == pytest.approx(rates.benjamini_hochberg(p))
  assert any(c.q > c.p for c in changes)


def test_what_cannot_be_told_has_no_p():
  one = row(compare.tabulate(cells("a", "b"), [*swept("a", [1]), *swept("b", [2])], config="c"))
  assert one.cells[1].change.p is None and one.cells[1].found.ci95 is None
  runs = [*swept("a", [10, 20]), *swept("b", [20, 30])]
  same = row(compare.tabulate(cells("a", "b"), runs, config="c"))
  assert same.cells[1].change.p is None  # Two equal differences are no spread of none.
  runs = [*swept("a", [301, 802]), *swept("b", [305, 806])]  # So are those of rounding.
  assert row(compare.tabulate(cells("a", "b"), runs, config="c")).cells[1].change.p is None
  runs = [*swept("a", [10, 20]), *swept("b", [10, 20])]
  assert row(compare.tabulate(cells("a", "b"), runs, config="c")).cells[1].change.p == 1.0
  runs = [*swept("a", [10, 20], seeds=[0, 1]), *swept("b", [10, 20], seeds=[2, 3])]
  assert row(compare.tabulate(cells("a", "b"), runs, config="c")).cells[1].change is None


def test_unequal_budgets_are_named_beside_each_difference():
  runs = [
    *swept("a", [800, 810], examples=100),
    *swept("b", [850, 880], queries=500, examples=100),
    *swept("c", [850, 880], answers=7_500),
    *swept("d", [850, 880], queries=1_010, examples=100),
  ]
  table = compare.tabulate(cells("a", "b", "c", "d"), runs, config="c")
  assert budget(table, "a").unequal == budget(table, "d").unequal == ""
  assert budget(table, "b").unequal == "queries × 0.50"
  assert budget(table, "c").unequal == "answers × 1.50, examples 0 against 100"
  assert (budget(table, "b").queries, budget(table, "b").answers) == (500, 5_000)
  changes = next(s for s in sheets.sheets(table) if s.title == "Differences")
  said = {line[1]: line[-1] for line in changes.rows if line[0] == TRAINED}
  assert said == {"b": "queries × 0.50", "c": budget(table, "c").unequal, "d": "equal"}


@pytest.mark.parametrize(("other", "listed"), [([10, 21], ["b", "c"]), ([10, 20], ["all"])])
def test_a_figure_that_no_cell_changes_has_one_line(other, listed):
  runs = [*swept("a", [10, 20]), *swept("b", [10, 20]), *swept("c", other)]
  table = compare.tabulate(cells("a", "b", "c"), runs, config="c")
  changes = next(s for s in sheets.sheets(table) if s.title == "Differences")
  assert {len(line) for line in changes.rows} == {len(changes.head)}
  assert [line[1] for line in changes.rows if line[0] == TRAINED] == listed


def test_files_hold_whatever_overrides_are_called(tmp_path):
  named = [Cell(name="a"), Cell(name="b", overrides=(f"--config.{HOSTILE}",))]
  runs = [*swept("a", [800, 810]), *swept("b", [850, 890])]
  table = compare.tabulate(named, runs, config=HOSTILE, missing=[("b/7", HOSTILE)])
  page.write_sweep(tmp_path, table, created="now")
  made = {path.name for path in tmp_path.iterdir()}
  assert made >= {"table.md", "table.csv", "table.json", "table.svg", "table.html", "style.css"}
  text = (tmp_path / "table.md").read_text()
  assert "\x1b" not in text and "\u202e" not in text and "<script" not in text.replace("\\<", "")
  assert "<script" not in (tmp_path / "table.html").read_text()
  rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
  found = next(r for r in rows if r["figure"] == TRAINED and r["cell"] == "b")
  assert float(found["difference"]) == pytest.approx(6.5) and found["pairs"] == "2"
  assert json.loads((tmp_path / "table.json").read_text())["control"] == "a"
  drawn = xml.etree.ElementTree.fromstring((tmp_path / "table.svg").read_text())
  said = "".join(drawn.itertext())
  assert "search success, trained" in said and "+6.5 [" in said


@pytest.mark.parametrize("others", ["bcdefg", "bcdefgh"])
def test_each_mark_of_a_plot_can_be_told_by_its_colour_or_its_name(others):
  runs = [run for name in "a" + others for run in swept(name, [800, 810 + ord(name)])]
  table = compare.tabulate(cells("a", *others), runs, config="c")
  drawn = xml.etree.ElementTree.fromstring(sheets.forest_of(table))
  marks = [e.get("fill") for e in drawn.iter() if e.get("width") == "8"]
  named = [e.text for e in drawn.iter() if e.text in set(others)]
  figures = len([row for row in table.rows if row.drawn])
  if len(others) == 6:
    assert len(set(marks)) == 6 and named == list(others)
  else:
    assert len(marks) == len(named) and named == list(others) * (len(named) // len(others))
    assert 0 < len(named) // len(others) <= figures


def test_a_plot_without_intervals_says_so():
  table = compare.tabulate(cells("a", "b"), [*swept("a", [1]), *swept("b", [2])], config="c")
  assert "no cell has two runs" in sheets.forest_of(table)


@pytest.mark.parametrize(
  "name", ["", "..", "a/b", "../a", "a b", "-a", ".a", "a..b", "_targets", "a\n", "ä", "a" * 49]
)
def test_a_cell_is_no_other_path(name):
  with pytest.raises(UserError, match="names no cell"):
    Cell(name=name)


def test_a_folder_is_of_one_sweep_and_knows_all_its_runs(tmp_path):
  assert record.read(tmp_path) is None
  sweep = Sweep(config="c.py", overrides=(), cells=(Cell(name="a"),), configs={"a/0": "h"})
  record.write(tmp_path, sweep)
  more = Sweep(config="c.py", overrides=(), cells=(Cell(name="a"),), configs={"a/3": "g"})
  record.write(tmp_path, more)
  assert record.read(tmp_path).configs == {"a/0": "h", "a/3": "g"}
  other = Sweep(config="d.py", overrides=(), cells=(Cell(name="a"),), configs={})
  with pytest.raises(UserError, match="is the sweep of c.py"):
    record.write(tmp_path, other)
  (tmp_path / record.FILE).write_text('{"cells": 3}')
  with pytest.raises(UserError, match="not what this version writes"):
    record.read(tmp_path)
