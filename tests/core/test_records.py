# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
import pathlib

import pytest

from auditdm_jax.core import jsonl
from auditdm_jax.core.config import UserError
from auditdm_jax.core.records import Records, Stored, chunks


def test_append_and_read_back(tmp_path):
  rows = [{"probe_id": "a", "text": "line\nbreak \u2028 é \ud800"}, {"probe_id": "b", "x": None}]
  records = Records(tmp_path)
  records.append("probes", rows)
  records.append("probes", [])
  assert records.read("probes") == rows
  assert records.read("verdicts") == []
  assert (tmp_path / "probes-0.jsonl").read_bytes().count(b"\n") == 2


def test_torn_last_line_cut_at_every_byte(tmp_path, caplog):
  """Whatever part of the last record is on disk, reading skips it and appending replaces it."""
  whole = Records(tmp_path / "whole")
  whole.append("probes", [{"id": i, "text": "é" * 3} for i in range(3)])
  data = (tmp_path / "whole" / "probes-0.jsonl").read_bytes()
  start = data.rstrip(b"\n").rindex(b"\n") + 1
  for end in range(start, len(data) + 1):
    folder = tmp_path / str(end)
    folder.mkdir()
    path = folder / "probes-0.jsonl"
    path.write_bytes(data[:end])
    records = Records(folder)
    ids = [0, 1] if end < len(data) else [0, 1, 2]
    caplog.clear()
    assert [r["id"] for r in records.read("probes")] == ids
    assert bool(caplog.records) == (start < end < len(data))
    assert records.keys("probes", "id") == set(ids)
    records.append("probes", [{"id": 7}])
    assert [r["id"] for r in records.read("probes")] == [*ids, 7]
    assert records.keys("probes", "id") == {*ids, 7}


@pytest.mark.parametrize("junk", [b"x", b"{}", b"\0" * 70_000, b'{"a": "' + b"y" * 200_000])
def test_torn_first_line(tmp_path, junk):
  (tmp_path / "probes-0.jsonl").write_bytes(junk)
  records = Records(tmp_path)
  assert records.read("probes") == []
  records.append("probes", [{"id": 1}])
  assert records.read("probes") == [{"id": 1}]


def test_damage_in_the_middle_is_an_error(tmp_path):
  (tmp_path / "probes-0.jsonl").write_bytes(b'{"id": 1}\n{"id\n{"id": 3}\n')
  with pytest.raises(UserError, match="probes-0.jsonl: damaged in the line before byte 15"):
    Records(tmp_path).read("probes")


def test_keys_read_only_what_is_new(tmp_path, monkeypatch):
  records = Records(tmp_path)
  records.append("answers", [{"probe_id": "a", "model": "x"}, {"probe_id": "a", "model": "y"}])
  assert records.keys("answers", "probe_id") == {"a"}
  assert records.keys("answers", "probe_id", "model") == {("a", "x"), ("a", "y")}
  Records(tmp_path, process=1).append("answers", [{"probe_id": "b", "model": "x"}])
  parsed = []
  loads = json.loads
  monkeypatch.setattr(jsonl.json, "loads", lambda s: parsed.append(s) or loads(s))
  assert records.keys("answers", "probe_id") == {"a", "b"}
  assert len(parsed) == 1


def test_shards_of_all_processes_in_order(tmp_path):
  for process in (10, 2, 0):
    Records(tmp_path, process=process).append("probes", [{"p": process}])
  assert [r["p"] for r in Records(tmp_path).read("probes")] == [0, 2, 10]


def test_row_too_long_writes_nothing(tmp_path):
  records = Records(tmp_path, max_row_bytes=100)
  with pytest.raises(ValueError, match="longest field is 'text'"):
    records.append("probes", [{"id": 1}, {"id": 2, "text": "x" * 100}])
  assert records.read("probes") == []


def test_name_cannot_leave_the_folder(tmp_path):
  for name in ("../probes", "a-b", "", "A"):
    with pytest.raises(ValueError, match="records are named"):
      Records(tmp_path).append(name, [{"id": 1}])


def test_rewind(tmp_path):
  records = Records(tmp_path)
  records.append("probes", [{"step": s, "id": f"{s}"} for s in (1, 2, 2, 3)])
  assert records.keys("probes", "id") == {"1", "2", "3"}
  assert records.rewind("probes", 2) == 1
  assert records.keys("probes", "id") == {"1", "2"}
  assert [r["step"] for r in records.read("probes")] == [1, 2, 2]
  assert records.rewind("probes", 2) == 0
  assert records.rewind("nothing", 2) == 0


def append_many(folder: pathlib.Path, writer: int) -> None:
  records = Records(folder)
  for i in range(50):
    records.append("probes", [{"id": [writer, i], "pad": "x" * 500}] * 3)


def test_two_writers_of_one_shard_do_not_mix_lines(tmp_path):
  with multiprocessing.get_context("spawn").Pool(2) as pool:
    pool.starmap(append_many, [(tmp_path, 0), (tmp_path, 1)])
  rows = Records(tmp_path).read("probes")
  assert len(rows) == 300
  assert {tuple(r["id"]) for r in rows} == {(w, i) for w in (0, 1) for i in range(50)}


def test_rows_of_all_shards_come_step_by_step(tmp_path):
  for process in (0, 1):
    records = Records(tmp_path, process, processes=2)
    rows = [{"step": s, "prompt": 3 - 2 * process, "sample": i} for s in (0, 1, 12) for i in (1, 0)]
    records.append("completions", rows)
  found = list(Records(tmp_path).by_step("completions", "prompt", "sample"))
  keys = [(r["step"], r["prompt"], r["sample"]) for r in found]
  assert keys == sorted(keys) and len(keys) == 12


def test_what_is_stored_is_read_anew_and_not_held(tmp_path):
  records = Records(tmp_path)
  stored = Stored(lambda: records.iterate("probes"))
  assert not stored and list(stored) == []
  records.append("probes", [{"id": 1}, {"id": 2}])
  assert stored and list(stored) == list(stored) == [{"id": 1}, {"id": 2}]
  assert [len(c) for c in chunks(range(7), 3)] == [3, 3, 1] and list(chunks([], 3)) == []
