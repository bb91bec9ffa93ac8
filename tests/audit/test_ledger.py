# SPDX-License-Identifier: Apache-2.0
"""Ledgers are read by people, by machines and by CI, whatever models and files say."""

import dataclasses
import html
import json
import xml.etree.ElementTree as ET

import junitparser
import pytest

from auditdm_jax.audit import ledger as ledger_lib
from auditdm_jax.audit import pack
from auditdm_jax.audit.compare import PairedOutcome, compare
from auditdm_jax.audit.ledger import ChangedProbe, ComparedModel, Ledger

HOSTILE = (
  "</failure><x> & \"'`|*_[a](javascript:1)\n\n# head\x00\x1b[31m \ud800\ufffe ]]> <script>"
  + "y" * 9_999
)


def _outcomes(mode: str, n: int, old: int, new: int) -> list[PairedOutcome]:
  """`old` and `new` failures of n probes, each about an image of its own."""
  return [PairedOutcome(mode, f"{mode}-{i}", f"i{i}", i < old, i < new) for i in range(n)]


def _ledger(*outcomes: list[PairedOutcome], text: str = "plain", known=None) -> Ledger:
  items = [item for some in outcomes for item in some]
  return Ledger(
    old=ComparedModel(text, "1" * 64, asked=False, unanswered=0),
    new=ComparedModel(text, "2" * 64, asked=True, unanswered=3),
    comparison=compare(items, known=known),
    names={mode: f"{mode} {text}" for mode in "abc"},
    changes=[
      ChangedProbe(i.mode_id, i.probe_id, i.image_id, text, text, text, text, worse=i.new_failed)
      for i in items
      if i.old_failed != i.new_failed
    ],
    probes=text,
    left_out=1,
    notes=[text],
  )


WORSE = _outcomes("a", 40, 0, 40)
BETTER = _outcomes("b", 40, 40, 0)
UNSURE = _outcomes("c", 5, 0, 1)
SAME = _outcomes(pack.CONTROLS, 400, 3, 3)


@pytest.mark.parametrize(
  ("outcomes", "known", "strict", "code"),
  [
    ((BETTER, SAME), None, False, 0),
    ((BETTER, SAME), None, True, 0),
    ((BETTER, SAME, UNSURE), None, False, 0),
    ((BETTER, SAME, UNSURE), None, True, 3),
    ((BETTER, SAME, WORSE), None, False, 1),
    ((BETTER, SAME, WORSE, UNSURE), None, True, 1),
    ((BETTER, WORSE), ["b"], False, 1),
    ((_outcomes(pack.CONTROLS, 400, 3, 90),), None, False, 1),
  ],
)
def test_exit_codes_and_junit_agree(outcomes, known, strict, code, tmp_path):
  ledger = _ledger(*outcomes, known=known)
  ledger_lib.write(tmp_path, ledger, strict=strict)
  data = json.loads((tmp_path / "ledger.json").read_text())
  assert data["exit_code"] == ledger.comparison.exit_code(strict=strict) == code
  xml = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
  (suite,) = list(xml)
  cases = list(suite)
  assert len(cases) == suite.tests == len(outcomes) and xml.tests == suite.tests
  # A CI that goes by the file decides as one that goes by the exit code.
  assert (suite.failures > 0) == (code != 0) and suite.errors == 0
  results = [type(r) for case in cases for r in case.result]
  assert results.count(junitparser.Failure) == suite.failures
  assert results.count(junitparser.Skipped) == suite.skipped
  assert suite.skipped == (UNSURE in outcomes and not strict)
  assert ("regression" if code == 1 else "unsure" if code else "no regression") in (
    (tmp_path / "ledger.md").read_text().partition("\n")[0]
  )


def test_new_is_told_from_regressed():
  ledger = _ledger(WORSE, _outcomes("b", 40, 0, 40), known=["a"])
  assert {e.mode_id: e.status for e in ledger.comparison.entries} == {
    "a": "regressed",
    "b": "new",
  }
  assert [e["name"] for e in ledger_lib.as_dict(ledger, strict=False)["entries"]]


def test_hostile_text_is_bounded_and_obeyed_by_nothing(tmp_path):
  ledger = _ledger(WORSE, BETTER, UNSURE, SAME, text=HOSTILE)
  ledger_lib.write(tmp_path, ledger, strict=False)
  raw = (tmp_path / "junit.xml").read_bytes()
  root = ET.fromstring(raw)
  assert {e.tag for e in root.iter()} == {
    "testsuites",
    "testsuite",
    "testcase",
    "failure",
    "skipped",
    "system-out",
  }
  assert len(raw) < 100_000
  junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
  (said,) = [e.text for e in root.iter("failure")]
  assert said and "</failure><x>" in said and "\x1b" not in said and len(said) < 20_000
  text = (tmp_path / "ledger.md").read_text()
  assert len(text) < 100_000 and text.isascii() is False
  assert (
    "<script" not in text and "\x1b" not in text and "](" not in text and "\n# head" not in text
  )
  # Every row of the table has its six cells.
  rows = [line for line in text.splitlines() if line.startswith("| ")]
  assert len(rows) == 5 and all(row.count("|") == 7 for row in rows)
  assert html.unescape(rows[1]).count("javascript") == 1
  shown = ledger_lib.text(ledger)
  assert all(c.isprintable() or c == "\n" for c in shown) and len(shown) < 20_000
  shown.encode()
  # The whole of it is in the file for machines.
  changes = json.loads((tmp_path / "ledger.json").read_text())["changes"]
  assert len(changes) == len(ledger.changes)


def test_only_some_of_many_changes_are_listed():
  many = _ledger(_outcomes("a", 3_000, 0, 3_000))
  text = ledger_lib.markdown(many, strict=False)
  assert "and 2980 more in ledger.json" in text and len(text) < 10_000
  case = next(ET.fromstring(ledger_lib.junit(many, strict=False)).iter("failure"))
  assert case.text is not None and case.text.count("\n") == 19


def test_lines_have_names():
  names = {"m-1": "counting"}
  assert ledger_lib.line_name("m-1", names) == "counting"
  assert ledger_lib.line_name("m-2", names) == "m-2"
  assert "forgetting" in ledger_lib.line_name(pack.CONTROLS, names)
  assert "no mode" in ledger_lib.line_name(pack.NO_MODE, names)
  assert ledger_lib.shown("a\tb\n c") == "a b c" and ledger_lib.shown("x" * 500) == "x" * 159 + "…"


@pytest.mark.parametrize(("left_out", "code"), [(0, 0), (40, 0), (60, 3)])
def test_silence_is_no_success(left_out, code, tmp_path):
  ledger = dataclasses.replace(_ledger(BETTER, SAME), left_out=left_out)
  assert ledger.exit_code(strict=False) == 0 and ledger.exit_code(strict=True) == code
  ledger_lib.write(tmp_path, ledger, strict=True)
  (suite,) = list(junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml")))
  assert suite.failures == (code != 0) and len(list(suite)) == suite.tests
  assert ("could not be compared" in ledger_lib.text(ledger)) == (left_out > 0)
