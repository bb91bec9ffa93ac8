# SPDX-License-Identifier: Apache-2.0
"""The leak index: near copies of pictures are found, in any benchmark, also after a round trip."""

import dataclasses
import io

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit import gates, leaks
from auditdm_jax.audit.duplicates import fingerprint
from auditdm_jax.core.config import UserError


@dataclasses.dataclass
class Item:
  item_id: str
  image_key: str
  question: str
  pictures: tuple[np.ndarray, ...]
  decoded: int = 0

  def image(self, k=0):
    self.decoded += 1
    return self.pictures[k]


def photo(seed):
  """A smooth picture, as photographs are."""
  noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  return np.asarray(Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC))


def as_jpeg(image, quality=70):
  out = io.BytesIO()
  Image.fromarray(image).resize((128, 96)).save(out, "JPEG", quality=quality)
  return np.asarray(Image.open(out))


ITEMS = [
  Item(str(k), f"i{k // 2}", ("What colour is the bus?", "How many dogs?")[k % 2], (photo(k // 2),))
  for k in range(40)
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
  path = tmp_path_factory.mktemp("leaks") / "leaks.npz"
  several = [Item("m", "m", "Compare <image 1> and <image 2>.", (photo(50), photo(51)))]
  captions = [Item("c", "c", "", (photo(3),))]
  made = [
    leaks.build(ITEMS, source="vqav2/val"),
    leaks.build(several, source="mmmu/val"),
    leaks.build(captions, source="cococap/val"),
  ]
  leaks.joined(made).save(path)
  return leaks.load(path)


def test_a_picture_is_decoded_once_for_all_its_questions(index):
  assert [item.decoded for item in ITEMS] == [1, 0] * 20
  assert len(index.bits) == 23 and len(index.texts) == 43


def test_copies_are_found_and_others_are_not(index):
  hits = index.hits(as_jpeg(photo(3)), "how many dogs")
  assert [(hit.source, hit.item_id, hit.overlap) for hit in hits] == [
    ("vqav2/val", "7", 1.0),
    ("vqav2/val", "6", 0.0),
    ("cococap/val", "c", 0.0),
  ]
  assert [hit.item_id for hit in index.hits(photo(51))] == ["m"]
  assert index.hits(photo(99), "How many dogs?") == []
  for k in range(20):
    assert {hit.item_id for hit in index.hits(as_jpeg(photo(k)))} >= {str(2 * k), str(2 * k + 1)}


def test_the_gate_asks_the_same_index(index):
  seen = index.duplicates()
  copy = fingerprint(as_jpeg(photo(5)))
  leaked = gates.near_duplicate(copy, "What colour is the bus?", seen, name="benchmark_leak")
  assert leaked.passed is False and leaked.name == "benchmark_leak"
  assert gates.near_duplicate(copy, "Is the driver asleep?", seen).passed
  assert gates.near_duplicate(fingerprint(photo(77)), "What colour is the bus?", seen).passed


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 torn", b"\x93NUMPY", b"{}", "cut", "shapes"])
def test_a_damaged_index_is_named(index, tmp_path, data):
  path = tmp_path / "leaks.npz"
  if data == "shapes":
    dataclasses.replace(index, picture=index.picture + 1).save(path)
  else:
    index.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if data == "cut" else data)
  with pytest.raises(UserError, match="leaks.npz: no index of leaks, make it again"):
    leaks.load(path)


def test_an_index_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere.npz: No such file"):
    leaks.load(tmp_path / "nowhere.npz")
