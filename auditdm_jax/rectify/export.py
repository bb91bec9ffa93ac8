# SPDX-License-Identifier: Apache-2.0
"""Training examples as folders for other trainers: what all formats have in common.

1. What no folder may hold is refused, with the reason: hostile text, and pictures of benchmarks.
2. Source images are shared out: all that goes back to one of them is in train, or all in val.
3. A writer (`rectify.writers`) adds the files of its format; this module adds what follows.
4. The folder appears when it is whole. The same export again leaves it as it is.

export.json     the format, the run, licence, counts, and a hash of the content
meta.jsonl      by row: question, label, image, source image, licence, who asked
refused.jsonl   examples that were left out, and why
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any, Literal

import numpy as np
from PIL import Image

from auditdm_jax.audit.leaks import LeakIndex
from auditdm_jax.core import jsonio, jsonl
from auditdm_jax.core.config import UserError, check
from auditdm_jax.rectify.curate import TrainingExample

Split = Literal["train", "val"]
LoadImage = Callable[[str], np.ndarray]  # image id -> u8[H,W,3]

FORMAT = "auditdm-export-1"
HEADER, META, REFUSED = "export.json", "meta.jsonl", "refused.jsonl"
MAX_TEXT = 1_000  # Characters of a question or of a label.
_SHOWN = 200  # Characters of a refused text.
_LOCATION = re.compile(r"<(loc\d{4}|seg\d{3})>")
# What tokenizers and chat templates may take for a token of their own: <image>, <|im_end|>, [INST].
_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{3,20}\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sourced:
  """An example, and where its picture comes from.

  Attributes:
    example: what is to be learned.
    source_image: id of the image that its picture goes back to; its own if it was not made.
    source: data set, split and item of that image.
  """

  example: TrainingExample
  source_image: str
  source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRow:
  """An example that is exported; `row_id` is unique in the folder."""

  row_id: str
  split: Split
  sourced: Sourced

  @property
  def question(self) -> str:
    return self.sourced.example.question

  @property
  def label(self) -> str:
    return self.sourced.example.label

  @property
  def image(self) -> str:
    """The file's name."""
    return f"{self.sourced.example.image_id}.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
  """An example that is left out, and why: a word to count by, and one line."""

  sourced: Sourced
  kind: str
  why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
  """What goes into a folder.

  Attributes:
    rows: train first.
    refused: what does not.
    load: reads an image.
  """

  rows: Sequence[ExportRow]
  refused: Sequence[Refusal]
  load: LoadImage

  def of(self, split: Split) -> list[ExportRow]:
    """Returns the rows of a split."""
    return [row for row in self.rows if row.split == split]

  def without(self, problem: Callable[[ExportRow], str], *, kind: str) -> "Exported":
    """Returns the same with the rows refused of which `problem` says something.

    Raises:
      UserError: nothing is left to train on.
    """
    said = {row.row_id: problem(row) for row in self.rows}
    bad = [row for row in self.rows if said[row.row_id]]
    refused = [Refusal(sourced=r.sourced, kind=kind, why=said[r.row_id]) for r in bad]
    kept = dataclasses.replace(
      self,
      rows=[row for row in self.rows if not said[row.row_id]],
      refused=[*self.refused, *refused],
    )
    _check_some(kept.of("train"), kept.refused)
    return kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Firewall:
  """Evaluation data that no example may repeat.

  A picture that looks like one of a benchmark is refused whatever is asked about it.

  Attributes:
    reserved: ids of evaluation images.
    index: pictures of benchmarks; None if there are none.
  """

  reserved: frozenset[str] = frozenset()
  index: LeakIndex | None = None

  def problem(self, sourced: Sourced, load: LoadImage) -> str:
    """Returns which evaluation data an example repeats, or "".

    A made picture is looked at besides the one that it was made from.
    """
    images = dict.fromkeys((sourced.example.image_id, sourced.source_image))
    for image_id in images:
      if image_id in self.reserved:
        return f"image {image_id} is held out for evaluation"
    if self.index is None:
      return ""
    for image_id in images:
      if hits := self.index.hits(load(image_id), sourced.example.question):
        return f"image {image_id} looks like that of {hits[0].source} {hits[0].item_id}"
    return ""


def collect(
  examples: Iterable[Sourced],
  *,
  load: LoadImage,
  firewall: Firewall,
  val_share: float = 0.1,
  seed: int = 0,
  allow_locations: bool = False,
) -> Exported:
  """Refuses what must not be exported, and shares the rest out.

  Args:
    examples: at most one for an image and question.
    load: reads an image.
    firewall: evaluation data.
    val_share: share of the source images whose examples are for validation, in [0, 1); unless it
      is 0, at least one of two or more.
    seed: decides which.
    allow_locations: keep `<loc0123>` and `<seg012>` in texts, where they become single tokens.

  Raises:
    UserError: nothing is left to train on.
  """
  check({"val_share": val_share}, "export", "val_share", least=0, below=1)
  kept, refused = [], []
  for sourced in examples:
    if why := _text_problem(sourced.example, allow_locations):
      refused.append(Refusal(sourced=sourced, kind="text", why=why))
    elif why := firewall.problem(sourced, load):
      refused.append(Refusal(sourced=sourced, kind="benchmark", why=why))
    else:
      kept.append(sourced)
  held = _held_images([s.source_image for s in kept], val_share, seed)
  rows: list[ExportRow] = []
  splits: tuple[Split, Split] = ("train", "val")
  for split in splits:
    own = [s for s in kept if (s.source_image in held) == (split == "val")]
    rows += [
      ExportRow(row_id=f"{split}-{i:06d}", split=split, sourced=s) for i, s in enumerate(own)
    ]
  _check_some([row for row in rows if row.split == "train"], refused)
  return Exported(rows=rows, refused=refused, load=load)


def _check_some(train: Sequence[ExportRow], refused: Sequence[Refusal]) -> None:
  if not train:
    reason = f"; the first of {len(refused)} refused: {refused[0].why}" if refused else ""
    raise UserError(f"no example is left to train on{reason}")


def _held_images(images: Sequence[str], share: float, seed: int) -> set[str]:
  """Returns the source images for validation: those whose hash comes first."""
  distinct = sorted(set(images), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
  if not share or len(distinct) < 2:
    return set()
  return set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])


def _text_problem(example: TrainingExample, allow_locations: bool) -> str:
  """Returns what is wrong with the texts of an example, or ""."""
  for name, text in (("question", example.question), ("label", example.label)):
    if not text.strip():
      return f"the {name} is empty"
    if len(text) > MAX_TEXT:
      return f"the {name} has {len(text):,} characters, at most {MAX_TEXT:,}"
    if not text.isprintable():
      return f"the {name} has control characters or unpaired surrogates"
    rest = _LOCATION.sub("", text) if allow_locations else text
    if found := _SPECIAL.search(rest):
      return f"the {name} spells out what may be a special token: {found[0]}"
  return ""


# -------------------------------------------------------------------------------------- folders


def write(
  directory: str | os.PathLike,
  exported: Exported,
  fill: Callable[[pathlib.Path], Mapping[str, Any]],
  *,
  header: Mapping[str, Any],
) -> bool:
  """Writes a folder, unless it is there as it would be written.

  Args:
    directory: where; an earlier export there is replaced.
    exported: what.
    fill: writes the files of the format into a folder, and returns facts for export.json.
    header: of export.json: the format, its settings and the run. It decides, with the rows, what
      the folder's content is.

  Returns:
    Whether it was written.

  Raises:
    UserError: the folder holds something else.
  """
  final = pathlib.Path(directory).absolute()
  content = jsonio.canonical_hash([FORMAT, header, [_meta(r, "") for r in exported.rows]])
  known = _known(final)
  if known is not None and known.get("content") == content:
    return False
  building = final.with_name(f".{final.name}.unfinished")
  shutil.rmtree(building, ignore_errors=True)  # Of a run that was killed.
  building.mkdir(parents=True)
  try:
    facts = fill(building)
    licence = str(header.get("licence", ""))
    write_jsonl(building / META, [_meta(row, licence) for row in exported.rows])
    write_jsonl(building / REFUSED, map(_refused, exported.refused))
    counts = {
      **{split: len(exported.of(split)) for split in ("train", "val")},
      "refused": dict(Counter(r.kind for r in exported.refused)),
    }
    files = sorted(p.name for p in building.iterdir())
    jsonio.write_json(
      building / HEADER,
      {
        "export": FORMAT,
        "content": content,
        **header,
        "rows": counts,
        **facts,
        "files": [*files, HEADER],
      },
    )
    if final.exists():
      shutil.rmtree(final)
    building.rename(final)
  finally:
    shutil.rmtree(building, ignore_errors=True)
  return True


def read_header(directory: str | os.PathLike) -> Mapping[str, Any]:
  """Returns export.json of a folder.

  Raises:
    UserError: it is no export.
  """
  path = pathlib.Path(directory) / HEADER
  header = jsonio.read_json(path) if path.is_file() else None
  if not isinstance(header, dict) or header.get("export") != FORMAT:
    raise UserError(f"{directory}: not an export of this version: it has no such {HEADER}")
  return header


def read_meta(directory: str | os.PathLike) -> list[Mapping[str, Any]]:
  """Returns the rows of meta.jsonl.

  Raises:
    UserError: the file is not there, or damaged.
  """
  path = pathlib.Path(directory) / META
  if not path.is_file():
    raise UserError(f"{path}: no such file; the folder is no export")
  return [row for _, row in jsonl.JsonLines(path).iterate()]


def _known(final: pathlib.Path) -> Mapping[str, Any] | None:
  """Returns export.json of what is in the way; None if nothing is.

  Raises:
    UserError: it is no export, or has files that no export wrote.
  """
  if not final.exists() or (final.is_dir() and not any(final.iterdir())):
    return None
  header = read_header(final)
  if strange := sorted({p.name for p in final.iterdir()} - set(header.get("files", ()))):
    raise UserError(f"{final}: {strange[0]} is not of the export, and would be lost; move it")
  return header


def _meta(row: ExportRow, licence: str) -> dict[str, Any]:
  example = row.sourced.example
  return {
    "id": row.row_id,
    "split": row.split,
    "question": row.question,
    "label": row.label,
    "image_id": example.image_id,
    "source_image_id": row.sourced.source_image,
    "source": row.sourced.source,
    "licence": licence,
    "group": example.group,
    "provenance": dict(example.provenance),
  }


def _refused(refusal: Refusal) -> dict[str, str]:
  example = refusal.sourced.example
  return {
    "kind": refusal.kind,
    "why": refusal.why,
    "image_id": example.image_id,
    "question": example.question[:_SHOWN],
    "label": example.label[:_SHOWN],
    "probe_id": example.provenance.get("probe_id", ""),
  }


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes rows as JSON in ASCII, one a line."""
  with open(path, "w", encoding="ascii") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=True) + "\n")


def write_images(folder: pathlib.Path, rows: Sequence[ExportRow], load: LoadImage) -> None:
  """Writes the rows' images as PNG, each once."""
  folder.mkdir()
  for row in rows:
    if not (folder / row.image).exists():
      Image.fromarray(load(row.sourced.example.image_id)).save(folder / row.image, compress_level=1)
