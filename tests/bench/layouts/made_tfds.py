# SPDX-License-Identifier: Apache-2.0
"""TFDS data sets, with the features that big_vision's builders declare."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tests.bench.layouts import fakes
from tests.bench.layouts.fakes import JPEG, PNG, F, encoded
from tests.bench.layouts.shared import (
  ASKED,
  BOX,
  CAPTIONS,
  IMAGES,
  OPTIONS,
  SENTENCES,
  TEN,
  VALUES,
  Expected,
  grounded,
  outline,
  want_of,
)

I32, I64, BOOL, TEXT = F.Scalar(np.int32), F.Scalar(np.int64), F.Scalar(np.bool_), F.Text()
TEXTS = F.Sequence(F.Text())


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
  return want_of(
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
  return want_of(
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
  return want_of(
    range(3),
    question=ASKED,
    references=[("yes",)] * 3,
    image_key=[f"n{x}" for x in IMAGES],
    metadata=[{"full_answer": "Yes, it is.", "is_balanced": True}] * 3,
  )


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
  return want_of(
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
  return want_of(range(3), question=ASKED, references=references, image_key=names)


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


def _mask_file() -> Any:
  out = fakes.io.BytesIO()
  fakes.Image.fromarray(outline().astype(np.uint8) * 255).save(out, "PNG")
  out.seek(0)
  return out


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
  return grounded((100, 101, 102))


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
  return want_of(range(3), question=[""] * 3, references=CAPTIONS, image_key=["0", "1", "2"])
