# SPDX-License-Identifier: Apache-2.0
"""A workdir in an object store behaves as one on a disk."""

import fsspec
import numpy as np
import pytest

from auditdm_jax.core import jsonl, metrics, paths
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.manifest import Manifest
from auditdm_jax.core.records import Records
from tests.core.fake_gcs import FakeGcs


@pytest.fixture
def bucket():
  fake = type("Gcs", (FakeGcs,), {"objects": {}, "puts": []})
  fsspec.register_implementation("gcs", fake, clobber=True)
  from etils.epath import backend

  backend.fsspec_backend._get_filesystem.cache_clear()
  return fake


@pytest.fixture(params=["disk", "gs"])
def workdir(request, tmp_path, bucket):
  return tmp_path if request.param == "disk" else "gs://bucket/run"


def test_records_are_the_same_anywhere(workdir):
  two = [Records(f"{workdir}/records", k, processes=2) for k in (0, 1)]
  rows = [{"step": s, "id": f"{s}/{k}"} for s in range(4) for k in (0, 1)]
  for step in range(4):
    for k in (0, 1):
      two[k].append("probes", [r for r in rows if r["id"] == f"{step}/{k}"])
  two[0].append("probes", [])
  assert [r["id"] for r in two[0].read("probes")] == [
    "0/0",
    "1/0",
    "2/0",
    "3/0",
    "0/1",
    "1/1",
    "2/1",
    "3/1",
  ]
  keys = two[0].keys("probes", "id")
  assert len(keys) == 8
  two[1].append("probes", [{"step": 4, "id": "4/1"}])
  assert two[0].keys("probes", "id") == keys | {"4/1"}
  # A run of one process goes on with what two have left.
  one = Records(f"{workdir}/records")
  assert one.rewind("probes", 1) == 5
  one.append("probes", [{"step": 2, "id": "again"}])
  assert [r["id"] for r in one.read("probes")] == ["0/0", "1/0", "again", "0/1", "1/1"]


def test_metrics_go_on_after_the_last_checkpoint(workdir):
  with metrics.Writer(workdir, "train") as writer:
    for step in range(3):
      writer.write(step, {"loss": step / 2})
  with metrics.Writer(workdir, "train", resume_step=0) as writer:
    writer.write(1, {"loss": 9.0})
  rows = [row for _, row in jsonl.json_lines(f"{workdir}/metrics/train.jsonl").iterate()]
  assert [(r["step"], r["loss"]) for r in rows] == [(0, 0.0), (1, 9.0)]


def test_manifest_and_json(workdir):
  manifest = Manifest(workdir)
  assert manifest.record("train", config={"a": 1}, seeds={"seed": 0}) == []
  manifest.add_cost("train", tokens=3)
  assert Manifest(workdir).read()["stages"]["train"]["cost"] == {"tokens": 3}
  assert manifest.record("train", config={"a": 2}, seeds={"seed": 0}) == ["a"]


def test_images(workdir):
  images = Images(f"{workdir}/images")
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  name = images.put(image)
  assert name in images and images.put(image) == name
  np.testing.assert_array_equal(Images(f"{workdir}/images").get(name), image)
  with pytest.raises(KeyError):
    images.get("0" * 64)
  paths.write_bytes(images.path(name), b"no image")
  with pytest.raises(UserError, match="damaged"):
    images.get(name)


def test_folders_are_written_and_read(workdir):
  with paths.writing(f"{workdir}/auditors/000003") as folder:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text("{}")
  with paths.reading(f"{workdir}/auditors/000003") as folder:
    assert folder.name == "000003" and (folder / "config.json").read_text() == "{}"


def test_an_object_is_put_once_for_each_append(bucket):
  rows = jsonl.json_lines("gs://bucket/rows.jsonl")
  for step in range(3):
    rows.append([{"step": step}, {"step": step}])
  assert bucket.puts == [f"bucket/rows.jsonl/0000000{n}" for n in (1, 2, 3)]
  bucket.objects["bucket/rows.jsonl/00000002"] = b"{torn"
  with pytest.raises(UserError, match="gs://bucket/rows.jsonl: damaged in object 2"):
    list(rows.iterate())


def test_folders_in_a_folder_travel_both_ways(workdir):
  with paths.writing(f"{workdir}/out") as folder:
    (folder / "a/b").mkdir(parents=True)
    for name in ("config.json", "a/x", "a/b/y"):
      (folder / name).write_text(name)
  with paths.reading(f"{workdir}/out") as folder:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json", "a/x", "a/b/y"}
    assert (folder / "a/b/y").read_text() == "a/b/y"
