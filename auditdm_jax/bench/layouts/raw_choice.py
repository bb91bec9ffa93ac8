# SPDX-License-Identifier: Apache-2.0
"""MME and SEED-Bench as their authors publish them."""

from collections.abc import Mapping
import pathlib
from typing import Any

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.layouts import raw
from auditdm_jax.bench.layouts.base import place_of, text
from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.listed import FileSource
from auditdm_jax.core.pools.rows import BadRow

# MME's parts; the sums of the first ten and of the last four are reported.
MME_PERCEPTION = (
  *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
  *("artwork", "OCR"),
)
MME_COGNITION = (
  *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


def mme(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  """Reads MME's folders, all fourteen: a picture and a text file with two questions each."""
  del split
  for name in ("MME_Benchmark_release_version", "MME_Benchmark"):
    root = root / name if (root / name).is_dir() else root
  parts = (*MME_PERCEPTION, *MME_COGNITION)
  if missing := [name for name in parts if not (root / name).is_dir()]:
    raise raw.MissingFiles(*(f"{name}/" for name in missing))
  items = [item for name in parts for item in _mme_part(root / name)]
  return raw.whole(items)


def _mme_part(folder: pathlib.Path) -> list[BenchmarkItem]:
  asked = folder / "questions_answers_YN"
  shown = folder / "images"
  asked, shown = (asked, shown) if asked.is_dir() else (folder, folder)
  if not shown.is_dir():
    raise raw.MissingFiles(f"{folder.name}/images/")
  files = {x.stem: x for x in sorted(shown.iterdir()) if x.suffix.lower() in pictures.SUFFIXES}
  items = []
  for file in sorted(asked.glob("*.txt")):
    if file.stem not in files:
      raise UserError(f"{file}: no picture {file.stem}.jpg or .png in {shown}")
    items += _mme_pair(file, files[file.stem], folder.name)
  if not items:
    raise BadRow(f"no questions in {folder.name}/")
  return items


def _mme_pair(file: pathlib.Path, image: pathlib.Path, category: str) -> list[BenchmarkItem]:
  lines = [x for x in file.read_text(encoding="utf-8").splitlines() if x.strip()]
  pairs = [line.rsplit("\t", 1) for line in lines]
  if len(pairs) != 2 or any(len(x) != 2 or x[1].strip() not in ("Yes", "No") for x in pairs):
    raise UserError(f"{file}: not two lines of a question, a tab, and Yes or No")
  key = f"{category}/{image.name}"
  return [
    BenchmarkItem(
      item_id=f"{key}/{k}",
      pictures=(FileSource(str(image)),),
      image_key=key,
      question=question.strip(),
      references=(answer.strip(),),
      category=category,
      group=key,
    )
    for k, (question, answer) in enumerate(pairs)
  ]


def seedbench(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  """Reads the questions about images of SEED-Bench.json, the pictures in SEED-Bench-image."""
  del split
  content = raw.read_json(root, "SEED-Bench.json")
  folder = raw.folder_of(root, "SEED-Bench-image")
  kinds = {number: name for name, number in (content.get("question_type") or {}).items()}
  rows = raw.listed(content, "questions", "SEED-Bench.json")
  items = [_seed(row, folder, kinds) for row in rows if row["data_type"] == "image"]
  raw.check_pictures(folder, (item.image_key for item in items))
  if not items:
    raise BadRow("SEED-Bench.json has no question about an image")
  return raw.whole(items)


def _seed(row: Mapping[str, Any], folder: pathlib.Path, kinds: Mapping[int, str]) -> BenchmarkItem:
  options = tuple(text(row[f"choice_{x}"], f"choice_{x}") for x in "abcd")
  name = text(row["data_id"], "data_id")
  place = place_of(text(row["answer"], "answer"), options)
  return BenchmarkItem(
    item_id=text(row["question_id"], "question_id"),
    pictures=(FileSource(str(folder / name)),),
    image_key=name,
    question=text(row["question"], "question"),
    references=(options[place],),
    options=options,
    answer=place,
    category=kinds.get(row.get("question_type_id", -1), ""),
  )
