# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import multiprocessing
import pathlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import store
from auditdm_jax.core.config import UserError
from auditdm_jax.core.manifest import Manifest


def test_append_and_read_back(tmp_path):
  rows = [{"probe_id": "a", "text": "line\nbreak \u2028 é \ud800"}, {"probe_id": "b", "x": None}]
  records = store.Records(tmp_path)
  records.append("probes", rows)
  records.append("probes", [])
  assert records.read("probes") == rows
  assert records.read("verdicts") == []
  assert (tmp_path / "probes-0.jsonl").read_bytes().count(b"\n") == 2


def test_torn_last_line_cut_at_every_byte(tmp_path, caplog):
  """Whatever part of the last record is on disk, reading skips it and appending replaces it."""
  whole = store.Records(tmp_path / "whole")
  whole.append("probes", [{"id": i, "text": "é" * 3} for i in range(3)])
  data = (tmp_path / "whole" / "probes-0.jsonl").read_bytes()
  start = data.rstrip(b"\n").rindex(b"\n") + 1
  for end in range(start, len(data) + 1):
    folder = tmp_path / str(end)
    folder.mkdir()
    path = folder / "probes-0.jsonl"
    path.write_bytes(data[:end])
    records = store.Records(folder)
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
  records = store.Records(tmp_path)
  assert records.read("probes") == []
  records.append("probes", [{"id": 1}])
  assert records.read("probes") == [{"id": 1}]


def test_damage_in_the_middle_is_an_error(tmp_path):
  (tmp_path / "probes-0.jsonl").write_bytes(b'{"id": 1}\n{"id\n{"id": 3}\n')
  with pytest.raises(UserError, match="probes-0.jsonl: damaged in the line before byte 15"):
    store.Records(tmp_path).read("probes")


def test_keys_read_only_what_is_new(tmp_path, monkeypatch):
  records = store.Records(tmp_path)
  records.append("answers", [{"probe_id": "a", "model": "x"}, {"probe_id": "a", "model": "y"}])
  assert records.keys("answers", "probe_id") == {"a"}
  assert records.keys("answers", "probe_id", "model") == {("a", "x"), ("a", "y")}
  store.Records(tmp_path, process=1).append("answers", [{"probe_id": "b", "model": "x"}])
  parsed = []
  loads = json.loads
  monkeypatch.setattr(store.json, "loads", lambda s: parsed.append(s) or loads(s))
  assert records.keys("answers", "probe_id") == {"a", "b"}
  assert len(parsed) == 1


def test_shards_of_all_processes_in_order(tmp_path):
  for process in (10, 2, 0):
    store.Records(tmp_path, process=process).append("probes", [{"p": process}])
  assert [r["p"] for r in store.Records(tmp_path).read("probes")] == [0, 2, 10]


def test_row_too_long_writes_nothing(tmp_path):
  records = store.Records(tmp_path, max_row_bytes=100)
  with pytest.raises(ValueError, match="longest field is 'text'"):
    records.append("probes", [{"id": 1}, {"id": 2, "text": "x" * 100}])
  assert records.read("probes") == []


def test_name_cannot_leave_the_folder(tmp_path):
  for name in ("../probes", "a-b", "", "A"):
    with pytest.raises(ValueError, match="records are named"):
      store.Records(tmp_path).append(name, [{"id": 1}])


def test_rewind(tmp_path):
  records = store.Records(tmp_path)
  records.append("probes", [{"step": s, "id": f"{s}"} for s in (1, 2, 2, 3)])
  assert records.keys("probes", "id") == {"1", "2", "3"}
  assert records.rewind("probes", 2) == 1
  assert records.keys("probes", "id") == {"1", "2"}
  assert [r["step"] for r in records.read("probes")] == [1, 2, 2]
  assert records.rewind("probes", 2) == 0
  assert records.rewind("nothing", 2) == 0


def append_many(folder: pathlib.Path, writer: int) -> None:
  records = store.Records(folder)
  for i in range(50):
    records.append("probes", [{"id": [writer, i], "pad": "x" * 500}] * 3)


def test_two_writers_of_one_shard_do_not_mix_lines(tmp_path):
  with multiprocessing.get_context("spawn").Pool(2) as pool:
    pool.starmap(append_many, [(tmp_path, 0), (tmp_path, 1)])
  rows = store.Records(tmp_path).read("probes")
  assert len(rows) == 300
  assert {tuple(r["id"]) for r in rows} == {(w, i) for w in (0, 1) for i in range(50)}


def test_images(tmp_path):
  images = store.Images(tmp_path)
  image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
  image_id = images.put(image)
  assert images.put(image.copy()) == image_id
  assert image_id in images and "0" * 64 not in images
  np.testing.assert_array_equal(images.get(image_id), image)
  assert images.path(image_id) == tmp_path / f"{image_id}.png"
  assert [p.name for p in tmp_path.iterdir()] == [f"{image_id}.png"]
  assert images.put(image.reshape(7, 5, 3)) != image_id
  flipped = image[:, ::-1]  # Not contiguous.
  np.testing.assert_array_equal(images.get(images.put(flipped)), flipped)


def test_images_refuse_what_is_not_one(tmp_path):
  images = store.Images(tmp_path)
  for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
    with pytest.raises(ValueError, match="an image is u8"):
      images.put(bad)
  with pytest.raises(ValueError, match="not an image id"):
    images.path("../x")
  with pytest.raises(KeyError):
    images.get("0" * 64)


def test_damaged_images_are_found(tmp_path):
  images = store.Images(tmp_path)
  image_id = images.put(np.zeros((4, 4, 3), np.uint8))
  Image.new("RGB", (4, 4), "red").save(images.path(image_id))
  with pytest.raises(UserError, match="damaged"):
    images.get(image_id)
  images.path(image_id).write_bytes(b"\x89PNG torn")
  with pytest.raises(UserError, match="damaged"):
    images.get(image_id)


def test_plain_and_hash():
  @dataclasses.dataclass(frozen=True)
  class Probe:
    image: str
    seeds: tuple

  plain = store.plain({"a": Probe("x", (1, np.int64(2))), 1: np.float32(0.5), "n": float("nan")})
  assert plain == {"a": {"image": "x", "seeds": [1, 2]}, "1": 0.5, "n": None}
  assert store.canonical_hash({"a": 1, "b": 2}) == store.canonical_hash({"b": 2, "a": 1})
  assert store.canonical_hash(["ab", "c"]) != store.canonical_hash(["a", "bc"])
  # Ids are on disk: they must not change between releases.
  assert store.canonical_hash(["x", "how many?"]) == "61f3dcbbbd5ec9ebb235595936263b0e"
  with pytest.raises(TypeError, match="object"):
    store.plain(object())


def test_write_json_is_atomic(tmp_path, monkeypatch):
  path = tmp_path / "summary.json"
  store.write_json(path, {"rate": 0.5})
  with pytest.raises(TypeError):
    store.write_json(path, {"rate": object()})

  def full_disk(*_):
    raise OSError("disk full")

  monkeypatch.setattr(store.os, "fsync", full_disk)
  with pytest.raises(OSError, match="disk full"):
    store.write_json(path, {"rate": 0.7})
  assert store.read_json(path) == {"rate": 0.5}
  assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
  for content in ("{", "[" * 200_000):
    path.write_text(content)
    with pytest.raises(UserError, match="not JSON"):
      store.read_json(path)


def test_manifest(tmp_path):
  manifest = Manifest(tmp_path)
  assert manifest.record("train", config={"grpo": {"lr": 1.0, "kl": 0.0}}, seeds={"run": 1}) == []
  manifest.add_cost("train", images=3, device_seconds=1.5)
  manifest.add_cost("train", images=2)
  changed = manifest.record("train", config={"grpo": {"lr": 2.0, "beta": 0.0}}, seeds={"run": 1})
  assert changed == ["grpo.lr", "grpo.kl", "grpo.beta"]
  stage = manifest.read()["stages"]["train"]
  assert stage["cost"] == {"images": 5, "device_seconds": 1.5}
  assert stage["runs"] == 2 and stage["packages"]["jax"] and stage["config"]["grpo"]["lr"] == 2.0
