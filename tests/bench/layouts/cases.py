# SPDX-License-Identifier: Apache-2.0
"""Every layout of every benchmark, made small, with the items that must come out of it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
import pickle
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from auditdm_jax.bench.layouts import raw_choice
from auditdm_jax.bench.specs import BenchmarkSpec, find
from tests.bench.layouts import fakes
from tests.bench.layouts.fakes import JPEG, PNG, F, base64_of, cell, encoded

I32, I64, BOOL, TEXT = F.Scalar(np.int32), F.Scalar(np.int64), F.Scalar(np.bool_), F.Text()
TEXTS = F.Sequence(F.Text())
# The picture's values; the last two questions are about one picture.
VALUES, IMAGES = (40, 80, 80), (42, 73, 73)
TEN = [["net"] * 9 + ["a net"], ["2"] * 10, ["no"] * 5 + ["yes"] * 5]
ASKED = ('What is it, "this"?', "How many\nsheep\tare there?", "Is 3.5 > 2?")

Expected = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Case:
  """A benchmark in one layout.

  Attributes:
    name: of the spec.
    kind: of the layout.
    split: ours.
    make: makes it in a folder, and returns fields of the items; "values" are their pictures.
    text: a column or key that breaks it when it has another name.
  """

  name: str
  kind: str
  split: str
  make: Callable[[pathlib.Path], Expected]
  text: str = "question"

  @property
  def spec(self) -> BenchmarkSpec:
    return find(self.name, where="test")

  def __str__(self) -> str:
    return f"{self.name}-{self.kind}-{self.split}"


def _want(ids: Sequence[Any], **columns: Sequence[Any]) -> list[dict[str, Any]]:
  columns.setdefault("values", [[v] for v in VALUES[: len(ids)]])
  rows = zip(*columns.values(), strict=True)
  return [
    {"item_id": str(i), **dict(zip(columns, row, strict=True))}
    for i, row in zip(ids, rows, strict=True)
  ]


# TFDS, as big_vision's builders declare it.


def _tfds(name: str, features: Mapping[str, Any], split: str, rows: Expected, **more: Any):
  def make(root: pathlib.Path, form: str = "array_record") -> None:
    found = {split: [(row.get("question_id", k), row) for k, row in enumerate(rows)]}
    fakes.prepare(root, name, features, found, file_format=form, **more)

  return make


def vqa(root: pathlib.Path, form: str = "array_record", split: str = "validation") -> Expected:
  features = {
    **{"image/id": I32, "image/filename": TEXT, "image": JPEG, "question_id": I32},
    **{"question_type": TEXT, "question_text": TEXT, "answer_type": TEXT, "answers": TEXTS},
    "answer_confidences": F.Sequence(F.ClassLabel(names=["no", "maybe", "yes"])),
    "top_answer": TEXT,
  }
  rows = [
    {
      **{"image/id": IMAGES[k], "image/filename": f"{k}.jpg", "image": encoded(VALUES[k], "JPEG")},
      **{"question_id": 420 + k, "question_type": "what is", "question_text": ASKED[k]},
      **{"answer_type": "other", "answers": TEN[k], "top_answer": "x"},
      "answer_confidences": ["yes"] * 10,
    }
    for k in range(3)
  ]
  _tfds("Vqa", features, split, rows, version="3.0.0")(root, form)
  return _want(
    (420, 421, 422),
    question=ASKED,
    references=[tuple(x) for x in TEN],
    image_key=list(map(str, IMAGES)),
    category=["other"] * 3,
    metadata=[{"question_type": "what is"}] * 3,
  )


def okvqa_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  features = {
    **{"image": F.Image(shape=(None, None, 3)), "image_id": I64, "answer_type": TEXT},
    **{"answers": TEXTS, "answers_confidence": F.Tensor(shape=[10], dtype=np.bool_)},
    **{"answers_raw": TEXTS, "question_id": I64, "question_type": TEXT},
    **{"question_type_readable": TEXT, "question": TEXT},
  }
  rows = [
    {
      **{"image": encoded(VALUES[k]), "image_id": IMAGES[k], "answer_type": "other"},
      **{"answers": TEN[k], "answers_confidence": np.ones(10, bool), "answers_raw": ["raw"] * 10},
      **{"question_id": k, "question_type": "one", "question_type_readable": "Sports"},
      "question": ASKED[k],
    }
    for k in range(3)
  ]
  _tfds("OkVqa", features, "val", rows)(root, form)
  return _want(
    range(3),
    question=ASKED,
    references=[tuple(x) for x in TEN],
    image_key=list(map(str, IMAGES)),
    category=["Sports"] * 3,
  )


def gqa_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  features = {
    **{"example_id": I64, "image/id": TEXT, "image": JPEG, "question": TEXT, "answer": TEXT},
    **{"full_answer": TEXT, "is_balanced": BOOL},
  }
  rows = [
    {
      **{"example_id": k, "image/id": f"n{IMAGES[k]}", "image": encoded(VALUES[k], "JPEG")},
      **{"question": ASKED[k], "answer": "yes", "full_answer": "Yes, it is.", "is_balanced": True},
    }
    for k in range(3)
  ]
  _tfds("GQA", features, "testdev_balanced", rows)(root, form)
  return _want(
    range(3),
    question=ASKED,
    references=[("yes",)] * 3,
    image_key=[f"n{x}" for x in IMAGES],
    metadata=[{"full_answer": "Yes, it is.", "is_balanced": True}] * 3,
  )


OPTIONS = ("a", "the 2nd", "None")


def ai2d_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  features = {
    **{"id": TEXT, "question": TEXT, "label": I32, "answer": TEXT, "possible_answers": TEXTS},
    **{"abc_label": BOOL, "image_name": TEXT, "image": PNG},
  }
  rows = [
    {
      **{"id": f"{k}.png-{k}", "question": ASKED[k], "label": k, "answer": OPTIONS[k]},
      **{"possible_answers": OPTIONS, "abc_label": False, "image_name": f"{IMAGES[k]}.png"},
      "image": encoded(VALUES[k]),
    }
    for k in range(3)
  ]
  _tfds("Ai2d", features, "test", rows, version="1.1.0")(root, form)
  return _want(
    [f"{k}.png-{k}" for k in range(3)],
    question=ASKED,
    options=[OPTIONS] * 3,
    answer=range(3),
    references=[(x,) for x in OPTIONS],
    image_key=[f"{x}.png" for x in IMAGES],
  )


def _document_features(answer: Mapping[str, Any]) -> dict[str, Any]:
  return {"question_id": I32, "image/filename": TEXT, "image": PNG, "question": TEXT, **answer}


def _document_rows(**columns: Sequence[Any]) -> list[dict[str, Any]]:
  return [
    {
      **{"question_id": k, "image/filename": f"{IMAGES[k]}.png", "image": encoded(VALUES[k])},
      **{"question": ASKED[k], **{name: column[k] for name, column in columns.items()}},
    }
    for k in range(3)
  ]


def _documents(references: Sequence[tuple[str, ...]]) -> Expected:
  names = [f"{x}.png" for x in IMAGES]
  return _want(range(3), question=ASKED, references=references, image_key=names)


def docvqa_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  said = [("1/8/93", "January 8"), ("é",), ("x",)]
  rows = _document_rows(answers=[list(x) for x in said])
  _tfds("DocVQA", _document_features({"answers": TEXTS}), "val", rows)(root, form)
  return _documents(said)


def chartqa_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  rows = _document_rows(answer=["0.57", "Yes", "14"])
  features = _document_features({"answer": TEXT})
  _tfds("ChartQA", features, "test", rows, config="human")(root, form)
  return _documents([("0.57",), ("Yes",), ("14",)])


def pope_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  rows = _document_rows(answer=["yes", "no", "no"], thing=["dog"] * 3)
  features = _document_features({"answer": TEXT, "thing": TEXT})
  _tfds("POPE", features, "test", rows, config="pope_popular")(root, form)
  return _documents([("yes",), ("no",), ("no",)])


BOX = (0.0, 0.25, 0.5, 0.75)  # ymin, xmin, ymax, xmax.


def outline() -> np.ndarray:
  mask = np.zeros((fakes.HEIGHT, fakes.WIDTH), bool)
  mask[0:3, 2:6] = True
  return mask


def _mask_file() -> Any:
  out = fakes.io.BytesIO()
  fakes.Image.fromarray(outline().astype(np.uint8) * 255).save(out, "PNG")
  out.seek(0)
  return out


SENTENCES = ("left dog", "the white one", "dog on the left")


def _grounded(ids: Sequence[Any]) -> Expected:
  return _want(
    ids,
    question=SENTENCES,
    references=[()] * 3,
    image_key=list(map(str, IMAGES)),
    box=[BOX] * 3,
    mask=[outline()] * 3,
  )


def refcoco_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  features = {
    **{"id": I32, "image": JPEG, "height": I32, "width": I32, "file_name": TEXT},
    "objects": F.Sequence(
      {
        **{"id": I64, "area": F.Scalar(np.float32), "bbox": F.BBoxFeature(), "mask": PNG},
        **{"category": F.ClassLabel(names=["dog", "cat"]), "iscrowd": BOOL},
        "refs": F.Sequence({"id": I32, "sentence": TEXT}),
      }
    ),
  }
  rows = [
    {
      **{"id": IMAGES[k], "image": encoded(VALUES[k], "JPEG"), "file_name": "x.jpg"},
      **{"height": fakes.HEIGHT, "width": fakes.WIDTH},
      "objects": [
        {
          **{"id": 7, "area": 12.0, "bbox": tfds.features.BBox(*BOX), "mask": _mask_file()},
          **{"category": "dog", "iscrowd": False},
          "refs": [{"id": 100 + k, "sentence": SENTENCES[k]}],
        }
      ],
    }
    for k in range(3)
  ]
  build = _tfds(
    "RefCocoBv", features, "validation_flat", rows, version="1.4.0", config="refcoco_unc"
  )
  build(root, form)
  return _grounded((100, 101, 102))


CAPTIONS = [("A dog.", "One dog runs."), ("Two sheep.",), ("No.", "Nothing\nhere.")]


def cococap_tfds(root: pathlib.Path, form: str = "array_record") -> Expected:
  features = {
    **{"image": JPEG, "image/filename": TEXT, "image/id": I64},
    "captions": F.Sequence({"id": I64, "text": TEXT}),
    "objects": F.Sequence({"bbox": F.BBoxFeature(), "is_crowd": BOOL}),
  }
  rows = [
    {
      **{"image": encoded(VALUES[k], "JPEG"), "image/filename": "x.jpg", "image/id": k},
      **{"captions": [{"id": 1, "text": x} for x in CAPTIONS[k]], "objects": []},
    }
    for k in range(3)
  ]
  _tfds("CocoCaptions", features, "val", rows, version="1.1.0", config="2014")(root, form)
  return _want(range(3), question=[""] * 3, references=CAPTIONS, image_key=["0", "1", "2"])


# VLMEvalKit's TSV files.


def _tsv(root: pathlib.Path, name: str, **columns: Sequence[Any]) -> None:
  """Three rows; the third row's picture is that of the second one."""
  columns.setdefault("index", range(3))
  images = [base64_of(VALUES[0]), base64_of(VALUES[1]), str(columns["index"][1])]
  columns = {"index": columns.pop("index"), "image": images, "question": ASKED, **columns}
  rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
  fakes.write_tsv(root / name, rows)


def _choices(name: str, **more: Sequence[Any]) -> Callable[[pathlib.Path], Expected]:
  def make(root: pathlib.Path) -> Expected:
    columns = {letter: [OPTIONS[k]] * 3 for k, letter in enumerate("ABC")} | {"D": [""] * 3}
    _tsv(root, name, **columns, answer=list("ABC"), category=["x"] * 3, **more)
    return _want(
      range(3),
      question=ASKED,
      options=[OPTIONS] * 3,
      answer=range(3),
      references=[(x,) for x in OPTIONS],
      category=["x"] * 3,
    )

  return make


def _answers(name: str, **more: Sequence[Any]) -> Callable[[pathlib.Path], Expected]:
  def make(root: pathlib.Path) -> Expected:
    _tsv(root, name, answer=["['1/8/93', \"it's\"]", "yes", "[sic] no"], **more)
    said = [("1/8/93", "it's"), ("yes",), ("[sic] no",)]
    return _want(range(3), question=ASKED, references=said)

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
  return _want(
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
  return _want((1, 2), values=[[40, 80]] * 2, answer=[1, 1], references=[("y",)] * 2)


def mme_tsv(root: pathlib.Path) -> Expected:
  paths = ["OCR/1.jpg", "OCR/2.jpg", "OCR/2.jpg"]
  _tsv(root, "MME.tsv", answer=["Yes", "No", "Yes"], category=["OCR"] * 3, image_path=paths)
  said = [("Yes",), ("No",), ("Yes",)]
  return _want(range(3), question=ASKED, references=said, group=paths, image_key=paths)


def pope_tsv(root: pathlib.Path) -> Expected:
  _tsv(root, "POPE.tsv", answer=["no"] * 3, category=["random"] * 3)
  return _want(range(3), question=ASKED, references=[("no",)] * 3, category=["random"] * 3)


def refcoco_tsv(root: pathlib.Path) -> Expected:
  _tsv(
    root,
    "RefCOCO.tsv",
    answer=["[2, 0, 6, 3]"] * 3,
    category=["RefCOCO_val"] * 3,
    split=["RefCOCO_testA", "RefCOCO_val", "RefCOCO_val"],
    **{"bbox_x1": [2] * 3, "bbox_y1": [0] * 3, "bbox_x2": [6] * 3, "bbox_y2": [3] * 3},
    **{"width": [8] * 3, "height": [6] * 3},
  )
  return _want((1, 2), values=[[80]] * 2, question=ASKED[1:], box=[BOX] * 2)


# Parquet, as lmms-eval's data sets have it.


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
  return _want(
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
  return _want(range(3), question=ASKED, references=[tuple(x) for x in TEN])


def gqa_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"id": f"q{k}", "imageId": f"n{IMAGES[k]}", "question": ASKED[k], "answer": "yes"}
    | {"fullAnswer": "Yes.", "isBalanced": True}
    for k in range(3)
  ]
  _parquet("testdev_balanced_instructions/testdev-{}.parquet", rows, shards=1)(root)
  images = [{"id": f"n{IMAGES[k]}", "image": cell(VALUES[k])} for k in (1, 0)]
  _parquet("testdev_balanced_images/testdev-{}.parquet", images, shards=1)(root)
  return _want(
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
  return _want(
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
  return _want(
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
  return _want(
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
      **{"bbox": [2.0, 0.0, 4.0, 3.0], "iscrowd": 0},
      "file_name": f"COCO_train2014_{IMAGES[k]:012d}_{k}.jpg",
    }
    for k in range(2)
  ]
  _parquet("data/val-{}.parquet", rows, shards=1)(root)
  return _grounded(("r0/0", "r1/0", "r1/1"))


def cococap_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {
      **{"question_id": str(k), "image": cell(VALUES[k]), "question": "Describe it."},
      **{"answer": CAPTIONS[k], "id": k, "file_name": f"COCO_val2014_{k:012d}.jpg"},
    }
    for k in range(3)
  ]
  _parquet("data/val-{}.parquet", rows)(root)
  return _want(range(3), question=[""] * 3, references=CAPTIONS)


def _choice_rows(**more: Sequence[Any]) -> list[dict[str, Any]]:
  letters = {letter: OPTIONS[k] for k, letter in enumerate("ABC")}
  return [
    {
      **{"index": k, "question": ASKED[k], "image": cell(VALUES[k]), "answer": "ABC"[k]},
      **{"category": "x", **letters, **{name: column[k] for name, column in more.items()}},
    }
    for k in range(3)
  ]


def _chosen(ids: Sequence[Any], **more: Sequence[Any]) -> Expected:
  said = [(x,) for x in OPTIONS]
  return _want(ids, question=ASKED, options=[OPTIONS] * 3, answer=range(3), references=said, **more)


def mmbench_parquet(root: pathlib.Path) -> Expected:
  more = {"L2-category": ["p"] * 3, "source": ["s"] * 3, "split": ["dev"] * 3, "D": ["nan"] * 3}
  rows = _choice_rows(hint=[None, "Look.", "nan"], **more)
  rows[2]["index"] = 1_000_001
  _parquet("en/dev-{}.parquet", rows)(root)
  _parquet("cn/dev-{}.parquet", rows[:1], shards=1)(root)
  return _chosen((0, 1, 1_000_001), group=["0", "1", "1"], hint=["", "Look.", ""])


def mmt_parquet(root: pathlib.Path) -> Expected:
  rows = _choice_rows(**{letter: [None] * 3 for letter in "DEFGHI"}, **{"l2-category": ["p"] * 3})
  _parquet("data/val-{}.parquet", rows)(root)
  return _chosen(range(3), category=["x"] * 3)


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
  return _want(
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
  return _want(range(3), question=ASKED, references=[("Yes",)] * 3, group=groups)


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
  return _want(
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
  return _want(
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
  return _want(range(3), question=ASKED, references=[("A",)] * 3)


def pope_parquet(root: pathlib.Path) -> Expected:
  rows = [
    {"id": str(k), "question_id": "1", "question": ASKED[k], "answer": "no", "category": "random"}
    | {"image_source": f"COCO_val2014_{IMAGES[k]:012d}", "image": cell(VALUES[k])}
    for k in range(3)
  ]
  _parquet("data/test-{}.parquet", rows)(root)
  keys = [f"COCO_val2014_{x:012d}" for x in IMAGES]
  return _want(range(3), question=ASKED, references=[("no",)] * 3, image_key=keys)


# The authors' own files.


def _coco_picture(root: pathlib.Path, part: str, k: int) -> str:
  name = f"COCO_{part}_{IMAGES[k]:012d}.jpg"
  fakes.write_picture(root / part / name, VALUES[k])
  return name


def _coco_questions(root: pathlib.Path, prefix: str, *, raw: bool = False) -> None:
  asked, said = [], []
  for k in range(3):
    _coco_picture(root, "val2014", k)
    key = {"image_id": IMAGES[k], "question_id": 420 + k}
    asked.append(key | {"question": ASKED[k]})
    answers = [{"answer": x, "answer_confidence": "yes", "answer_id": 1} for x in TEN[k]]
    answers = [x | ({"raw_answer": "raw"} if raw else {}) for x in answers]
    said.append(key | {"question_type": "what is", "answer_type": "other", "answers": answers})
  fakes.write_json(root / f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
  fakes.write_json(root / f"{prefix}mscoco_val2014_annotations.json", {"annotations": said})


def vqav2_raw(root: pathlib.Path) -> Expected:
  _coco_questions(root, "v2_")
  return _want(
    (420, 421, 422),
    question=ASKED,
    references=[tuple(x) for x in TEN],
    image_key=list(map(str, IMAGES)),
    category=["other"] * 3,
    metadata=[{"question_type": "what is"}] * 3,
  )


def okvqa_raw(root: pathlib.Path) -> Expected:
  _coco_questions(root, "", raw=True)
  kept = [{"question_type": "what is", "answers_raw": ["raw"] * 10}] * 3
  said = [tuple(x) for x in TEN]
  return _want((420, 421, 422), question=ASKED, references=said, metadata=kept)


def gqa_raw(root: pathlib.Path) -> Expected:
  content = {}
  for k in range(3):
    fakes.write_picture(root / "images" / f"n{IMAGES[k]}.jpg", VALUES[k])
    content[f"q{k}"] = {"imageId": f"n{IMAGES[k]}", "question": ASKED[k], "answer": "yes"}
    content[f"q{k}"] |= {"fullAnswer": "Yes.", "types": {"structural": "verify"}}
  fakes.write_json(root / "testdev_balanced_questions.json", content)
  return _want(
    ["q0", "q1", "q2"],
    question=ASKED,
    references=[("yes",)] * 3,
    image_key=[f"n{x}" for x in IMAGES],
    category=["verify"] * 3,
  )


def pope_raw(root: pathlib.Path) -> Expected:
  keys = []
  for n, part in enumerate(("random", "popular", "adversarial")):
    image = _coco_picture(root, "val2014", n)
    keys.append(image)
    line = {"question_id": 1, "image": image, "text": ASKED[n], "label": "no"}
    (root / f"coco_pope_{part}.json").write_text(json.dumps(line) + "\n")
  ids = ("random/1", "popular/1", "adversarial/1")
  return _want(ids, question=ASKED, references=[("no",)] * 3, image_key=keys)


def docvqa_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    fakes.write_picture(root / f"val/documents/{IMAGES[k]}.png", VALUES[k])
    rows.append({"questionId": k, "question": ASKED[k], "image": f"documents/{IMAGES[k]}.png"})
    rows[-1] |= {"question_types": ["form", "layout"], "answers": ["a", "b"], "docId": 5}
  fakes.write_json(root / "val_v1.0_withQT.json", {"dataset_split": "val", "data": rows})
  return _want(
    range(3),
    question=ASKED,
    references=[("a", "b")] * 3,
    image_key=[f"{x}.png" for x in IMAGES],
    category=["form, layout"] * 3,
  )


def chartqa_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    fakes.write_picture(root / f"test/png/{IMAGES[k]}.png", VALUES[k])
    rows.append({"imgname": f"{IMAGES[k]}.png", "query": ASKED[k], "label": "14"})
  fakes.write_json(root / "test/test_human.json", rows)
  fakes.write_json(root / "test/test_augmented.json", rows[:1])
  ids = [f"human/{k}" for k in range(3)]
  return _want(ids, question=ASKED, references=[("14",)] * 3, category=["human"] * 3)


def ai2d_raw(root: pathlib.Path) -> Expected:
  for k, image in enumerate((42, 73)):
    name = f"{image}.png"
    fakes.write_picture(root / "ai2d/images" / name, (40, 80)[k])
    questions = {
      ASKED[n]: {"questionId": f"{name}-{n}", "answerTexts": OPTIONS, "correctAnswer": n}
      | {"abcLabel": False}
      for n in range(3)
      if IMAGES[n] == image
    }
    write = fakes.write_json
    write(root / f"ai2d/questions/{name}.json", {"imageName": name, "questions": questions})
    write(root / f"ai2d/annotations/{name}.json", {"text": {}})
  (root / "ai2d_test_ids.csv").write_text("42\n73\n")
  return _chosen(["42.png-0", "73.png-1", "73.png-2"], image_key=["42.png", "73.png", "73.png"])


def _refs(root: pathlib.Path) -> list[dict[str, Any]]:
  polygon = [[2.0, 0.0, 6.0, 0.0, 6.0, 3.0, 2.0, 3.0]]
  # Down the columns: 12 zeros, then 3 ones and 3 zeros, four times, then zeros.
  runs = {"size": [6, 8], "counts": [12, 3, 3, 3, 3, 3, 3, 3, 15]}
  images, objects = [], []
  for k, image in enumerate((42, 73)):
    name = f"COCO_train2014_{image:012d}.jpg"
    fakes.write_picture(root / "train2014" / name, (40, 80)[k])
    images.append({"id": image, "file_name": name, "height": 6, "width": 8})
    objects.append({"id": k, "image_id": image, "bbox": [2.0, 0.0, 4.0, 3.0]})
    objects[-1] |= {"segmentation": (polygon, runs)[k], "category_id": 1, "iscrowd": k}
  content = {"images": images, "annotations": objects, "categories": []}
  fakes.write_json(root / "refcoco/instances.json", content)
  said = [{"sent_id": 100 + k, "sent": x, "raw": x.upper()} for k, x in enumerate(SENTENCES)]
  refs = [
    {"ref_id": k, "ann_id": k, "image_id": image, "split": "val", "sentences": sentences}
    for k, image, sentences in ((0, 42, said[:1]), (1, 73, said[1:]))
  ]
  return [*refs, {**refs[0], "split": "train"}]


def refcoco_raw(root: pathlib.Path) -> Expected:
  refs = _refs(root)
  (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
  return _grounded((100, 101, 102))


def refcoco_json(root: pathlib.Path) -> Expected:
  fakes.write_json(root / "refcoco/refs(unc).json", _refs(root))
  return _grounded((100, 101, 102))


def cococap_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    part = ("val2014", "train2014")[k == 2]
    name = f"COCO_{part}_{k:012d}.jpg"
    fakes.write_picture(root / part / name, VALUES[k])
    rows.append({"filepath": part, "filename": name, "cocoid": k, "split": "val"})
    rows[-1]["sentences"] = [{"raw": x, "tokens": []} for x in CAPTIONS[k]]
  fakes.write_json(root / "dataset_coco.json", {"images": [*rows, rows[0] | {"split": "test"}]})
  want = _want(range(3), question=[""] * 3, references=CAPTIONS)
  return [want[2], want[0], want[1]]  # By folder.


def cococap_official(root: pathlib.Path) -> Expected:
  images, said = [], []
  for k in range(3):
    name = f"{k:012d}.jpg"
    fakes.write_picture(root / "val2017" / name, VALUES[k])
    images.append({"id": k, "file_name": name})
    said += [{"image_id": k, "caption": x} for x in CAPTIONS[k]]
  content = {"images": images, "annotations": said}
  fakes.write_json(root / "annotations/captions_val2017.json", content)
  return _want(range(3), question=[""] * 3, references=CAPTIONS)


def mme_raw(root: pathlib.Path) -> Expected:
  want = []
  for n, part in enumerate((*raw_choice.MME_PERCEPTION, *raw_choice.MME_COGNITION)):
    apart = n % 2  # Both forms of the release.
    image = root / part / ("images/7.jpg" if apart else "7.png")
    fakes.write_picture(image, 40 + n)
    text = root / part / ("questions_answers_YN/7.txt" if apart else "7.txt")
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("Is it? Please answer yes or no.\tYes\nIs it not?\tNo\n")
    for k in range(2):
      key = f"{part}/{image.name}"
      want.append({"item_id": f"{key}/{k}", "values": [40 + n], "group": key, "category": part})
      want[-1]["references"] = (("Yes",), ("No",))[k]
  return want


def seedbench_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    (root / "SEED-Bench-image").mkdir(parents=True, exist_ok=True)
    (root / "SEED-Bench-image" / f"d{IMAGES[k]}").write_bytes(fakes.picture(VALUES[k]))
    rows.append(
      {"answer": "B", **{f"choice_{x}": f"{x}!" for x in "abcd"}, "data_id": f"d{IMAGES[k]}"}
    )
    rows[-1] |= {"data_type": "image", "question": ASKED[k], "question_id": str(k)}
    rows[-1] |= {"question_type_id": 1}
  rows.append(rows[0] | {"data_type": "video", "data_id": "film.mp4"})
  content = {"questions": rows, "question_type": {"Scene Understanding": 1}}
  fakes.write_json(root / "SEED-Bench.json", content)
  return _want(
    range(3),
    question=ASKED,
    answer=[1] * 3,
    category=["Scene Understanding"] * 3,
    image_key=[f"d{x}" for x in IMAGES],
  )


TFDS = (
  Case("vqav2", "tfds", "val", vqa, "question_text"),
  Case("okvqa", "tfds", "val", okvqa_tfds),
  Case("gqa", "tfds", "testdev_balanced", gqa_tfds),
  Case("ai2d", "tfds", "test", ai2d_tfds),
  Case("docvqa", "tfds", "val", docvqa_tfds),
  Case("chartqa", "tfds", "test_human", chartqa_tfds),
  Case("pope", "tfds", "popular", pope_tfds),
  Case("refcoco", "tfds", "val", refcoco_tfds, "bbox"),
  Case("cococap", "tfds", "val", cococap_tfds, "captions"),
)
TSV = (
  Case("gqa", "tsv", "testdev_balanced", _answers("GQA_TestDev_Balanced.tsv")),
  Case("ai2d", "tsv", "test", _choices("AI2D_TEST.tsv")),
  Case("docvqa", "tsv", "val", _answers("DocVQA_VAL.tsv")),
  Case("chartqa", "tsv", "test", _answers("ChartQA_TEST.tsv", split=["test_human"] * 3)),
  Case("refcoco", "tsv", "val", refcoco_tsv),
  Case("cococap", "tsv", "test", lambda root: _captions(root), "answer"),
  Case("mmbench", "tsv", "dev", mmbench_tsv),
  Case("mmt", "tsv", "val", _choices("MMT-Bench_VAL.tsv")),
  Case("seedbench", "tsv", "image", _choices("SEEDBench_IMG.tsv")),
  Case("mme", "tsv", "test", mme_tsv),
  Case("mmmu", "tsv", "val", mmmu_tsv),
  Case("mmstar", "tsv", "val", _choices("MMStar.tsv", l2_category=["x"] * 3)),
  Case(
    "realworldqa", "tsv", "test", lambda root: _without_category(_choices("RealWorldQA.tsv"), root)
  ),
  Case("pope", "tsv", "test", pope_tsv),
)
PARQUET = (
  Case("vqav2", "parquet", "val", vqav2_parquet),
  Case("okvqa", "parquet", "val", okvqa_parquet),
  Case("gqa", "parquet", "testdev_balanced", gqa_parquet),
  Case("ai2d", "parquet", "test", ai2d_parquet),
  Case("docvqa", "parquet", "val", docvqa_parquet),
  Case("chartqa", "parquet", "test_human", chartqa_parquet),
  Case("refcoco", "parquet", "val", refcoco_parquet, "answer"),
  Case("cococap", "parquet", "val2014", cococap_parquet, "answer"),
  Case("mmbench", "parquet", "dev-v1.0", mmbench_parquet),
  Case("mmt", "parquet", "val", mmt_parquet),
  Case("seedbench", "parquet", "image", seedbench_parquet),
  Case("mme", "parquet", "test", mme_parquet),
  Case("mmmu", "parquet", "val", mmmu_parquet),
  Case("mmstar", "parquet", "val", mmstar_parquet),
  Case("realworldqa", "parquet", "test", realworldqa_parquet),
  Case("pope", "parquet", "test", pope_parquet),
)
RAW = (
  Case("vqav2", "raw", "val", vqav2_raw),
  Case("okvqa", "raw", "val", okvqa_raw),
  Case("gqa", "raw", "testdev_balanced", gqa_raw),
  Case("ai2d", "raw", "test", ai2d_raw, "answerTexts"),
  Case("docvqa", "raw", "val", docvqa_raw),
  Case("chartqa", "raw", "test_human", chartqa_raw, "query"),
  Case("refcoco", "raw", "val", refcoco_raw, "segmentation"),
  Case("refcoco-boxes", "raw", "val", refcoco_json, "sentences"),
  Case("cococap", "raw", "val", cococap_raw, "sentences"),
  Case("cococap", "raw", "val2017", cococap_official, "caption"),
  Case("seedbench", "raw", "image", seedbench_raw),
  Case("mme", "raw", "test", mme_raw, "\tYes"),
  Case("pope", "raw", "test", pope_raw, "text"),
)


def _captions(root: pathlib.Path) -> Expected:
  _tsv(root, "COCO_VAL.tsv", answer=[str(list(x)) for x in CAPTIONS])
  return _want(range(3), question=[""] * 3, references=CAPTIONS)


def _without_category(make: Callable[[pathlib.Path], Expected], root: pathlib.Path) -> Expected:
  return [{k: v for k, v in row.items() if k != "category"} for row in make(root)]
