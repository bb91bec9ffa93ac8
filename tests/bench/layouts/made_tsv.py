# SPDX-License-Identifier: Apache-2.0
"""VLMEvalKit's TSV files."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any

from tests.bench.layouts import fakes
from tests.bench.layouts.fakes import base64_of
from tests.bench.layouts.shared import (
  ASKED,
  BOX,
  CAPTIONS,
  OPTIONS,
  VALUES,
  Expected,
  want_of,
)


def _tsv(root: pathlib.Path, name: str, **columns: Sequence[Any]) -> None:
  """Three rows; the third row's picture is that of the second one."""
  columns.setdefault("index", range(3))
  images = [base64_of(VALUES[0]), base64_of(VALUES[1]), str(columns["index"][1])]
  columns = {"index": columns.pop("index"), "image": images, "question": ASKED, **columns}
  rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
  fakes.write_tsv(root / name, rows)


def choices(name: str, **more: Sequence[Any]) -> Callable[[pathlib.Path], Expected]:
  def make(root: pathlib.Path) -> Expected:
    columns = {letter: [OPTIONS[k]] * 3 for k, letter in enumerate("ABC")} | {"D": [""] * 3}
    _tsv(root, name, **columns, answer=list("ABC"), category=["x"] * 3, **more)
    return want_of(
      range(3),
      question=ASKED,
      options=[OPTIONS] * 3,
      answer=range(3),
      references=[(x,) for x in OPTIONS],
      category=["x"] * 3,
    )

  return make


def answers(name: str, **more: Sequence[Any]) -> Callable[[pathlib.Path], Expected]:
  def make(root: pathlib.Path) -> Expected:
    _tsv(root, name, answer=["['1/8/93', \"it's\"]", "yes", "[sic] no"], **more)
    said = [("1/8/93", "it's"), ("yes",), ("[sic] no",)]
    return want_of(range(3), question=ASKED, references=said)

  return make


def mmbench_tsv(root: pathlib.Path) -> Expected:
  index = [7, 8, 1_000_008]
  columns = {"A": ["cat"] * 3, "B": ["dog"] * 3, "C": [""] * 3, "D": [""] * 3}
  _tsv(
    root,
    "MMBench_DEV_EN_V11.tsv",
    index=index,
    hint=["", "Look.", "Look."],
    **columns,
    answer=["A", "B", "A"],
    category=["x", "y", "y"],
    **{"l2-category": ["p"] * 3, "source": ["s"] * 3, "comment": [""] * 3, "split": ["dev"] * 3},
  )
  return want_of(
    index,
    question=ASKED,
    options=[("cat", "dog")] * 3,
    answer=[0, 1, 0],
    hint=["", "Look.", "Look."],
    group=["7", "8", "8"],
    image_key=["7", "8", "8"],
  )


def mmmu_tsv(root: pathlib.Path) -> Expected:
  two = str([base64_of(40), base64_of(80)])
  common = {"question": "<image 1> <image 2>?", "A": "x", "B": "y", "category": "Art"}
  rows = [
    {"index": k, "image": two, **common, "answer": "B", "id": f"id{k}", "split": split}
    for k, split in enumerate(("dev", "validation", "validation"))
  ]
  fakes.write_tsv(root / "MMMU_DEV_VAL.tsv", rows)
  return want_of((1, 2), values=[[40, 80]] * 2, answer=[1, 1], references=[("y",)] * 2)


def mme_tsv(root: pathlib.Path) -> Expected:
  paths = ["OCR/1.jpg", "OCR/2.jpg", "OCR/2.jpg"]
  _tsv(root, "MME.tsv", answer=["Yes", "No", "Yes"], category=["OCR"] * 3, image_path=paths)
  said = [("Yes",), ("No",), ("Yes",)]
  return want_of(range(3), question=ASKED, references=said, group=paths, image_key=paths)


def pope_tsv(root: pathlib.Path) -> Expected:
  _tsv(root, "POPE.tsv", answer=["no"] * 3, category=["random"] * 3)
  return want_of(range(3), question=ASKED, references=[("no",)] * 3, category=["random"] * 3)


def refcoco_tsv(root: pathlib.Path) -> Expected:
  _tsv(
    root,
    "RefCOCO.tsv",
    answer=["[2, 0, 6, 3]"] * 3,
    category=["RefCOCO_val"] * 3,
    split=["RefCOCO_testA", "RefCOCO_val", "RefCOCO_val"],
    **{"bbox_x1": [1] * 3, "bbox_y1": [1.5] * 3, "bbox_x2": [5] * 3, "bbox_y2": [4.5] * 3},
    **{"width": [8] * 3, "height": [6] * 3},
  )
  return want_of((1, 2), values=[[80]] * 2, question=ASKED[1:], box=[BOX] * 2)


def cococap_tsv(root: pathlib.Path) -> Expected:
  _tsv(root, "COCO_VAL.tsv", answer=[str(list(x)) for x in CAPTIONS])
  return want_of(range(3), question=[""] * 3, references=CAPTIONS)


def realworldqa_tsv(root: pathlib.Path) -> Expected:
  made = choices("RealWorldQA.tsv")(root)
  return [{k: v for k, v in row.items() if k != "category"} for row in made]
