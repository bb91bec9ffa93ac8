# SPDX-License-Identifier: Apache-2.0
"""What single readers promise: memory, order, hostile and odd files."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from auditdm_jax.bench.layouts import adapt, raw, raw_coco, raw_questions
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.prepared import TfdsTable
from auditdm_jax.bench.layouts.tsv import TsvTable
from auditdm_jax.bench.specs import find
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools import tfrecords
from tests.bench.layouts import fakes, made_parquet, made_raw, made_tfds, made_tsv, shared

MB = 1 << 20


def peak(work):
  tracemalloc.start()
  try:
    work()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_pictures_stay_on_disk(tmp_path, kind):
  noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
  out = fakes.io.BytesIO()
  fakes.Image.fromarray(noise).save(out, "PNG")
  data, count = out.getvalue(), 400  # 24 MB.
  letters = {"A": "x", "B": "y", "C": "z", "D": "w"}
  if kind == "tsv":
    text = fakes.base64.b64encode(data).decode()
    rows = [
      {"index": k, "image": text, "question": f"q{k}", **letters, "answer": "A", "category": "c"}
      for k in range(count)
    ]
    fakes.write_tsv(tmp_path / "SEEDBench_IMG.tsv", rows)
  else:
    options = {f"choice_{x}": x for x in "abcd"} | {"data_type": "image", "question_type_id": 1}
    rows = [
      {"question_id": str(k), "data_id": str(k), "question": f"q{k}", "answer": "A", **options}
      | {"image": [{"bytes": data, "path": None}]}
      for k in range(count)
    ]
    fakes.write_parquet(tmp_path / "data/test-00000-of-00001.parquet", rows, groups=20)
  del rows

  def read():
    items = find("seedbench", where="test").open(tmp_path)
    assert [item.question for item in items] == [f"q{k}" for k in range(count)]
    np.testing.assert_array_equal(items[count - 1].image(), noise)

  assert peak(read) < 4 * MB


def test_minival_is_the_same_questions_from_the_authors_files(tmp_path, monkeypatch):
  monkeypatch.setattr(raw_questions, "MINIVAL", 2)
  made_raw.vqav2_raw(tmp_path / "raw")
  made_tfds.vqa(tmp_path / "tfds")
  spec = find("vqav2", where="test")
  order = [item.item_id for item in spec.open(tmp_path / "tfds", "val")]
  assert [item.item_id for item in spec.open(tmp_path / "raw", "minival")] == order[-2:]
  # More keys than three, whose order could be so by chance.
  rows = [(k, {"question_id": k, "image": fakes.encoded(1)}) for k in range(200)]
  features = {"question_id": made_tfds.I32, "image": fakes.PNG}
  folder = fakes.prepare(tmp_path / "many", "Vqa", features, {"validation": rows})
  table = TfdsTable(folder, "validation", Columns())
  keys = [table.row(i)["question_id"] for i in range(len(table))]
  assert keys == raw.tfds_order(range(200), "validation") != list(range(200))


def test_a_pickle_with_code_does_not_run(tmp_path):
  class Hostile:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "made"),)

  made_raw.refcoco_raw(tmp_path)
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    data = pickle.dumps([{"split": "val", "x": Hostile()}], protocol=protocol)
    (tmp_path / "refcoco/refs(unc).p").write_bytes(data)
    with pytest.raises(UserError, match=r"refs\(unc\).p: no pickle of plain values: it asks for"):
      find("refcoco", where="test").open(tmp_path)
  assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("data", [b"", b"\x80", b"(lp0\n", b"\x80\x04\x95\xff", b"not a pickle"])
def test_a_torn_pickle_is_named(tmp_path, data):
  (tmp_path / "refs(unc).p").write_bytes(data)
  with pytest.raises(UserError, match=r"refs\(unc\).p: no pickle of plain values"):
    raw_coco.read_refs(tmp_path, "unc")


def test_a_pickle_of_python_2_is_read(tmp_path):
  # What cPickle of Python 2 writes for [{'split': 'val', 'n': 7L}] with protocol 2.
  data = b"\x80\x02]q\x01}q\x02(U\x05splitq\x03U\x03valq\x04U\x01nq\x05\x8a\x01\x07ua."
  (tmp_path / "refs(unc).p").write_bytes(data)
  assert raw_coco.read_refs(tmp_path, "unc") == [{"split": "val", "n": 7}]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda d: d[:150], "unexpected end of data"),
    (lambda d: d[:100], "row 0 has 2 cells, not 5; the file is damaged or cut short"),
    (lambda d: d.replace(b"\n1\t", b"\n0\t"), "two rows have the index '0'"),
    (lambda d: d.replace(b"\t1\t", b"\t9\t"), "that of row '9', which is not there"),
    (lambda d: d.replace(b"index\t", b"index\t\xff"), "no TSV in UTF-8"),
    (lambda d: b"", "an empty file"),
    (lambda d: b"a\tb\n1\t2\n", "no column 'image'"),
  ],
)
def test_a_damaged_tsv_is_named(tmp_path, change, message):
  made_tsv.pope_tsv(tmp_path)
  path = tmp_path / "POPE.tsv"
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(UserError, match=message):
    TsvTable(path)


def test_cells_that_pandas_takes_for_nothing_are_text(tmp_path):
  row = {"index": 1, "image": fakes.base64_of(40), "question": "NA", "A": "None", "B": "null"}
  row |= {"C": "", "D": "", "answer": "A", "category": "x"}
  fakes.write_tsv(tmp_path / "AI2D_TEST.tsv", [row])
  (item,) = find("ai2d", where="test").open(tmp_path)
  assert (item.question, item.options, item.references) == ("NA", ("None", "null"), ("None",))


def test_rows_of_other_splits_are_left_out(tmp_path):
  rows = [
    {"index": k, "image": fakes.base64_of(40), "question": "q", "category": f"RefCOCO{kind} val"}
    | {"bbox_x1_norm": 0.125, "bbox_y1_norm": 0.25, "bbox_x2_norm": 0.625, "bbox_y2_norm": 0.75}
    for k, kind in enumerate(("", "+", "g", ""))
  ]
  fakes.write_tsv(tmp_path / "RefCOCO.tsv", rows)
  items = find("refcoco-boxes", where="test").open(tmp_path)
  assert [(item.item_id, item.box) for item in items] == [("0", shared.BOX), ("3", shared.BOX)]
  with pytest.raises(
    UserError, match=r"no row of 'RefCOCO_testA'; its rows are of RefCOCO\+_val, "
  ):
    find("refcoco-boxes", where="test").open(tmp_path, "testA")
  for row in rows:
    del row["bbox_x1_norm"]
  fakes.write_tsv(tmp_path / "RefCOCO.tsv", rows)
  with pytest.raises(UserError, match="RefCOCO.tsv: row 0: a row without 'bbox_y1'"):
    find("refcoco-boxes", where="test").open(tmp_path)[0]


def test_a_tsv_may_name_its_pictures(tmp_path):
  fakes.write_picture(tmp_path / "images/1.png", 40)
  row = {"index": 1, "image_path": "images/1.png", "question": "q", "answer": "no", "category": "x"}
  fakes.write_tsv(tmp_path / "POPE.tsv", [row])
  (item,) = find("pope", where="test").open(tmp_path)
  assert fakes.shown(item.image()) == 40 and item.image_key == "images/1.png"


@pytest.mark.parametrize(
  ("cell", "found"),
  [
    ("['a', 'b']", ["a", "b"]),
    ("yes", ["yes"]),
    ("[sic", ["[sic"]),
    ("[__import__('os').getcwd()]", ["[__import__('os').getcwd()]"]),
    ("[" * 5000, ["[" * 5000]),
    (["x"], ["x"]),
  ],
)
def test_lists_as_python_writes_them(cell, found):
  assert adapt.listed(cell) == found


def test_a_snapshot_of_the_hubs_cache_is_found(tmp_path):
  snapshot = tmp_path / "datasets--lmms-lab--POPE/snapshots/0f3c"
  expected = made_parquet.pope_parquet(snapshot)
  items = find("pope", where="test").open(tmp_path / "datasets--lmms-lab--POPE")
  assert len(items) == len(expected)


def test_another_config_is_not_taken_for_the_one(tmp_path):
  made_parquet.docvqa_parquet(tmp_path)
  spec = find("docvqa", where="test")
  assert len(spec.open(tmp_path / "DocVQA")) == 3
  (tmp_path / "DocVQA").rename(tmp_path / "Other")
  with pytest.raises(UserError, match="no DocVQA/validation"):
    spec.open(tmp_path)


def test_a_part_of_a_split_is_told(tmp_path, caplog):
  made_raw.gqa_raw(tmp_path)
  find("gqa", where="test").open(tmp_path)
  assert "3 items, not 12578 as published" in caplog.text


def test_labels_of_diagrams_are_written_over(tmp_path):
  made_raw.ai2d_raw(tmp_path)
  base = tmp_path / "ai2d"
  questions = {
    "Which?": {"questionId": "x", "answerTexts": ["a", "B"], "correctAnswer": 1, "abcLabel": True}
  }
  fakes.write_json(base / "questions/42.png.json", {"imageName": "42.png", "questions": questions})
  label = {"rectangle": [[0, 0], [5, 4]], "replacementText": "B", "value": "liver"}
  fakes.write_json(base / "annotations/42.png.json", {"text": {"T0": label}})
  item = find("ai2d", where="test").open(tmp_path)[0]
  image = item.image()
  assert (image[:5, :6] == 255).any() and (image[5] == 40).all() and (image[:, 6:] == 40).all()
  fakes.write_json(base / "annotations/42.png.json", {"text": {"T0": {"rectangle": 3}}})
  with pytest.raises(UserError, match="42.png.json: not what AI2D has"):
    item.image()


def test_tfrecords_by_place(tmp_path):
  made_tfds.vqa(tmp_path, "tfrecord")
  (path,) = tmp_path.rglob("*.tfrecord-*")
  whole = tfrecords.TfRecords([tfrecords.RecordRange(str(path), 0, -1)])
  parts = [tfrecords.RecordRange(str(path), 2, 1), tfrecords.RecordRange(str(path), 0, 2)]
  assert list(tfrecords.TfRecords(parts)) == [whole[2], whole[0], whole[1]]
  data = path.read_bytes()
  for broken in (data[:-3], data[:5], b"x" * 40, data + b"more"):
    path.write_bytes(broken)
    with pytest.raises(RuntimeError, match="ends within|is damaged"):
      tfrecords.TfRecords(parts)
