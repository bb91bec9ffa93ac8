# SPDX-License-Identifier: Apache-2.0
"""Questions about photographs: VQAv2, OK-VQA, GQA and POPE as their authors publish them."""

from collections.abc import Callable, Mapping
import json
import pathlib
import sys
from typing import Any, NamedTuple

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.layouts import raw
from auditdm_jax.bench.layouts.base import text
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.listed import FileSource
from auditdm_jax.core.pools.rows import BadRow

MINIVAL = 10_240  # Questions that big_vision takes from the end of VQAv2's validation split.


class RawQuestion(NamedTuple):
  """A question, compact."""

  item_id: str
  image: str
  image_key: str
  question: str
  answers: tuple[str, ...]
  category: str
  kept: tuple[tuple[str, Any], ...]


def _items(folder: pathlib.Path, rows: list[RawQuestion]) -> raw.RawItems[RawQuestion]:
  raw.check_pictures(folder, (row.image for row in rows))

  def make(row: RawQuestion) -> BenchmarkItem:
    return BenchmarkItem(
      item_id=row.item_id,
      pictures=(FileSource(str(folder / row.image)),),
      image_key=row.image_key,
      question=row.question,
      references=row.answers,
      category=row.category,
      metadata=dict(row.kept),
    )

  if not rows:
    raise BadRow("no questions")
  return raw.RawItems(rows, make)


def vqav2(root: pathlib.Path, split: str) -> raw.RawItems[RawQuestion]:
  """Reads VQAv2; "minival" is big_vision's part of val2014."""
  part = "val2014" if split == "minival" else split
  names = (f"v2_OpenEnded_mscoco_{part}_questions.json", f"v2_mscoco_{part}_annotations.json")
  rows, folder = _coco_questions(root, part, names, "answer")
  if split == "minival":
    order = raw.tfds_order([int(row.item_id) for row in rows], "validation")
    rows = [rows[k] for k in order[-MINIVAL:]]
  return _items(folder, rows)


def okvqa(root: pathlib.Path, split: str) -> raw.RawItems[RawQuestion]:
  """Reads OK-VQA; references are its stemmed answers, as in big_vision, the raw ones are kept."""
  names = (f"OpenEnded_mscoco_{split}_questions.json", f"mscoco_{split}_annotations.json")
  rows, folder = _coco_questions(root, split, names, "raw_answer")
  return _items(folder, rows)


def _coco_questions(
  root: pathlib.Path, part: str, names: tuple[str, str], other: str
) -> tuple[list[RawQuestion], pathlib.Path]:
  asked = raw.listed(raw.read_json(root, names[0]), "questions", names[0])
  content = raw.read_json(root, names[1], hook=_compact(other))
  folder = raw.folder_of(root, part)
  said = {row["question_id"]: row for row in raw.listed(content, "annotations", names[1])}
  rows = []
  for row in asked:
    if row["question_id"] not in said:
      raise BadRow(f"{names[1]} has no answers to question {row['question_id']}")
    answers = said[row["question_id"]]
    kept = [("question_type", answers.get("question_type"))]
    if other != "answer":
      kept.append(("answers_raw", [x[1] for x in answers["answers"]]))
    rows.append(
      RawQuestion(
        text(row["question_id"], "question_id"),
        f"COCO_{part}_{row['image_id']:012d}.jpg",
        text(row["image_id"], "image_id"),
        text(row["question"], "question"),
        tuple(x[0] for x in answers["answers"]),
        answers.get("answer_type") or "",
        tuple(kept),
      )
    )
  return rows, folder


def _compact(other: str) -> Callable[[dict], Any]:
  """Makes an annotator's answer a pair of interned texts: ten dictionaries each would not fit."""

  def hook(value: dict) -> Any:
    if "answer_confidence" not in value or "answer" not in value:
      return value
    pair = (value["answer"], value.get(other, ""))
    if not all(isinstance(x, str) for x in pair):
      raise ValueError(f"an answer that is no text: {pair!r}"[:100])
    return tuple(sys.intern(x) for x in pair)

  return hook


def gqa(root: pathlib.Path, split: str) -> raw.RawItems[RawQuestion]:
  """Reads GQA, split such as testdev_balanced."""
  folder = raw.folder_of(root, "images")
  content = raw.read_json(root, f"{split}_questions.json", f"questions/{split}_questions.json")
  if not isinstance(content, dict):
    raise BadRow(f"{split}_questions.json is no object of questions")
  return _items(folder, [_gqa_row(key, row) for key, row in content.items()])


def _gqa_row(key: str, row: Mapping[str, Any]) -> RawQuestion:
  image = text(row["imageId"], "imageId")
  answers = (text(row["answer"], "answer"),) if "answer" in row else ()
  kept = (("full_answer", row.get("fullAnswer", "")),)
  kinds = row.get("types") or {}
  question, kind = text(row["question"], "question"), kinds.get("structural") or ""
  return RawQuestion(key, f"{image}.jpg", image, question, answers, kind, kept)


def pope(root: pathlib.Path, split: str) -> raw.RawItems[RawQuestion]:
  """Reads POPE; split is random, popular, adversarial, or all three as "all"."""
  parts = ("random", "popular", "adversarial") if split == "all" else (split,)
  folder = raw.folder_of(root, "val2014", "images/val2014")
  rows = [row for part in parts for row in _pope_rows(root, part)]
  return _items(folder, rows)


def _pope_rows(root: pathlib.Path, part: str) -> list[RawQuestion]:
  name = f"coco_pope_{part}.json"
  file = raw.file_of(root, name, f"pope/{name}")
  rows = []
  for number, line in enumerate(file.read_bytes().splitlines(), 1):
    try:
      row = json.loads(line)
    except ValueError as e:
      raise UserError(f"{file}:{number}: not JSON: {e}") from e
    image = text(row["image"], "image")
    said = text(row["label"], "label")
    item_id = f"{part}/{text(row['question_id'], 'question_id')}"
    rows.append(RawQuestion(item_id, image, image, text(row["text"], "text"), (said,), part, ()))
  return rows
