# SPDX-License-Identifier: Apache-2.0
"""Cuts the two photographs that scikit-learn ships into 64 small ones, those beside this file.

COMMAND
  python -m pip install scikit-learn && python data/photos/cut.py --output=data/photos
"""

import argparse
from collections.abc import Iterator
import pathlib

import numpy as np
from PIL import Image

ROWS, COLUMNS = 4, 8


def windows() -> Iterator[tuple[str, np.ndarray]]:
  """Yields a name and u8[106, 80, 3] pixels for each window, row by row."""
  from sklearn.datasets import load_sample_images

  photographs = load_sample_images()
  for path, image in zip(photographs.filenames, photographs.images, strict=True):
    height, width = image.shape[0] // ROWS, image.shape[1] // COLUMNS
    for row in range(ROWS):
      for column in range(COLUMNS):
        part = image[row * height :, column * width :][:height, :width]
        yield f"{pathlib.Path(path).stem}-{row}{column}.jpg", part


def main() -> None:
  """Writes the windows."""
  parser = argparse.ArgumentParser(description="Cuts scikit-learn's two photographs.")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder")
  folder = parser.parse_args().output
  folder.mkdir(parents=True, exist_ok=True)
  for name, pixels in windows():
    Image.fromarray(pixels).save(folder / name, quality=85)


if __name__ == "__main__":
  main()
