# SPDX-License-Identifier: Apache-2.0
"""Prepared TFDS data sets: pictures of every mode, and data sets that are damaged."""

import io
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from auditdm_jax.core.config import UserError
from auditdm_jax.core.pool import open_pool, open_tfds

MODES = ("RGB", "L", "P", "RGBA", "CMYK", "LA")


def encoded(mode: str) -> bytes:
  x, y = np.meshgrid(np.arange(16), np.arange(12))
  image = Image.fromarray(np.stack([x * 16, y * 20, x + y], 2).astype(np.uint8)).convert(mode)
  out = io.BytesIO()
  image.save(out, "JPEG" if mode == "CMYK" else "PNG")
  return out.getvalue()


class Photos(tfds.core.GeneratorBasedBuilder):
  """Pictures as files, the first one with EXIF's orientation."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = pathlib.Path(__file__)  # What TFDS looks for is not there for a test's module.

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, None)),
      "questions": tfds.features.Sequence(tfds.features.Text()),
      "answers": tfds.features.Sequence(tfds.features.Text()),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(), "test": self._generate_examples(2)}

  def _generate_examples(self, most=None):
    for k, mode in enumerate(MODES[:most]):
      said = ["a", ""]
      yield k, {"image": io.BytesIO(encoded(mode)), "questions": ["p", "q"], "answers": said}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  builder = Photos(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
  builder.download_and_prepare()
  return builder.data_path


def test_pictures_are_decoded_here(prepared):
  pool = open_pool(prepared, "train")
  assert len(pool) == len(MODES)
  for i, mode in enumerate(MODES):
    want = np.asarray(Image.open(io.BytesIO(encoded(mode))).convert("RGB"))
    np.testing.assert_array_equal(pool.image(i), want)
  assert pool.questions(0) == ("p", "q") and pool.answers(0) == (("a",), ())
  assert pool.question_ids(1) == ("train/1/0", "train/1/1")
  assert len(set(pool.image_ids(range(len(pool))))) >= 4
  part = open_pool(prepared, "train[2:4]")
  assert len(part) == 2 and part.image_id(0) == pool.image_id(2)


def test_ids_are_kept(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr("auditdm_jax.core.pools.remembered._YOUNG_NS", 0)
  first = open_pool(prepared, "train", cache=tmp_path).image_ids(range(len(MODES)))
  pool = open_pool(prepared, "train", cache=tmp_path)
  pool._stored = None  # Nothing is read.
  assert pool.image_ids(range(len(MODES))) == first
  part = open_pool(prepared, "train[2:4]", cache=tmp_path)
  assert part.image_ids([0, 1]) == first[2:4]


def shard(folder):
  return next(folder.glob("*-train.array_record-*"))


def flip(path):
  data = bytearray(path.read_bytes())
  data[1000] ^= 16
  path.write_bytes(data)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda f: shard(f).unlink(), "array_record-00000-of-00001: No such file"),
    (lambda f: shard(f).write_bytes(b""), "array_record-00000-of-00001: ArrayRecord file should"),
    (
      lambda f: shard(f).write_bytes(shard(f).read_bytes()[:65_536]),
      "array_record-00000-of-00001: damaged",
    ),
    (lambda f: flip(shard(f)), "copy: image . of train cannot be read"),
    (
      lambda f: shutil.copy(next(f.glob("*-test.array_record-*")), shard(f)),
      "array_record-00000-of-00001 has 2 rows, not 6",
    ),
    (lambda f: (f / "features.json").unlink(), "copy: Cannot restore"),
    *(
      (lambda f, n=name, d=data: (f / f"{n}.json").write_bytes(d), "copy: ")
      for name in ("features", "dataset_info")
      for data in (b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"type": 3}')
    ),
  ],
)
def test_a_damaged_data_set_is_one_line_that_says_what_to_do(prepared, tmp_path, damage, message):
  folder = tmp_path / "copy"
  shutil.copytree(prepared, folder)
  damage(folder)
  with pytest.raises(UserError, match=message) as error:
    pool = open_pool(folder, "train")
    [pool.image(i) for i in range(len(pool))]
  assert "remove its folder and prepare it again" in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_errors_teach(prepared):
  with pytest.raises(UserError, match=r"no split 'tran' \(did you mean 'train'\?\); splits: "):
    open_tfds(prepared, "tran")
  with pytest.raises(UserError, match="train"):
    open_tfds(prepared, "train[:x]")
