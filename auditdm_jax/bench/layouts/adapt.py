# SPDX-License-Identifier: Apache-2.0
"""What names of columns alone do not say: rows that a layout writes in its own way."""

import ast
from collections.abc import Mapping
from typing import Any

from auditdm_jax.bench.items import Box
from auditdm_jax.bench.layouts.base import SeenObject, text
from auditdm_jax.bench.layouts.masks import EncodedPicture, PictureMask
from auditdm_jax.bench.layouts.raw_coco import coco_id
from auditdm_jax.core.pools.rows import MAX_TEXT, BadRow

Row = Mapping[str, Any]
_CIRCLE = 1_000_000  # MMBench's rotations are k * 1,000,000 + the index of the question.


def listed(value: Any) -> list[Any]:
  """Returns a list that is written as Python writes one, such as "['yes', 'no']"; others as one.

  Raises:
    BadRow: it begins as a list and is none.
  """
  if not isinstance(value, str) or not value.lstrip().startswith("["):
    return list(value) if isinstance(value, list | tuple) else [value]
  if len(value) > MAX_TEXT:
    raise BadRow(f"a list of {len(value)} characters")
  try:
    found = ast.literal_eval(value.strip())
  except (MemoryError, RecursionError, SyntaxError, ValueError):
    return [value]  # A text that begins with a bracket.
  return found if isinstance(found, list) else [value]


def circular(row: Row) -> Row:
  """MMBench: the group is the index without the rotation; on the hub "nan" stands for nothing."""
  there = {name: None if value == "nan" else value for name, value in row.items()}
  return {**there, "group": str(int(text(row["index"], "index")) % _CIRCLE)}


def listed_answers(row: Row) -> Row:
  """VLMEvalKit's VQA: the column `answer` is a list as Python writes it, or one text."""
  return {**row, "answer": listed(row["answer"])}


def chartqa(row: Row) -> Row:
  """ChartQA on the hub: the type is human_test or augmented_test."""
  return {**row, "part": text(row["type"], "type").removesuffix("_test")}


def chartqa_kit(row: Row) -> Row:
  """ChartQA of VLMEvalKit: the split is test_human or test_augmented."""
  return {**listed_answers(row), "part": (row.get("split") or "").removeprefix("test_")}


def mmmu(row: Row) -> Row:
  """MMMU: options and the answers of open questions are lists as Python writes them."""
  options = [] if row["question_type"] == "open" else listed(row["options"])
  parts = text(row["id"], "id").split("_")
  return {
    **row,
    "options": options,
    "answer": listed(row["answer"]) if not options else row["answer"],
    "subject": "_".join(parts[1:-1]),
  }


def docvqa(row: Row) -> Row:
  """DocVQA on the hub: a page is a document and a number."""
  page = f"{row['ucsf_document_id']}_{row['ucsf_document_page_no']}"
  return {**row, "page": page, "question_types": ", ".join(row.get("question_types") or ())}


def refcoco_flat(row: Row) -> Row:
  """RefCOCO of big_vision's builder, the flat splits: one object with one sentence in a row."""
  (mask,), (box,) = row["objects/mask"], row["objects/bbox"]
  ((sentence,),), ((ref,),) = row["objects/refs/sentence"], row["objects/refs/id"]
  if not isinstance(mask, bytes):
    raise BadRow("objects/mask is no picture")
  name = f"the mask of expression {ref}"
  outline = PictureMask(EncodedPicture(mask, name))
  return {**row, "sentence": sentence, "ref": ref, "object": SeenObject(_box(*box), outline)}


def refcoco_hub(row: Row) -> Row:
  """RefCOCO of lmms-eval: files are named COCO_train2014_ID_OBJECT.jpg, one for each object."""
  return {**row, "image_id": coco_id(text(row["file_name"], "file_name"))}


def refcoco_kit(row: Row) -> Row:
  """RefCOCO of VLMEvalKit: corners in pixels or in shares; the question is the whole prompt."""
  names = ("y1", "x1", "y2", "x2")
  if all(row.get(f"bbox_{name}_norm") for name in names):
    return {**row, "object": SeenObject(_box(*(row[f"bbox_{name}_norm"] for name in names)), None)}
  y0, x0, y1, x1 = (float(row[f"bbox_{name}"]) for name in names)
  w, h = float(row["width"]), float(row["height"])
  return {**row, "object": SeenObject(_box(y0 / h, x0 / w, y1 / h, x1 / w), None)}


def refcoco_part(row: Row) -> str:
  """RefCOCO of VLMEvalKit: the split, such as RefCOCO_val, or a category such as "RefCOCO val"."""
  return row.get("split") or "_".join((row.get("category") or "").split())


def _box(ymin: Any, xmin: Any, ymax: Any, xmax: Any) -> Box:
  return float(ymin), float(xmin), float(ymax), float(xmax)
