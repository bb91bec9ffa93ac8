# SPDX-License-Identifier: Apache-2.0
"""Documents, charts and diagrams: DocVQA, ChartQA and AI2D as their authors publish them."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np
from PIL import ImageDraw, ImageFont

from auditdm_jax.bench.items import BenchmarkItem, StoredPicture
from auditdm_jax.bench.layouts import raw
from auditdm_jax.bench.layouts.base import place_of, references, text
from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.listed import FileSource
from auditdm_jax.core.pools.rows import BadRow

_LARGEST = 100  # Of AI2D's letters, in points.


def docvqa(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  """Reads DocVQA's single-page task, the pictures in SPLIT/documents or documents."""
  names = (f"{split}_v1.0_withQT.json", f"{split}_v1.0.json")
  rows = raw.listed(raw.read_json(root, *names, *(f"{split}/{x}" for x in names)), "data", names[0])
  folder = raw.folder_of(root, f"{split}/documents", "documents", "spdocvqa_images")
  items = [_document(row, folder) for row in rows]
  raw.check_pictures(folder, (item.image_key for item in items))
  return raw.whole(items)


def _document(row: Mapping[str, Any], folder: pathlib.Path) -> BenchmarkItem:
  name = pathlib.PurePosixPath(text(row["image"], "image")).name
  return BenchmarkItem(
    item_id=text(row["questionId"], "questionId"),
    pictures=(FileSource(str(folder / name)),),
    image_key=name,
    question=text(row["question"], "question"),
    references=references(row.get("answers") or ()),
    category=", ".join(row.get("question_types") or ()),
  )


def chartqa(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  """Reads ChartQA; split such as test/human, test/augmented, or test for both."""
  part, _, source = split.partition("/")
  root = root / "ChartQA Dataset" if (root / "ChartQA Dataset").is_dir() else root
  folder = raw.folder_of(root, f"{part}/png")
  items = []
  for name in (source,) if source else ("human", "augmented"):
    content = raw.read_json(root, f"{part}/{part}_{name}.json")
    if not isinstance(content, list):
      raise BadRow(f"{part}/{part}_{name}.json is no list")
    items += [_chart(k, row, name, folder) for k, row in enumerate(content)]
  raw.check_pictures(folder, (item.image_key for item in items))
  return raw.whole(items)


def _chart(k: int, row: Mapping[str, Any], source: str, folder: pathlib.Path) -> BenchmarkItem:
  name = pathlib.PurePosixPath(text(row["imgname"], "imgname")).name
  return BenchmarkItem(
    item_id=f"{source}/{k}",
    pictures=(FileSource(str(folder / name)),),
    image_key=name,
    question=text(row["query"], "query"),
    references=references(row["label"]),
    category=source,
  )


def ai2d(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  """Reads AI2D; the test split is the pictures of ai2d_test_ids.csv.

  Where the options are the letters of labels, the labels of the diagram are written over with their
  letters, as in big_vision. It has another font, so that the pixels differ from its own.
  """
  ids = raw.file_of(root, "ai2d_test_ids.csv", "ai2d/ai2d_test_ids.csv")
  base = root / "ai2d" if (root / "ai2d").is_dir() else root
  test = set(ids.read_text(encoding="utf-8").split())
  asked, labels = raw.folder_of(base, "questions"), raw.folder_of(base, "annotations")
  shown = raw.folder_of(base, "images")
  items = []
  for file in sorted(asked.glob("*.json")):
    if (file.name.split(".")[0] in test) == (split == "test"):
      items += _diagram(raw.read_json(asked, file.name), file.name, labels, shown)
  raw.check_pictures(shown, (item.image_key for item in items))
  return raw.whole(items)


def _diagram(
  content: Mapping[str, Any], name: str, labels: pathlib.Path, shown: pathlib.Path
) -> list[BenchmarkItem]:
  image = pathlib.PurePosixPath(text(content["imageName"], "imageName")).name
  plain = FileSource(str(shown / image))
  lettered = _Lettered(plain, labels, name)
  items = []
  for question, row in content["questions"].items():
    options = tuple(text(x, "answerTexts") for x in row["answerTexts"])
    place = place_of(text(row["correctAnswer"], "correctAnswer"), options)
    picture: StoredPicture = lettered if row["abcLabel"] else plain
    items.append(
      BenchmarkItem(
        item_id=text(row["questionId"], "questionId"),
        pictures=(picture,),
        image_key=image,
        question=text(question, "question"),
        references=(options[place],),
        options=options,
        answer=place,
        metadata={"abc_label": bool(row["abcLabel"])},
      )
    )
  return items


@dataclasses.dataclass(frozen=True, slots=True)
class _Lettered:
  """A diagram whose labels are replaced by their letters."""

  plain: FileSource
  labels: pathlib.Path
  file: str

  @property
  def name(self) -> str:
    return self.plain.name

  def stored(self) -> np.ndarray:
    image = pictures.load(self.plain.path, name=self.name)
    draw = ImageDraw.Draw(image)
    try:
      found = raw.read_json(self.labels, self.file).get("text") or {}
      for label in found.values():
        (x0, y0), (x1, y1) = label["rectangle"]
        letter = text(label["replacementText"], "replacementText")
        _letter(draw, (int(x0), int(y0), int(x1), int(y1)), letter)
    except raw.MissingFiles as e:
      raise UserError(f"{self.labels / self.file}: no such file of labels") from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise UserError(f"{self.labels / self.file}: not what AI2D has ({e})") from e
    return np.asarray(image)


def _letter(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], letter: str) -> None:
  x0, y0, x1, y1 = box
  draw.rectangle(box, fill="white")
  for size in range(_LARGEST, 0, -1):
    font = ImageFont.load_default(size)
    _, _, width, height = font.getbbox(letter)
    if width <= x1 - x0 and height <= y1 - y0:
      break
  draw.text((x0 + (x1 - x0 - width) // 2, y0), letter, fill="black", font=font)
