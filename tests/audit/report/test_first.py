# SPDX-License-Identifier: Apache-2.0
"""The first screen says what the audit amounts to, and shows the worst modes and failures."""

import dataclasses
import re

import pytest

from auditdm_jax.audit import rates
from auditdm_jax.audit.report import charts, first, write
from auditdm_jax.audit.report import data as data_lib
from tests.audit.report import sample


def mode(name, k, n, *, skill="count", holds=True, cards=()):
  return data_lib.ModeView(
    mode_id=name,
    name=name,
    skill=skill,
    definition="",
    members=n,
    rate=rates.rate(k, n) if n else None,
    holds=holds,
    cards=cards,
  )


def test_modes_are_ranked_by_what_is_sure(tmp_path):
  few, many, folded = mode("few", 3, 3), mode("many", 80, 100), mode("no", 99, 99, holds=False)
  assert [m.name for m in first.ranked([few, folded, many, mode("none", 0, 0)])] == ["many", "few"]


def test_the_worst_failures_are_of_different_skills_first(tmp_path):
  cards = [sample._card(tmp_path, i, f"q{i}", edited=False) for i in range(8)]
  weak, strong = (dataclasses.replace(cards[i], grade=g) for i, g in ((0, "V1"), (1, "V3")))
  bare = dataclasses.replace(cards[4], original=None)
  modes = [
    mode("a", 99, 100, skill="count", cards=(weak, strong)),
    mode("b", 98, 100, skill="count", cards=(cards[2],)),
    mode("c", 50, 100, skill="colour", cards=(cards[3],)),
    mode("d", 97, 100, skill="dial", cards=(bare,)),
  ]
  data = data_lib.ReportData(title="t", target="easy", created="now", modes=modes)
  assert [w.card.probe_id for w in first.worst(data)] == [
    strong.probe_id,
    cards[3].probe_id,
    cards[2].probe_id,
  ]


def test_without_modes_verified_finds_are_shown(tmp_path):
  finds = sample.find_list(tmp_path)
  data = data_lib.ReportData(title="t", target="easy", created="now", finds=finds)
  shown = first.worst(data)
  assert len(shown) == 3 and all(w.card.grade == "V1" and not w.mode for w in shown)
  nothing = dataclasses.replace(finds, shown=[r for r in finds.shown if r.card.grade == "V0"])
  assert first.worst(dataclasses.replace(data, finds=nothing)) == []
  index = write.write_report(tmp_path / "r", data).read_text()
  assert index.count('href="failures.html#') == 3 and "3 of the worst failures" in index


@pytest.mark.parametrize(
  ("held", "start"), [(0, "640 f"), (1, "1 failure mode holds on"), (2, "2 ")]
)
def test_the_verdict_counts_modes_that_hold(tmp_path, held, start):
  data = sample.report_data(tmp_path, modes=2, cards=1)
  modes = [dataclasses.replace(m, holds=i < held) for i, m in enumerate(data.modes)]
  said = first.sentence(dataclasses.replace(data, modes=modes))
  assert said.startswith(start) and said.count(".") == 4 and said.endswith("%].")  # One sentence.


def test_a_row_of_the_picture_is_drawn_where_its_numbers_are():
  svg = charts.way_bar(sample.rate(50, 100), sample.rate(2, 100))
  low, width = map(float, re.search(r'band" x="([\d.]+)" y="7" width="([\d.]+)"', svg).groups())
  assert (low, low + width) == pytest.approx((40, 60), abs=0.1)
  assert '"mark" x1="50.0"' in svg and '"base" x1="2.0"' in svg and "50.0\u202f% (50/100" in svg
  assert "base" not in charts.way_bar(sample.rate(1, 2), None)
