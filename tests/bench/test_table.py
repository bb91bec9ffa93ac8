# SPDX-License-Identifier: Apache-2.0
"""One table of all benchmarks, and its files, whatever names are in it."""

import csv
import dataclasses
import html.parser
import io
import json
import xml.etree.ElementTree

import pytest

from auditdm_jax.audit import rates
from auditdm_jax.bench import forest, page, sheets
from auditdm_jax.bench import table as table_lib
from auditdm_jax.bench.predictions import ModelId, PredictionStore
from auditdm_jax.bench.results import find_metric
from auditdm_jax.bench.specs import PaperRow
from tests.bench import asked as made

HOSTILE = "=1|2`*\n<script>alert(1)</script>](http://x)\u202e"


def _right(numbers):
  return lambda prompt: "yes" if int(prompt.split()[2][:-1]) in numbers else "no"


ROLES = {
  "baseline": set(range(0, 20)),
  "repaired": set(range(2, 28)),
  "control": set(range(0, 21)),
}


def _table(tmp_path, *, entries=("one", "two"), model="m", paper=(), roles=ROLES, **changes):
  rows, specs = [], []
  for entry in entries:
    asked = made.questions(made.items(40, images=20), entry=entry, **changes)
    store, row = PredictionStore(tmp_path / entry.replace("/", "_")[:8]), {}
    for role, numbers in roles.items():
      said = made.Said(_right(numbers), identity=role)
      said.model = ModelId(name=model, identity=role)
      row[role] = made.scored(said, asked, store, role=role)
    rows.append(row)
    specs.append(dataclasses.replace(asked.spec, paper=paper))
  return table_lib.tabulate(
    rows,
    specs,
    lambda head: find_metric(head.metric, where="test"),
    baseline="baseline",
    roles=list(roles),
    draws=200,
  )


def test_values_differences_and_forgetting(tmp_path):
  made_table = _table(tmp_path, paper=(PaperRow(split="test", baseline=84.8, repaired=86.7),))
  row = made_table.rows[0]
  assert made_table.roles == ("baseline", "repaired", "control")
  cell, step = row.cell("baseline"), row.change("repaired")
  images = [f"im{i % 20}" for i in range(40)]
  alone = rates.rate_by_image([i < 20 for i in range(40)], images)
  assert cell is not None and cell.found.value == 50
  assert cell.found.ci95 == pytest.approx([100 * x for x in alone.ci95])
  assert step is not None and step.found.change == pytest.approx(15)
  assert (step.found.wins, step.found.losses) == (8, 2)
  both = [c.found.p for r in made_table.rows if (c := r.change("repaired"))]
  assert step.q == pytest.approx(rates.benjamini_hochberg(both)[0])
  assert row.paper is not None and row.paper.repaired == 86.7
  forgets = {f.role: f for f in made_table.forgetting}
  lost = forgets["repaired"].lost
  assert (lost.k, lost.n) == (4, 40), "two benchmarks, two lost in each"
  assert (forgets["control"].lost.k, forgets["control"].gained.k) == (0, 2)


def test_units_of_benchmarks_that_are_parts_of_one_another_count_once_for_forgetting(tmp_path):
  found = _table(tmp_path, entries=("scenes-a", "scenes-b"))
  rows = {f.role: (f.lost.n, f.lost.images) for f in found.forgetting}
  assert rows == {"repaired": (20, 20), "control": (20, 20)}


def test_a_part_and_other_words_are_said(tmp_path):
  found = _table(tmp_path, entries=("one",), total=1_000, limit=40)
  notes = " ".join(found.rows[0].notes)
  assert "part of test: 40 of 1,000, drawn by image" in notes
  assert "part of test" in sheets.markdown(found)


def test_a_model_that_was_not_scored_leaves_a_gap(tmp_path):
  roles = {**ROLES}
  found = _table(tmp_path, entries=("one",), roles=roles)
  missing = dataclasses.replace(found, roles=(*found.roles, "larger"))
  assert sheets.markdown(missing).splitlines()[6].count("larger") == 1
  assert " – " in sheets.markdown(missing).splitlines()[8]


class _Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.text = [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)

  def handle_data(self, data):
    self.text.append(data)


def test_hostile_names_stay_text(tmp_path):
  roles = {"baseline": ROLES["baseline"], HOSTILE: ROLES["repaired"]}
  found = _table(tmp_path, entries=("one", HOSTILE), model=HOSTILE, roles=roles)
  page.write_table(tmp_path / "out", found, created="now")
  lines = (tmp_path / "out/table.md").read_text().splitlines()
  assert not any("<script" in x.replace("\\<", "") for x in lines)
  widths = {x.replace("\\|", "").count("|") for x in lines[6:10]}
  assert len(widths) == 1, "no name makes a cell"
  rows = list(csv.DictReader(io.StringIO((tmp_path / "out/table.csv").read_text())))
  assert rows and not any(v.startswith(("=", "@", "+")) for row in rows for v in row.values())
  assert json.loads((tmp_path / "out/table.json").read_text())["rows"][1]["title"]
  for root in (xml.etree.ElementTree.parse(tmp_path / "out/table.svg").getroot(),):
    assert not [x for x in root.iter() if x.tag.endswith("script")]
  read = _Tags()
  read.feed((tmp_path / "out/table.html").read_text())
  assert "script" not in read.tags and "img" in read.tags
  assert "\u202e" not in "".join(read.text)
  assert (tmp_path / "out/style.css").is_file()


def test_the_plot_has_a_mark_for_each_difference(tmp_path):
  found = _table(tmp_path)
  drawn = forest.forest(found)
  assert drawn.count('width="8"') == 4 + 2, "two models on two benchmarks, and the legend"
  alone = _table(tmp_path / "b", roles={"baseline": ROLES["baseline"]})
  assert "no model was compared" in forest.forest(alone)
  assert alone.forgetting == () and "Differences" not in sheets.markdown(alone)


@pytest.mark.parametrize(
  ("value", "text"), [(84.84, "84.8"), (None, "–"), (-1.26, "−1.3"), (1376.0, "1,376.0")]
)
def test_numbers(value, text):
  assert sheets.number(value) == text
