# SPDX-License-Identifier: Apache-2.0
r"""Images of one's own, from wherever they are, with questions, answers and splits.

COMMAND
  python -m examples.own_images --output=data/mine
  python -m auditdm_jax audit --auditor=data/scenes/weights/auditor \
    --target=data/scenes/weights/target_easy \
    --references=data/scenes/weights/ref_paligemma2,data/scenes/weights/ref_gemma3 \
    --images=data/mine --steps=0 --budget=256 --workdir=runs/own_images

A folder of pictures needs none of this: name it as --images. Write one where pictures come out of a
database or a camera, or where answers are known. `answer` and `split` may be left out of a row.
"""

import argparse
from collections.abc import Iterator
import json
import pathlib

import numpy as np
from PIL import Image

PHOTOS = pathlib.Path("data/photos")
# By columns of the photograph, so that no scene is audited and measured on at once.
SPLITS = {"6": "heldout", "7": "fresh"}


def pictures() -> Iterator[tuple[str, Image.Image, str]]:
  """Yields a name, a picture and its split. Your source comes here."""
  for path in sorted(PHOTOS.glob("*.jpg")):
    yield path.stem, Image.open(path), SPLITS.get(path.stem[-1], "train")


def questions(picture: Image.Image) -> Iterator[tuple[str, str]]:
  """Yields what is asked about a picture, and what is right. Your labels come here."""
  red, green, blue = np.asarray(picture.convert("RGB"), float).mean((0, 1))
  yield "is the image mostly blue ?", "yes" if blue > max(red, green) else "no"
  yield "is the image mostly green ?", "yes" if green > max(red, blue) else "no"


def write(folder: pathlib.Path) -> None:
  """Writes the pictures, and questions.jsonl beside them."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = []
  for name, picture, split in pictures():
    picture.save(folder / f"{name}.png")
    for question, answer in questions(picture):
      row = {"image": f"{name}.png", "question": question, "answer": answer, "split": split}
      rows.append(json.dumps(row))
  (folder / "questions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Writes images with questions for an audit.")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder")
  write(parser.parse_args().output)
