# SPDX-License-Identifier: Apache-2.0
"""RefCOCO and COCO's captions as their authors publish them.

RefCOCO's expressions come as refs(unc).p, a pickle. It is read by an unpickler that knows no class
and no function: lists, dictionaries, texts and numbers come out of it, and code cannot run. A
refs(unc).json with the same content is taken first.
"""

from collections.abc import Mapping
import os
import pathlib
import pickle
import re
from typing import Any, NamedTuple

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.layouts import raw
from auditdm_jax.bench.layouts.base import text
from auditdm_jax.bench.layouts.masks import CocoMask
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools.listed import FileSource
from auditdm_jax.core.pools.rows import BadRow

_COCO_NAME = re.compile(r"(?:COCO_[a-z0-9]+_)?(\d{12})\.jpg")
_FOLDERS = ("train2014", "images/train2014", "train2017", "images/train2017", "images")


class Expression(NamedTuple):
  """A sentence about an object, compact; objects of several sentences are shared."""

  item_id: str
  sentence: str
  image: str
  image_key: str
  size: tuple[int, int]  # Height, width.
  box: tuple[float, float, float, float]
  segmentation: Any


class _NoCode(pickle.Unpickler):
  """Knows plain values only."""

  def find_class(self, module_name: str, global_name: str, /) -> Any:
    raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is code")


def read_refs(folder: pathlib.Path, name: str) -> list[Mapping[str, Any]]:
  """Returns the expressions of refs(NAME).json or, without running anything, of refs(NAME).p.

  Raises:
    raw.MissingFiles: neither is there.
    UserError: it is not what it should be.
  """
  if (folder / f"refs({name}).json").is_file():
    found = raw.read_json(folder, f"refs({name}).json")
  else:
    found = _unpickled(raw.file_of(folder, f"refs({name}).p"))
  if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
    raise BadRow(f"refs({name}) is no list of expressions")
  return found


def _unpickled(file: pathlib.Path) -> Any:
  try:
    with file.open("rb") as data:
      return _NoCode(data, encoding="utf-8", errors="replace").load()
  except (pickle.UnpicklingError, *_TORN) as e:
    reason = " ".join(str(e).split())[:200]
    raise UserError(f"{file}: no pickle of plain values: {reason}") from e


# What damaged pickles make the unpickler raise.
_TORN = (
  *(AttributeError, EOFError, ImportError, IndexError, KeyError, MemoryError, OverflowError),
  *(RecursionError, TypeError, ValueError),
)


def refcoco(root: pathlib.Path, split: str) -> raw.RawItems[Expression]:
  """Reads RefCOCO, RefCOCO+ and RefCOCOg; split such as refcoco/unc/val, refcocog/umd/test."""
  dataset, partition, part = split.split("/")
  base = root / dataset if (root / dataset).is_dir() else root
  try:
    refs = read_refs(base, partition)
  except raw.MissingFiles:
    raise raw.MissingFiles(f"{dataset}/refs({partition}).p") from None
  instances = raw.read_json(base, "instances.json")
  shown = raw.folder_of(root, *_FOLDERS)
  sizes = {x["id"]: x for x in raw.listed(instances, "images", "instances.json")}
  objects = {x["id"]: x for x in raw.listed(instances, "annotations", "instances.json")}
  chosen = [ref for ref in refs if ref["split"] == part]
  names = set(os.listdir(shown))
  rows = [row for ref in chosen for row in _expressions(ref, objects, sizes, names)]
  raw.check_pictures(shown, (row.image for row in rows))
  if not rows:
    raise BadRow(f"no expression of the split {part!r}")
  return raw.RawItems(rows, lambda row: _grounded(row, shown))


def _expressions(
  ref: Mapping[str, Any], objects: Mapping, sizes: Mapping, names: set[str]
) -> list[Expression]:
  image, seen = sizes[ref["image_id"]], objects[ref["ann_id"]]
  height, width = int(image["height"]), int(image["width"])
  x, y, w, h = map(float, seen["bbox"])
  box = (y / height, x / width, (y + h) / height, (x + w) / width)
  name = text(image["file_name"], "file_name")
  plain = f"{int(ref['image_id']):012d}.jpg"  # As the folders of 2017 have it.
  name = name if name in names or plain not in names else plain
  return [
    Expression(
      text(sentence["sent_id"], "sent_id"),
      text(sentence["sent"], "sent"),
      name,
      text(ref["image_id"], "image_id"),
      (height, width),
      box,
      seen["segmentation"],
    )
    for sentence in ref["sentences"]
  ]


def _grounded(row: Expression, shown: pathlib.Path) -> BenchmarkItem:
  name = f"the object of expression {row.item_id}"
  return BenchmarkItem(
    item_id=row.item_id,
    pictures=(FileSource(str(shown / row.image)),),
    image_key=row.image_key,
    question=row.sentence,
    box=row.box,
    mask=CocoMask(row.segmentation, *row.size, name),
    metadata={"height": row.size[0], "width": row.size[1]},
  )


def captions(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  """Reads COCO's captions; split val or test of Karpathy's file, or val2014, val2017 of COCO's."""
  if split[-1].isdigit():
    return _official(root, split)
  content = raw.listed(raw.read_json(root, "dataset_coco.json"), "images", "dataset_coco.json")
  chosen = [row for row in content if row["split"] == split]
  items = []
  for part in sorted({row["filepath"] for row in chosen}):
    folder = raw.folder_of(root, text(part, "filepath"))
    rows = [row for row in chosen if row["filepath"] == part]
    raw.check_pictures(folder, (text(row["filename"], "filename") for row in rows))
    items += [_captioned(row, folder) for row in rows]
  if not items:
    raise BadRow(f"dataset_coco.json has no picture of the split {split!r}")
  return raw.whole(items)


def _captioned(row: Mapping[str, Any], folder: pathlib.Path) -> BenchmarkItem:
  said = [text(x["raw"], "raw") for x in row["sentences"]]
  return _caption(text(row["cocoid"], "cocoid"), folder / row["filename"], said)


def _official(root: pathlib.Path, split: str) -> raw.RawItems[BenchmarkItem]:
  name = f"captions_{split}.json"
  content = raw.read_json(root, name, f"annotations/{name}")
  folder = raw.folder_of(root, split)
  said: dict[int, list[str]] = {}
  for row in raw.listed(content, "annotations", name):
    said.setdefault(row["image_id"], []).append(text(row["caption"], "caption"))
  files = {row["id"]: row["file_name"] for row in raw.listed(content, "images", name)}
  raw.check_pictures(folder, (text(files[key], "file_name") for key in said))
  items = [_caption(str(key), folder / files[key], x) for key, x in said.items()]
  if not items:
    raise BadRow(f"{name} has no caption")
  return raw.whole(items)


def _caption(key: str, file: pathlib.Path, said: list[str]) -> BenchmarkItem:
  return BenchmarkItem(
    item_id=key,
    pictures=(FileSource(str(file)),),
    image_key=key,
    question="",
    references=tuple(said),
  )


def coco_id(file_name: str) -> str:
  """Returns the id of COCO's picture in a file name, "" if it is of another kind."""
  found = re.search(r"(\d{12})", file_name)
  return str(int(found[1])) if found else ""
