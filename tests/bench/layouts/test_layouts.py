# SPDX-License-Identifier: Apache-2.0
"""Each layout of each benchmark is read back exactly; broken, it is an error of one line."""

import base64
import pathlib
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.layouts.open import detect
from auditdm_jax.bench.specs import SPECS, find, write_metadata
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from tests.bench.layouts import cases, fakes, made_raw

ALL = (*cases.TFDS, *cases.TSV, *cases.PARQUET, *cases.RAW)


def seen(item: BenchmarkItem, name: str):
  if name == "values":
    return [fakes.shown(item.image(k)) for k in range(len(item.pictures))]
  value = getattr(item, name)
  return value.pixels() if name == "mask" else value


def check(items, expected):
  assert len(items) == len(expected)
  by_id = {item.item_id: item for item in items}  # TFDS shuffles.
  assert len(by_id) == len(items)
  for want in expected:
    item = by_id[want["item_id"]]
    for name, value in want.items():
      np.testing.assert_equal(seen(item, name), value, err_msg=f"{item.item_id} {name}")
    assert item.image_key


@pytest.mark.parametrize("case", ALL, ids=str)
def test_items_are_what_was_written(tmp_path, case):
  expected = case.make(tmp_path)
  assert detect(tmp_path) == case.kind
  items = case.spec.open(tmp_path, case.split)
  check(items, expected)
  assert items.provenance.layout == case.kind and items.provenance.licence
  last = items[len(items) - 1]
  assert last.item_id == items[-1].item_id == list(items)[-1].item_id == items[-1:][0].item_id
  for prompt in case.spec.prompts.values():
    assert prompt.render(last).strip()


@pytest.mark.parametrize("case", cases.TFDS, ids=str)
def test_tfrecords_are_read_too(tmp_path, case):
  expected = case.make(tmp_path, "tfrecord")
  (shard,) = tmp_path.rglob("*.tfrecord-*")
  check(case.spec.open(shard.parent, case.split), expected)  # Given the folder of the version.
  check(case.spec.open(shard.parent.parent, case.split), expected)


def test_every_layout_of_every_benchmark_has_a_case():
  have = {(case.name.removesuffix("-boxes"), case.kind) for case in ALL}
  want = {(s.name.removesuffix("-boxes"), x.kind) for s in SPECS for x in s.layouts}
  assert have == want
  assert len({s.name for s in SPECS}) == len(SPECS) == 17  # RefCOCO twice.


# Three ways to break each.


def files(root: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
  return sorted(x for pattern in patterns for x in root.rglob(pattern) if x.is_file())


def lose(case, root):
  """Takes away the files with the texts."""
  patterns = {
    "tfds": ("*record-*",),
    "tsv": ("*.tsv",),
    "parquet": ("data/*", "en/*", "DocVQA/*", "*instructions/*", "Art_Theory/*"),
    "raw": ("*_human.json", "*.csv", "*questions.json", "*.json", "existence/*.txt"),
  }
  found = files(root, *patterns[case.kind])
  if case.kind == "raw":
    found = next(x for p in patterns["raw"] if (x := files(root, p)))[:1]
  for path in found:
    path.unlink()


def rename(case, root):
  if case.kind == "parquet":
    for path in files(root, "*.parquet"):
      table = pq.read_table(path, partitioning=None)
      names = [x + "_" if x == case.text else x for x in table.column_names]
      pq.write_table(table.rename_columns(names), path)
    return
  for path in files(root, "features.json", "*.tsv", "*.p", "*.json", "*.txt"):
    if path.name == "dataset_info.json":
      continue
    quoted = case.kind != "tsv" and case.text.isidentifier()
    old = f'"{case.text}"' if quoted else case.text
    new = old.replace(case.text, case.text[::-1])
    data = path.read_bytes().replace(
      old.encode(), new.encode(), *((1,) if case.kind == "tsv" else ())
    )
    path.write_bytes(data)


def tear(case, root):
  """Cuts a data file, or damages its pictures."""
  if case.kind == "tfds":
    (shard,) = files(root, "*record-*")
    shard.write_bytes(shard.read_bytes()[: -len(shard.read_bytes()) // 3])
  elif case.kind == "tsv":
    (path,) = files(root, "*.tsv")
    data = path.read_bytes()
    path.write_bytes(data.replace(base64.b64encode(b"\x89PNG")[:4], b"!!!!"))
  elif case.kind == "parquet":
    for path in files(root, "*.parquet"):
      data = path.read_bytes()
      path.write_bytes(data.replace(b"\x89PNG", b"\x88PNG"))
  else:
    for path in files(root, "*.png", "*.jpg", "d42", "d73"):
      path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("case", ALL, ids=str)
@pytest.mark.parametrize("breaks", [lose, rename, tear])
def test_a_broken_layout_is_one_line(tmp_path, case, breaks):
  case.make(tmp_path)
  breaks(case, tmp_path)
  with pytest.raises(UserError) as error:
    items = case.spec.open(tmp_path, case.split)
    [item.image() for item in items]
  message = str(error.value)
  assert "\n" not in message and str(tmp_path) in message and len(message) < 1500
  if breaks is lose:
    assert re.search("expected|no such file|No such file", message), message
  if breaks is rename and case.kind != "raw":
    assert case.text in message, message


def test_the_wrong_benchmark_and_the_wrong_split_are_named(tmp_path):
  made_raw.gqa_raw(tmp_path)
  with pytest.raises(UserError, match=r"no v2_OpenEnded_.*; expected .*; found images, testdev"):
    find("vqav2", where="test").open(tmp_path, "val")
  with pytest.raises(UserError, match=r"gqa has no split 'testdev' \(did you mean"):
    find("gqa", where="test").open(tmp_path, "testdev")
  with pytest.raises(UserError, match="nothing is there, and does not give .* or raw: "):
    find("gqa", where="test").open(tmp_path / "nowhere")
  with pytest.raises(UserError, match="layout there is raw, which does not give mmbench's"):
    find("mmbench", where="test").open(tmp_path)


def test_provenance_lies_beside_what_is_made(tmp_path):
  made_raw.gqa_raw(tmp_path)
  items = find("gqa", where="test").open(tmp_path)
  write_metadata(tmp_path / "metadata.json", items)
  found = jsonio.read_json(tmp_path / "metadata.json")
  assert found["licence"] == "CC BY 4.0" and found["source"].startswith("https://cs.stanford")
  assert (found["items"], found["layout"], found["split"]) == (3, "raw", "testdev_balanced")
