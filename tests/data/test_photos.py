# SPDX-License-Identifier: Apache-2.0
"""The photographs are what cut.py makes, and have their licence beside them."""

import pathlib
import runpy

import numpy as np
from PIL import Image
import pytest

PHOTOS = pathlib.Path(__file__).parents[2] / "data/photos"


def test_the_photographs_are_windows_of_those_of_scikit_learn():
  pytest.importorskip("sklearn")
  windows = dict(runpy.run_path(str(PHOTOS / "cut.py"))["windows"]())
  assert {path.name for path in PHOTOS.glob("*.jpg")} == windows.keys() and len(windows) == 64
  for name, pixels in windows.items():
    stored = np.asarray(Image.open(PHOTOS / name), float)
    assert stored.shape == (106, 80, 3) and np.abs(stored - pixels).mean() < 8, name


def test_their_authors_are_named():
  said = (PHOTOS / "README.md").read_text()
  names = {path.stem.partition("-")[0] for path in PHOTOS.glob("*.jpg")}
  assert all(f"| `{name}-*.jpg` |" in said for name in names) and "CC BY 2.0" in said
