# SPDX-License-Identifier: Apache-2.0
"""A folder of images as a pool."""

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import config, pool


@pytest.fixture
def folder(tmp_path):
  for name, value in (("b.png", 10), ("a.PNG", 20), ("c.png", 10)):
    Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(tmp_path / name)
  (tmp_path / "notes.txt").write_text("not an image")
  (tmp_path / "questions.jsonl").write_text(
    '{"image": "b.png", "question": "what is it", "answer": "a dog"}\n\n'
    '{"image": "b.png", "question": "how many"}\n'
    '{"image": "c.png", "question": "q", "answer": "x"}\n'
  )
  return tmp_path


def test_images_come_by_name_with_their_questions(folder):
  images = pool.FolderPool(folder)
  assert len(images) == 3 and [int(images.image(i)[0, 0, 0]) for i in range(3)] == [20, 10, 10]
  assert images.image(0).shape == (5, 7, 3)
  assert [images.questions(i) for i in range(3)] == [(), ("what is it", "how many"), ("q",)]
  assert [images.answers(i) for i in range(3)] == [(), (), ("x",)]
  assert images.image_id(1) == images.image_id(2) != images.image_id(0)


def test_a_split_is_a_folder(folder, tmp_path_factory):
  root = tmp_path_factory.mktemp("set")
  (root / "train").symlink_to(folder)
  assert pool.open_pool(root, "train").questions(1) == ("what is it", "how many")
  with pytest.raises(config.UserError, match="nor a folder with images in test/"):
    pool.open_pool(root, "test")


def test_grey_and_transparent_images_become_rgb(tmp_path):
  Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "grey.png")
  Image.fromarray(np.full((4, 4, 4), 9, np.uint8)).save(tmp_path / "rgba.png")
  images = pool.FolderPool(tmp_path)
  assert all(images.image(i).shape == (4, 4, 3) for i in range(2))


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ('{"image": "bb.png", "question": "q"}', "did you mean 'b.png'"),
    ('{"image": "b.png"}', "questions.jsonl:1"),
    ("[1]", "questions.jsonl:1"),
    ("{", "questions.jsonl:1"),
  ],
)
def test_bad_rows_are_named(folder, row, message):
  (folder / "questions.jsonl").write_text(row + "\n")
  with pytest.raises(config.UserError, match=message):
    pool.FolderPool(folder)


def test_bad_folders_are_refused(tmp_path):
  with pytest.raises(config.UserError, match="no images"):
    pool.FolderPool(tmp_path)
  (tmp_path / "x.png").write_bytes(b"no png")
  with pytest.raises(config.UserError, match=r"x\.png"):
    pool.FolderPool(tmp_path).image(0)
