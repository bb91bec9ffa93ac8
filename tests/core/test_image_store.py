# SPDX-License-Identifier: Apache-2.0
import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images


def test_images(tmp_path):
  images = Images(tmp_path)
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


def test_images_are_spread_over_folders_and_older_ones_are_found(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
  flat = Images(tmp_path)
  old = [flat.put(image) for image in pictures[:20]]
  images = Images(tmp_path, fan_out=True)
  ids = [images.put(image) for image in pictures]
  assert ids[:20] == old and all(image_id in images for image_id in ids)
  for image_id, image in zip(ids, pictures, strict=True):
    np.testing.assert_array_equal(images.get(image_id), image)
  assert len(list(tmp_path.glob("*.png"))) == 20  # None is stored twice.
  assert {p.parent.name for p in tmp_path.glob("*/*.png")} == {i[:2] for i in ids[20:]}
  again = Images(tmp_path / "new", fan_out=True)
  assert again.path(again.put(pictures[0])) == tmp_path / "new" / ids[0][:2] / f"{ids[0]}.png"


def test_images_refuse_what_is_not_one(tmp_path):
  images = Images(tmp_path)
  for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
    with pytest.raises(ValueError, match="an image is u8"):
      images.put(bad)
  with pytest.raises(ValueError, match="not an image id"):
    images.path("../x")
  with pytest.raises(KeyError):
    images.get("0" * 64)


def test_damaged_images_are_found(tmp_path):
  images = Images(tmp_path)
  image_id = images.put(np.zeros((4, 4, 3), np.uint8))
  Image.new("RGB", (4, 4), "red").save(images.path(image_id))
  with pytest.raises(UserError, match="damaged"):
    images.get(image_id)
  images.path(image_id).write_bytes(b"\x89PNG torn")
  with pytest.raises(UserError, match="damaged"):
    images.get(image_id)


@pytest.mark.parametrize("kept", [0, 5, -3])
def test_a_file_that_a_crash_cut_is_written_anew(tmp_path, kept):
  images = Images(tmp_path)
  image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
  image_id = images.put(image)
  path = images.path(image_id)
  whole = path.read_bytes()
  path.write_bytes(whole[:kept])
  assert images.put(image) == image_id
  np.testing.assert_array_equal(images.get(image_id), image)
  first = path.stat().st_ino
  images.put(image)
  assert path.stat().st_ino == first, "a whole one is left alone"
