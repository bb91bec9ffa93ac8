# SPDX-License-Identifier: Apache-2.0
"""benchmarks/scale.py on few probes: whoever measures an audit finds no stage that has moved on."""

import re

import pytest

from benchmarks import scale


@pytest.fixture
def few(monkeypatch):
  monkeypatch.setattr(scale, "FRESH", 100)
  monkeypatch.chdir(scale.ROOT)


def test_the_stages_of_an_audit_are_measured(few, tmp_path, capsys):
  scale.audit(tmp_path, 150)
  out = capsys.readouterr().out
  assert re.findall(r"^(\w+) +[\d.]+ CPU s", out, re.MULTILINE) == ["write", "verify", "report"]
  finds = int(re.search(r"150 probes, (\d+) finds", out)[1])
  assert 15 <= finds <= 60 and f"'looked_at': {finds}" in out
  assert (tmp_path / "report/index.html").is_file()


def test_rows_are_written_and_read(few, tmp_path, capsys):
  scale.read(tmp_path, 150)
  assert capsys.readouterr().out.endswith("\n150 rows read\n")
