# SPDX-License-Identifier: Apache-2.0
"""Parquet files, as lmms-eval's data sets have them."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from tests.bench.layouts import fakes
from tests.bench.layouts.fakes import cell
from tests.bench.layouts.shared import (
  ASKED,
  CAPTIONS,
  IMAGES,
  OPTIONS,
  SENTENCES,
  TEN,
  VALUES,
  Expected,
  chosen,
  grounded,
  want_of,
)


def _parquet(name: str, rows: Sequence[Mapping[str, Any]], *, shards: int = 2):
  """Writes rows over several files, `name` with one {}."""

  def make(root: pathlib.Path) -> None:
    size = -(-len(rows) // shards)
    for k in range(shards):
      file = root / name.format(f"{k:05d}-of-{shards:05d}")
      fakes.write_parquet(file, rows[k * size : (k + 1) * size])

  return make


def vqav2_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {
      **{"question_type": "what is", "multiple_choice_answer": "x", "image_id": IMAGES[k]},
      "answers": [
        {"answer": x, "answer_confidence": "yes", "answer_id": n} for n, x in enumerate(TEN[k])
      ],
      **{"answer_type": "other", "question_id": 420 + k, "question": ASKED[k]},
      "image": cell(VALUES[k]),
    }
    for k in range(3)
  ]
  _parquet("data/validation-{}.parquet", rows)(root)
  return want_of(
    (420, 421, 422),
    question=ASKED,
    references=[tuple(x) for x in TEN],
    image_key=list(map(str, IMAGES)),
  )


def okvqa_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"question_id": k, "image": cell(VALUES[k]), "question": ASKED[k], "answers": TEN[k]}
    | {"question_type": "one", "answer_type": "other"}
    for k in range(3)
  ]
  _parquet("data/val2014-{}.parquet", rows)(root)
  return want_of(range(3), question=ASKED, references=[tuple(x) for x in TEN])


def gqa_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"id": f"q{k}", "imageId": f"n{IMAGES[k]}", "question": ASKED[k], "answer": "yes"}
    | {"fullAnswer": "Yes.", "isBalanced": True}
    for k in range(3)
  ]
  _parquet("testdev_balanced_instructions/testdev-{}.parquet", rows, shards=1)(root)
  images = [{"id": f"n{IMAGES[k]}", "image": cell(VALUES[k])} for k in (1, 0)]
  _parquet("testdev_balanced_images/testdev-{}.parquet", images, shards=1)(root)
  return want_of(
    ["q0", "q1", "q2"],
    question=ASKED,
    references=[("yes",)] * 3,
    image_key=[f"n{x}" for x in IMAGES],
  )


def ai2d_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"question": ASKED[k], "options": OPTIONS, "answer": str(k), "image": cell(VALUES[k])}
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  return want_of(
    range(3),
    question=ASKED,
    options=[OPTIONS] * 3,
    answer=range(3),
    references=[(x,) for x in OPTIONS],
  )


def docvqa_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {
      **{"questionId": str(k), "question": ASKED[k], "question_types": ["form", "layout"]},
      **{"image": cell(VALUES[k]), "docId": 5, "ucsf_document_id": "pybv0228"},
      **{"ucsf_document_page_no": str(IMAGES[k]), "answers": ["a", "b"], "data_split": "val"},
    }
    for k in range(3)
  ]
  _parquet("DocVQA/validation-{}.parquet", rows)(root)
  _parquet("InfographicVQA/validation-{}.parquet", rows[:1], shards=1)(root)
  return want_of(
    range(3),
    question=ASKED,
    references=[("a", "b")] * 3,
    image_key=[f"pybv0228_{x}" for x in IMAGES],
    category=["form, layout"] * 3,
  )


def chartqa_parquet(root: pathlib.Path) -> Expected:
  kinds = ("human_test", "augmented_test", "human_test")
  rows = [
    {"type": kinds[k], "question": ASKED[k], "answer": "14", "image": cell(VALUES[k])}
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  return want_of(
    (0, 2),
    values=[[40], [80]],
    question=ASKED[::2],
    references=[("14",)] * 2,
    category=["human"] * 2,
  )


def refcoco_parquet(root: pathlib.Path) -> Expected:
  polygon = [2.0, 0.0, 6.0, 0.0, 6.0, 3.0, 2.0, 3.0]
  rows = [
    {
      **{"question_id": f"r{k}", "image": cell(VALUES[k]), "question": "Describe the region."},
      **{"answer": SENTENCES[:1] if k == 0 else SENTENCES[1:], "segmentation": polygon},
      **{"bbox": [1.0, 1.5, 4.0, 3.0], "iscrowd": 0},
      "file_name": f"COCO_train2014_{IMAGES[k]:012d}_{k}.jpg",
    }
    for k in range(2)
  ]
  _parquet("data/val-{}.parquet", rows, shards=1)(root)
  return grounded(("r0/0", "r1/0", "r1/1"))


def cococap_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {
      **{"question_id": str(k), "image": cell(VALUES[k]), "question": "Describe it."},
      **{"answer": CAPTIONS[k], "id": k, "file_name": f"COCO_val2014_{k:012d}.jpg"},
    }
    for k in range(3)
  ]
  _parquet("data/val-{}.parquet", rows)(root)
  return want_of(range(3), question=[""] * 3, references=CAPTIONS)


def _choice_rows(**more: Sequence[Any]) -> list[dict[str, Any]]:
  letters = {letter: OPTIONS[k] for k, letter in enumerate("ABC")}
  return [
    {
      **{"index": k, "question": ASKED[k], "image": cell(VALUES[k]), "answer": "ABC"[k]},
      **{"category": "x", **letters, **{name: column[k] for name, column in more.items()}},
    }
    for k in range(3)
  ]


def mmbench_parquet(root: pathlib.Path) -> Expected:
  more = {"L2-category": ["p"] * 3, "source": ["s"] * 3, "split": ["dev"] * 3, "D": ["nan"] * 3}
  rows = _choice_rows(hint=[None, "Look.", "nan"], **more)
  rows[2]["index"] = 1_000_001
  _parquet("en/dev-{}.parquet", rows)(root)
  _parquet("cn/dev-{}.parquet", rows[:1], shards=1)(root)
  return chosen((0, 1, 1_000_001), group=["0", "1", "1"], hint=["", "Look.", ""])


def mmt_parquet(root: pathlib.Path) -> Expected:
  rows = _choice_rows(**{letter: [None] * 3 for letter in "DEFGHI"}, **{"l2-category": ["p"] * 3})
  _parquet("data/val-{}.parquet", rows)(root)
  return chosen(range(3), category=["x"] * 3)


def seedbench_parquet(root: pathlib.Path) -> Expected:
  kinds = ("image", "video", "image")
  rows = [
    {
      **{"answer": "B", **{f"choice_{x}": f"{x}!" for x in "abcd"}, "data_id": f"d{IMAGES[k]}"},
      **{"data_type": kinds[k], "question": ASKED[k], "question_id": str(k)},
      **{"question_type_id": 1, "image": [cell(VALUES[k])], "segment": [0, 1]},
    }
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  return want_of(
    (0, 2),
    values=[[40], [80]],
    question=ASKED[::2],
    options=[("a!", "b!", "c!", "d!")] * 2,
    answer=[1, 1],
    image_key=["d42", "d73"],
  )


def mme_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"question_id": f"OCR/{IMAGES[k]}.jpg", "image": cell(VALUES[k]), "question": ASKED[k]}
    | {"answer": "Yes", "category": "OCR"}
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  groups = [f"OCR/{x}.jpg" for x in IMAGES]
  return want_of(range(3), question=ASKED, references=[("Yes",)] * 3, group=groups)


def mmmu_parquet(root: pathlib.Path) -> Expected:
  common = {"explanation": "", "img_type": "['Plots']", "topic_difficulty": "Easy", "subfield": "x"}
  rows = [
    {
      **{"id": "validation_Art_Theory_1", "question": ASKED[0], "options": "['it\\'s x', 'y']"},
      **{"answer": "B", "question_type": "multiple-choice", "image_1": cell(40)},
      **{"image_2": cell(80), **common},
    },
    {
      **{"id": "validation_Art_Theory_2", "question": ASKED[1], "options": "[]"},
      **{"answer": "['3.5', '7/2']", "question_type": "open", "image_1": cell(80)},
      **{"image_2": None, **common},
    },
  ]
  _parquet("Art_Theory/validation-{}.parquet", rows, shards=1)(root)
  return want_of(
    ("validation_Art_Theory_1", "validation_Art_Theory_2"),
    values=[[40, 80], [80]],
    options=[("it's x", "y"), ()],
    references=[("y",), ("3.5", "7/2")],
    answer=[1, None],
    category=["Art_Theory"] * 2,
  )


def mmstar_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"index": k, "question": ASKED[k], "image": cell(VALUES[k]), "answer": "C", "category": "math"}
    | {"l2_category": "geometry", "meta_info": {"source": "x"}}
    for k in range(3)
  ]
  _parquet("data/val-{}.parquet", rows)(root)
  kept = [{"category": "math", "meta_info": {"source": "x"}}] * 3
  return want_of(
    range(3),
    question=ASKED,
    references=[("C",)] * 3,
    category=["geometry"] * 3,
    metadata=kept,
  )


def realworldqa_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"image": cell(VALUES[k]), "question": ASKED[k], "answer": "A", "image_path": f"{k}.webp"}
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  return want_of(range(3), question=ASKED, references=[("A",)] * 3)


def pope_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"id": str(k), "question_id": "1", "question": ASKED[k], "answer": "no", "category": "random"}
    | {"image_source": f"COCO_val2014_{IMAGES[k]:012d}", "image": cell(VALUES[k])}
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  keys = [f"COCO_val2014_{x:012d}" for x in IMAGES]
  return want_of(range(3), question=ASKED, references=[("no",)] * 3, image_key=keys)
