# SPDX-License-Identifier: Apache-2.0
"""Folders of images and JSONL files as people have them."""

import json
import logging
import os
import pathlib
import unicodedata

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pool import Shares, open_pool

ALL = Shares({"train": 1.0})


def picture(path, value, size=(7, 5)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path, "PNG")


def write_rows(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def values(pool):
  return [int(pool.image(i)[0, 0, 0]) for i in range(len(pool))]


@pytest.fixture
def folder(tmp_path):
  for name, value in (("b.png", 10), ("a.PNG", 20), ("deep/er/c.png", 30)):
    picture(tmp_path / "train" / name, value)
  (tmp_path / "train/notes.txt").write_text("not an image")
  write_rows(
    tmp_path / "train/questions.jsonl",
    {"image": "b.png", "question": "what is it", "answer": "a dog"},
    "",
    {"image": "b.png", "question": "how many", "id": 17},
    {"image": "deep/er/c.png", "question": "q", "answer": ["x", "y", "x"]},
  )
  return tmp_path


def test_images_come_by_name_with_their_questions(folder):
  pool = open_pool(folder, "train")
  assert pool.split == "train" and len(pool) == 3 and values(pool) == [20, 10, 30]
  assert pool.image(0).shape == (5, 7, 3) and not pool.image(0).flags.writeable
  assert [pool.questions(i) for i in range(3)] == [(), ("what is it", "how many"), ("q",)]
  assert [pool.answers(i) for i in range(3)] == [(), (("a dog",), ()), (("x", "y", "x"),)]
  assert [pool.question_ids(i) for i in range(1, 3)] == [("train/1/0", "17"), ("train/2/0",)]
  with pytest.raises(IndexError, match="no image 3 among 3"):
    pool.image(3)
  with pytest.raises(UserError, match="nor a folder with images in test/, but there is train/"):
    open_pool(folder, "test")


def test_questions_of_all_splits_may_be_in_one_file(folder):
  picture(folder / "heldout/d.png", 40)
  (folder / "train/questions.jsonl").unlink()
  rows = [{"image": f"{name}.png", "question": "q"} for name in ("train/b", "heldout/d")]
  write_rows(folder / "questions.jsonl", *rows)
  assert [open_pool(folder, "train").questions(i) for i in range(3)] == [(), ("q",), ()]
  assert open_pool(folder, "heldout").questions(0) == ("q",)
  write_rows(folder / "questions.jsonl", rows[0] | {"split": "heldout"})
  for split in ("train", "heldout"):
    with pytest.raises(UserError, match=r"questions.jsonl:1: the split 'heldout', but its image"):
      open_pool(folder, split)


def test_the_same_by_another_path(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (folder / "link").symlink_to(folder)
  want = open_pool(folder, "train").questions(1)
  for path in (".", "train/..", "./train/../train/..", "link"):
    pool = open_pool(path, "train")
    assert len(pool) == 3 and pool.questions(1) == want


def test_a_jsonl_file_alone(tmp_path):
  for k in range(4):
    picture(tmp_path / f"pictures/{k}.png", k)
  picture(tmp_path / "elsewhere.png", 9)
  write_rows(
    tmp_path / "rows/asked.jsonl",
    *({"image": f"../pictures/{k}.png", "question": f"q{k}", "split": "train"} for k in (2, 0)),
    {"image": str(tmp_path / "elsewhere.png"), "question": "q", "split": "heldout"},
    {"image": "../pictures/0.png", "question": "again"},
  )
  path = tmp_path / "rows/asked.jsonl"
  assert values(open_pool(path, "train")) == [2, 0]
  assert open_pool(path, "train").questions(1) == ("q0", "again")
  assert values(open_pool(path, "heldout")) == [9]
  with pytest.raises(UserError, match="no split 'fresh'; splits: heldout, train"):
    open_pool(path, "fresh")
  images = open_pool(tmp_path / "pictures", "train", shares=ALL, questions=path)
  assert values(images) == [0, 2] and images.split == "train"


def test_splits_of_rows_leave_other_images_out(folder, caplog):
  root = folder / "train"
  rows = [{"image": "b.png", "question": "q", "split": "heldout"}]
  write_rows(root / "questions.jsonl", *rows, {"image": "a.PNG", "question": "q", "split": "train"})
  assert values(open_pool(root, "heldout")) == [10] and values(open_pool(root, "train")) == [20]
  assert "1 images are in no split and left out" in caplog.text
  for row, what in (
    ({"image": "a.PNG", "question": "q"}, r":2: no split for its image, but other rows"),
    ({"image": "b.png", "question": "r", "split": "train"}, r":2: the split 'train', but .*:1"),
    ({"image": "a.PNG", "question": "r", "split": ["x"]}, r":2: the split is a list of 1"),
  ):
    write_rows(root / "questions.jsonl", *rows, row)
    with pytest.raises(UserError, match=what):
      open_pool(root, "heldout")


def test_images_without_splits_are_shared_out_by_what_they_show(tmp_path):
  rng = np.random.default_rng(0)
  for k in range(120):
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    (tmp_path / f"set/{k % 3}").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(tmp_path / f"set/{k % 3}/{k}.png")
    if k % 40 == 0:  # The same picture in another file.
      Image.fromarray(pixels).save(tmp_path / f"set/copy of {k}.bmp")

  def share_out(root, **options):
    shares = Shares({"train": 0.6, "heldout": 0.2, "fresh": 0.2}, **options)
    pools = [open_pool(root, split, shares=shares) for split in shares.of]
    return [set(pool.image_ids(range(len(pool)))) for pool in pools], sum(map(len, pools))

  parts, count = share_out(tmp_path / "set")
  assert count == 123 and len(set.union(*parts)) == sum(map(len, parts)) == 120
  assert 55 <= len(parts[0]) <= 90 and min(map(len, parts)) >= 10
  assert share_out(tmp_path / "set", seed=1)[0] != parts
  (tmp_path / "set").rename(tmp_path / "moved")  # Neither names nor further images move one.
  picture(tmp_path / "moved/new.png", 200)
  again = share_out(tmp_path / "moved")[0]
  assert all(old <= new for old, new in zip(parts, again, strict=True))
  with pytest.raises(UserError, match=r"no split 'heldot' \(did you mean 'heldout'\?\); by shares"):
    open_pool(tmp_path / "moved", "heldot")
  for of in ({}, {"train": 0.5}, {"train": 1.5, "heldout": -0.5}):
    with pytest.raises(UserError, match="add up to 1"):
      Shares(of)


def test_an_empty_share_is_said(tmp_path):
  picture(tmp_path / "a.png", 1)
  with pytest.raises(UserError, match="none of its 1 images falls to the split 'heldout'"):
    open_pool(tmp_path, "heldout", shares=Shares({"train": 1.0, "heldout": 0.0}))


def test_what_systems_leave_in_folders_is_no_image(tmp_path, caplog):
  picture(tmp_path / "a.png", 1)
  for name in ("._a.png", ".DS_Store", "__MACOSX/a.png", "@eaDir/a.png", ".thumbs/a.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\26\7")
  picture(tmp_path / "album.png/b.jfif", 2)  # A folder with the name of a picture.
  for kind in ("tif", "avif", "webp", "JPE"):
    Image.new("RGB", (4, 4)).save(
      tmp_path / f"z.{kind}", {"tif": "TIFF", "JPE": "JPEG"}.get(kind, kind.upper())
    )
  (tmp_path / "c.heic").write_bytes(b"")
  (tmp_path / "d.HEIC").write_bytes(b"")
  (tmp_path / "e.svg").write_text("<svg/>")
  (tmp_path / "up").symlink_to(tmp_path)
  pool = open_pool(tmp_path, "train", shares=ALL)
  assert len(pool) == 6 and set(values(pool)) == {0, 1, 2}
  assert "left out 2 .heic, 1 .svg: convert them" in caplog.text


def test_a_file_of_questions_with_another_name_is_not_left_out_in_silence(tmp_path, caplog):
  picture(tmp_path / "a.png", 1)
  write_rows(tmp_path / "quetsions.jsonl", {"image": "a.png", "question": "q"})
  assert open_pool(tmp_path, "train", shares=ALL).questions(0) == ()
  assert "quetsions.jsonl is not read: the questions of a folder are in" in caplog.text
  with pytest.raises(UserError, match="asked.jsonl: no such file of questions"):
    open_pool(tmp_path, "train", questions=tmp_path / "asked.jsonl")


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_names_with_accents_are_found_in_either_spelling(tmp_path, written, stored):
  name = "dép\u00f4t/caf\u00e9.png"
  picture(tmp_path / unicodedata.normalize(stored, name), 1)
  row = {"image": unicodedata.normalize(written, name), "question": "q"}
  write_rows(tmp_path / "questions.jsonl", row)
  assert open_pool(tmp_path, "train", shares=ALL).questions(0) == ("q",)
  assert values(open_pool(tmp_path / "questions.jsonl", "train", shares=ALL)) == [1]


@pytest.mark.parametrize("name", ["./deep/a.png", "deep//a.png", "deep\\a.png", "x/../deep/a.png"])
def test_names_as_scripts_write_them(tmp_path, name):
  picture(tmp_path / "deep/a.png", 1)
  write_rows(tmp_path / "questions.jsonl", {"image": name, "question": "q"})
  pool = open_pool(tmp_path, "train", shares=ALL)
  assert len(pool) == 1 and pool.questions(0) == ("q",)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"image": "bb.png", "question": "q"}, r":3: no image 'bb.png' \(did you mean 'b.png'\?\)"),
    ({"image": "c.png", "question": "q"}, r"no image 'c.png' \(did you mean 'deep/er/c.png'\?\)"),
    ({"image": "deep", "question": "q"}, "no image 'deep'"),
    ({"image": "https://x.org/a.png", "question": "q"}, "is an address: download it first"),
    ({"image": "b.png"}, r"no question; the row has 'image'"),
    ({"question": "q"}, r"no image; the row has 'question'"),
    ({"image": None, "question": "q"}, "the image is null, not text"),
    ({"image": ["b.png"], "question": "q"}, "the image is a list of 1, not text"),
    ({"image": "b.png", "question": 5}, "the question is 5, not text"),
    ({"image": "b.png", "question": {}}, "the question is an object, not text"),
    ({"image": "b.png", "question": " \t"}, "the question is blank"),
    ({"image": "b.png", "question": "x" * 10_001}, "the question has 10001 characters"),
    ('{"image": "b.png", "question": "\\ud800"}', "the question has half of a surrogate pair"),
    ({"image": "b.png", "question": "q", "answer": {"a": 1}}, "the answer is an object"),
    ({"image": "b.png", "question": "q", "answer": [["x"]]}, "the answer is a list of 1"),
    ('{"image": "b.png", "question": "q", "answer": 1e999}', "the answer is inf"),
    ({"image": "b.png", "question": "q", "answer": ["x"] * 1001}, "1001 answers"),
    ({"image": "b.png", "question": "q", "id": [1]}, "the id is a list of 1"),
    ({"image": "b.png", "question": "q", "id": 1}, r"the id '1' is that of .*:1 too"),
    ("[1]", r"a list of 1 and not an object .*: one per line is wanted"),
    ("null", "null and not an object"),
    ("{", r"not JSON \("),
    ("[" * 100_000, "not JSON"),
    ("9" * 5_000, "not JSON"),
  ],
)
def test_bad_rows_are_named(folder, row, message):
  first = {"image": "b.png", "question": "first", "id": 1}
  write_rows(folder / "train/questions.jsonl", first, "", row)
  with pytest.raises(UserError, match=message) as error:
    open_pool(folder, "train")
  assert "questions.jsonl:3: " in str(error.value) and len(str(error.value)) < 600
  assert len(str(error.value).splitlines()) == 1


def test_bad_rows_are_told_together(folder):
  rows = [{"image": "b.png", "question": None}] * 5 + [{"image": "b.png", "question": "q"}]
  write_rows(folder / "train/questions.jsonl", *rows)
  with pytest.raises(UserError, match=r":1: .*; .*:2: .*; .*:3: .*null, not text; and 2 more$"):
    open_pool(folder, "train")


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ('{"image": "b.png", "question": "q"}\n'.encode("utf-16"), r":1: not UTF-8: it looks like UTF"),
    ('\n{"image": "b.png", "question": "é"}\n'.encode("latin-1"), r":2: not UTF-8 \(byte 0xe9\)"),
  ],
)
def test_other_encodings_are_named(folder, data, message):
  (folder / "train/questions.jsonl").write_bytes(data)
  with pytest.raises(UserError, match=message):
    open_pool(folder, "train")


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_at_newlines_only(folder, char):
  text = f"one{char}two"
  row = json.dumps({"image": "b.png", "question": text}, ensure_ascii=char < " ")
  (folder / "train/questions.jsonl").write_bytes(f"\ufeff{row}\r\n\r\n{row}".encode())
  assert open_pool(folder, "train").questions(1) == (text,)


def test_answers_are_text(folder):
  given = [
    (3, ["3"]),
    (3.0, ["3"]),
    (3.5, ["3.5"]),
    (1e-7, ["1e-07"]),
    (True, ["yes"]),
    (False, ["no"]),
    ("", []),
    (" ", []),
    (None, []),
    (float("nan"), []),
    ([], []),
    (["a", 2, None, ""], ["a", "2"]),
    ([{"answer": "a", "answer_id": 1}, {"answer": "b"}], ["a", "b"]),
    (" red ", [" red "]),
  ]
  rows = [{"image": "b.png", "question": f"q{k}", "answer": x} for k, (x, _) in enumerate(given)]
  write_rows(folder / "train/questions.jsonl", *rows)
  assert open_pool(folder, "train").answers(1) == tuple(tuple(want) for _, want in given)


def test_one_row_per_answer_is_one_question(folder):
  row = {"image": "b.png", "question": "q"}
  rows = [row | {"answer": "x"}, row | {"answer": "y"}, row | {"answers": ["x", "z"]}, row]
  write_rows(folder / "train/questions.jsonl", *rows, row | {"answer": "w", "id": "own"})
  pool = open_pool(folder, "train")
  assert pool.questions(1) == ("q", "q") and pool.answers(1) == (("x", "y", "x", "z"), ("w",))
  assert pool.question_ids(1) == ("train/1/0", "own")


def test_damaged_images_are_told_together(tmp_path):
  picture(tmp_path / "a.png", 1)
  for k in range(5):
    (tmp_path / f"bad{k}.png").write_bytes(b"no picture")
  (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
  with pytest.raises(UserError, match="gone.png cannot be read: No such file"):
    open_pool(tmp_path, "train", shares=ALL)
  (tmp_path / "gone.png").unlink()
  with pytest.raises(UserError, match=r"bad0.png cannot .*bad1.*bad2.*; and 2 more$") as error:
    open_pool(tmp_path, "train", shares=ALL)
  assert len(str(error.value).splitlines()) == 1
  (tmp_path / "set").mkdir()
  (tmp_path / "bad0.png").rename(tmp_path / "set/bad0.png")
  pool = open_pool(tmp_path, "set")
  for read in (pool.image, pool.image_id):
    with pytest.raises(UserError, match=r"set/bad0.png cannot be read: cannot identify"):
      read(0)


@pytest.mark.parametrize("name", ["nothing", "empty", "file.txt", "pipe"])
def test_what_is_no_data_set_is_refused(tmp_path, name):
  (tmp_path / "empty").mkdir()
  (tmp_path / "file.txt").touch()
  os.mkfifo(tmp_path / "pipe.png")  # To be opened for ever.
  with pytest.raises(UserError, match="neither a|pipe.png cannot be read: not a file"):
    open_pool(tmp_path / name if name != "pipe" else tmp_path, "train", shares=ALL)


def test_ids_are_kept_and_made_again_when_a_file_changes(tmp_path, monkeypatch):
  monkeypatch.setattr("auditdm_jax.core.pools.remembered._YOUNG_NS", 0)
  for k in range(3):
    picture(tmp_path / f"set/train/{k}.png", k)
  decoded = []
  read = pool_lib.pictures.read
  monkeypatch.setattr(
    pool_lib.pictures, "read", lambda f, name: decoded.append(name) or read(f, name=name)
  )

  def ids():
    decoded.clear()
    pool = open_pool(tmp_path / "set", "train", cache=tmp_path / "cache")
    return pool.image_ids(range(3)), [pathlib.Path(name).name for name in decoded]

  first, seen = ids()
  assert sorted(seen) == ["0.png", "1.png", "2.png"] and len(set(first)) == 3
  assert ids() == (first, [])
  before = (tmp_path / "set/train/1.png").stat()
  picture(tmp_path / "set/train/1.png", 77)  # As many bytes, and the same time.
  os.utime(tmp_path / "set/train/1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
  assert (tmp_path / "set/train/1.png").stat().st_size == before.st_size
  second, seen = ids()
  assert seen == ["1.png"] and second[1] != first[1] and second[::2] == first[::2]
  monkeypatch.setattr(pool_lib.pictures, "DECODER", "another")
  assert len(ids()[1]) == 3
  (file, _) = sorted((tmp_path / "cache").iterdir())
  for damage in (b"\0\0\n", b"{}\n", b"[]\n"):
    file.write_bytes(damage)
    assert ids()[0] == second


def test_a_young_file_may_change_again(tmp_path):
  picture(tmp_path / "train/a.png", 1)
  first = open_pool(tmp_path, "train", cache=tmp_path / "cache").image_id(0)
  picture(tmp_path / "train/a.png", 2)
  assert open_pool(tmp_path, "train", cache=tmp_path / "cache").image_id(0) != first


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr("auditdm_jax.core.pools.remembered._YOUNG_NS", 0)
  picture(tmp_path / "train/a.png", 1)
  (tmp_path / "cache").touch()
  with caplog.at_level(logging.WARNING):
    assert open_pool(tmp_path, "train", cache=tmp_path / "cache").image_id(0)
  assert "nothing is kept there" in caplog.text


def test_decoded_images_do_not_stay(tmp_path):
  for k in range(12):
    picture(tmp_path / f"train/{k:02}.png", k)
  pool = open_pool(tmp_path, "train")
  pool.image_ids(range(12))
  assert values(pool) == list(range(12)) and pool._decoded.cache_info().currsize <= 2
