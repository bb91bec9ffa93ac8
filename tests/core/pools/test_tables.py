# SPDX-License-Identifier: Apache-2.0
"""Parquet and Arrow files as `datasets` and pandas write them, made here with pyarrow alone."""

import io
import json
import logging

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pool import Shares, open_pool
from auditdm_jax.core.pools import shards

ALL = Shares({"train": 1.0})


def png(value: int) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(out, "PNG")
  return out.getvalue()


def table(numbers, *, first=0, **columns):
  """Each picture twice, with a question each, as `datasets` has them."""
  values = [k for k in numbers for _ in range(2)]
  return pa.table(
    {
      "image": [{"bytes": png(k), "path": None} for k in values],
      "question": [f"q{first + n}" for n in range(len(values))],
      **{name: list(column) for name, column in columns.items()},
    }
  )


def values(pool):
  return [int(pool.image(i)[0, 0, 0]) for i in range(len(pool))]


def write_arrow(path, data, *, batch=3):
  """As `datasets` writes: a stream."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, data.schema) as writer:
    for part in data.to_batches(max_chunksize=batch):
      writer.write_batch(part)


def save_to_disk(folder, *parts):
  names = [f"data-{k:05}-of-{len(parts):05}.arrow" for k in range(len(parts))]
  for name, data in zip(names, parts, strict=True):
    write_arrow(folder / name, data)
  state = {"_data_files": [{"filename": name} for name in names], "_split": None}
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize("kind", ["arrow", "parquet", "dict"])
def test_a_picture_in_several_rows_is_one_image(tmp_path, kind):
  said = [[{"answer": f"a{n}", "answer_id": 1}, {"answer": "b", "answer_id": 2}] for n in range(8)]
  parts = table([3, 1], answers=said[:4]), table([1, 2], first=4, answers=said[4:])
  if kind == "parquet":
    for k, part in enumerate(parts):
      pq.write_table(part, tmp_path / f"train-{k:05}-of-00002.parquet", row_group_size=3)
  else:
    save_to_disk(tmp_path / "train" if kind == "dict" else tmp_path, *parts)
  if kind == "dict":
    save_to_disk(tmp_path / "test", table([9], answers=said[:2]))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  pool = open_pool(tmp_path, "train", shares=ALL)
  assert values(pool) == [3, 1, 2] and pool.image(0).shape == (4, 6, 3)
  assert pool.questions(1) == ("q2", "q3", "q4", "q5") and pool.answers(2)[1] == ("a7", "b")
  assert pool.question_ids(0) == ("train/0/0", "train/0/1")
  if kind == "dict":
    assert values(open_pool(tmp_path, "test")) == [9]
    with pytest.raises(UserError, match=r"no split 'tst' \(did you mean 'test'\?\)"):
      open_pool(tmp_path, "tst")


@pytest.mark.parametrize(
  ("train", "test"),
  [
    ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001-0a1b2c3d4e5f6789.parquet"),
    ("default/train/0000.parquet", "default/test/0000.parquet"),
    ("train.parquet", "test.parquet"),
    ("my_set-train.parquet", "my_set-test.parquet"),
  ],
)
def test_splits_are_in_the_names_of_files(tmp_path, train, test, caplog):
  for name, value in ((train, 1), (test, 2)):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table([value]), tmp_path / name)
  assert values(open_pool(tmp_path, "train")) == [1] and values(open_pool(tmp_path, "test")) == [2]
  with pytest.raises(UserError, match="no split 'heldout'; splits: test, train"):
    open_pool(tmp_path, "heldout")
  assert not caplog.text
  pq.write_table(table([3]), tmp_path / "0000.parquet")
  assert values(open_pool(tmp_path, "train")) == [1] and "0000.parquet: in no split" in caplog.text


@pytest.mark.parametrize("name", ["x.parquet", "data/train-00000-of-00001.parquet"])
def test_one_table_is_shared_out(tmp_path, name):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  pq.write_table(table(range(60)), tmp_path / name)
  shares = Shares({"train": 0.5, "heldout": 0.5})
  parts = [values(open_pool(tmp_path, split, shares=shares)) for split in shares.of]
  assert sorted(sum(parts, [])) == list(range(60)) and min(map(len, parts)) > 15


def test_splits_and_ids_of_columns(tmp_path):
  rows = {"split": ["a", "a", "b", "b"], "id": [7, None, 9, 7]}
  pq.write_table(table([1, 2], **rows), tmp_path / "x.parquet")
  a, b = (open_pool(tmp_path / "x.parquet", split) for split in "ab")
  assert values(a) == [1] and values(b) == [2]
  assert a.question_ids(0) == ("7", "a/0/1")
  assert b.question_ids(0) == ("9", "b/0/1")  # An id that is there twice names one row only.


def test_columns_as_pandas_has_them(tmp_path):
  (tmp_path / "pictures").mkdir()
  (tmp_path / "pictures/c.png").write_bytes(png(3))
  data = pa.table(
    {
      "image": pa.array([png(1), png(2), png(1)], pa.large_binary()),
      "question": pa.array(["p", "q", "p"]).dictionary_encode(),
      "answer": [1.0, 2.5, None],
    }
  )
  pq.write_table(data, tmp_path / "x.parquet")
  pool = open_pool(tmp_path / "x.parquet", "train", shares=ALL)
  assert values(pool) == [1, 2]
  assert [pool.answers(i) for i in range(2)] == [(("1",),), (("2.5",),)]
  for image in ("pictures/c.png", {"path": "pictures/c.png", "bytes": None}):
    pq.write_table(pa.table({"image": [image]}), tmp_path / "y.parquet")
    pool = open_pool(tmp_path / "y.parquet", "train", shares=ALL)
    assert values(pool) == [3] and pool.questions(0) == pool.answers(0) == ()


def test_classes_are_named(tmp_path):
  features = {"answer": {"names": ["no", "yes"], "_type": "ClassLabel"}}
  data = table([1], answer=[0, 1]).replace_schema_metadata(
    {"huggingface": json.dumps({"info": {"features": features}})}
  )
  pq.write_table(data, tmp_path / "x.parquet")
  assert open_pool(tmp_path, "train", shares=ALL).answers(0) == (("no",), ("yes",))
  pq.write_table(data.replace_schema_metadata({"huggingface": "[]"}), tmp_path / "x.parquet")
  assert open_pool(tmp_path, "train", shares=ALL).answers(0) == (("0",), ("1",))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (pa.table({"img": [png(1)]}), r"no column 'image' \(did you mean 'img'\?\); columns: img"),
    (pa.table({"image": [[png(1)]]}), "the column 'image' is list.*, not the bytes or the path"),
    (pa.table({"image": [1]}), "the column 'image' is int64"),
    (table([1], answer=[{"a": 1}, None]), r"x.parquet:0: the answer is an object"),
    (pa.table({"image": [png(1), None]}), r"x.parquet:1: the image is null"),
    (pa.table({"image": ["no.png"]}), r"x.parquet:0: no image 'no.png'"),
    (pa.table({"image": [png(1)] * 2, "question": ["q", None]}), "x.parquet:1: the question is nu"),
    (pa.table({"image": [b"no picture"]}), "x.parquet: the image of row 0 cannot be read: cannot"),
    (pa.table({"image": pa.array([], pa.binary())}), "no rows in the split 'train'"),
  ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, data, message):
  pq.write_table(data, tmp_path / "x.parquet")
  with pytest.raises(UserError, match=message) as error:
    open_pool(tmp_path, "train", shares=ALL)
  assert len(str(error.value).splitlines()) == 1


def test_damaged_files_are_named(tmp_path):
  pq.write_table(table(range(9)), tmp_path / "x.parquet")
  whole = (tmp_path / "x.parquet").read_bytes()
  save_to_disk(tmp_path / "saved", table(range(9)))
  stream = tmp_path / "saved/data-00000-of-00001.arrow"
  streamed = stream.read_bytes()
  for data in (b"", b"no table", whole[: len(whole) // 2], whole[:40] + b"\0" * 200 + whole[240:]):
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(UserError, match="x.parquet.*cannot be read"):
      open_pool(tmp_path / "x.parquet", "train", shares=ALL)
  for data in (b"", b"no table", streamed[: len(streamed) // 2]):
    stream.write_bytes(data)
    with pytest.raises(UserError, match="of-00001.arrow cannot be read as a table"):
      open_pool(tmp_path / "saved", "train", shares=ALL)
  stream.unlink()
  with pytest.raises(UserError, match="of-00001.arrow: no such file, but .*state.json names it"):
    open_pool(tmp_path / "saved", "train", shares=ALL)
  for state, message in (
    ('{"_indices_files": [{"filename": "x"}]}', "again after flatten_indices()"),
    ("{}", "state.json: no list of data files"),
    ("[]", "state.json: not a JSON object"),
  ):
    (tmp_path / "saved/state.json").write_text(state)
    with pytest.raises(UserError, match=message):
      open_pool(tmp_path / "saved", "train", shares=ALL)
  (tmp_path / "dict").mkdir()
  (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train"]}')
  with pytest.raises(UserError, match=r"train/state.json: No such file"):
    open_pool(tmp_path / "dict", "train")


def test_pictures_are_read_one_at_a_time_in_any_order(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "_BATCH", 4)
  data = pa.table({"image": [png(k) for k in range(50)]})
  pq.write_table(data, tmp_path / "x.parquet", row_group_size=20)
  write_arrow(tmp_path / "y.arrow", data, batch=20)
  order = [0, 5, 4, 6, 19, 18, 20, 3, 49, 48, 21, *np.random.default_rng(0).permutation(50)]
  for name in ("x.parquet", "y.arrow"):
    shard = shards.Shard(tmp_path / name)
    assert all(shard.picture("image", int(k)) == png(int(k)) for k in order)
    assert sum(len(batch) for _, batch in shard._recent) <= 8


def test_what_tells_pictures_apart_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr("auditdm_jax.core.pools.remembered._YOUNG_NS", 0)
  pq.write_table(table(range(9)), tmp_path / "x.parquet")
  calls = []
  tokens = shards.Shard.tokens
  monkeypatch.setattr(shards.Shard, "tokens", lambda *a: calls.append("hashed") or tokens(*a))
  read = pool_lib.pictures.read
  monkeypatch.setattr(
    pool_lib.pictures, "read", lambda f, name: calls.append("decoded") or read(f, name=name)
  )
  options = {"shares": ALL, "cache": tmp_path / "cache"}
  first = open_pool(tmp_path / "x.parquet", "train", **options).image_ids(range(9))
  assert calls.count("hashed") == 1 and calls.count("decoded") == 9
  calls.clear()
  assert open_pool(tmp_path / "x.parquet", "train", **options).image_ids(range(9)) == first
  assert not calls
  pq.write_table(table([*range(8), 99]), tmp_path / "x.parquet")
  again = open_pool(tmp_path / "x.parquet", "train", **options).image_ids(range(9))
  assert again[:8] == first[:8] and again[8] != first[8] and calls == ["hashed", "decoded"]


def test_row_groups_that_are_slow_to_read_are_said(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr("auditdm_jax.core.pools.tables._LARGE", 1000)
  pq.write_table(table(range(9)), tmp_path / "x.parquet")
  with caplog.at_level(logging.WARNING):
    open_pool(tmp_path, "train", shares=ALL)
  assert "write row_group_size=100" in caplog.text


def test_a_question_in_several_rows_is_one_with_all_answers(tmp_path):
  """A row for each annotator."""
  rows = pa.table(
    {
      "image": [{"bytes": png(1), "path": None}] * 4,
      "question": ["what?", "what?", "what?", "where?"],
      "answer": ["cat", "kitten", "cat", "there"],
      "id": ["q7", "q7", "q7", "q8"],
    }
  )
  pq.write_table(rows, tmp_path / "x.parquet")
  pool = open_pool(tmp_path, "train", shares=ALL)
  assert pool.questions(0) == ("what?", "where?")
  assert pool.answers(0) == (("cat", "kitten", "cat"), ("there",))
  assert pool.question_ids(0) == ("q7", "q8")


def test_of_two_columns_of_answers_the_one_with_some_counts(tmp_path):
  """As two data sets have them that were put together."""
  rows = pa.table(
    {
      "image": [{"bytes": png(k), "path": None} for k in range(3)],
      "question": ["q"] * 3,
      "answers": [["red", "pink"], None, []],
      "answer": [None, "cat", "dog"],
    }
  )
  pq.write_table(rows, tmp_path / "x.parquet")
  pool = open_pool(tmp_path, "train", shares=ALL)
  assert [pool.answers(i) for i in range(3)] == [(("red", "pink"),), (("cat",),), (("dog",),)]
