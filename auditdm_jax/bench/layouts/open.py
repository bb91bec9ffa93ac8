# SPDX-License-Identifier: Apache-2.0
"""Opens a benchmark at a path, whichever of its layouts lies there."""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Protocol

from auditdm_jax.bench.items import BenchmarkItem, Items, Provenance
from auditdm_jax.bench.layouts.base import LayoutError
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.pools import tables

_INFO = "dataset_info.json"
_DEPTH = 3  # Folders between a data directory and the files of a version.


class Opened(Protocol):
  """The items of a split, one at a time."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int, /) -> BenchmarkItem: ...


class Layout(Protocol):
  """One way in which a benchmark lies on disk."""

  @property
  def kind(self) -> str:
    """tfds, tsv, parquet, raw or pool."""
    ...

  @property
  def splits(self) -> Mapping[str, str]:
    """Our names of its splits -> the layout's."""
    ...

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    ...

  def open(self, path: pathlib.Path, split: str) -> Opened:
    """Opens one of `splits`.

    Raises:
      UserError: files are missing or of another kind.
    """
    ...


def detect(path: str | os.PathLike) -> str:
  """Returns the kind of layout that lies at a path: tfds, tsv, parquet or raw; "" if nothing is.

  A folder of JSON files and pictures is raw, and so is everything that is nothing else.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return ""
  if path.suffix == ".tsv" or (path.is_dir() and any(path.glob("*.tsv"))):
    return "tsv"
  if _has(path, _INFO) and _has(path, "features.json"):
    return "tfds"
  folders = [path, *((path / "snapshots").glob("*") if path.is_dir() else ())]
  return "parquet" if any(tables.find(folder) for folder in folders) else "raw"


def _has(path: pathlib.Path, name: str) -> bool:
  return any(any(path.glob("*/" * depth + name)) for depth in range(_DEPTH + 1))


def open_items(
  name: str,
  layouts: Sequence[Layout],
  path: str | os.PathLike,
  split: str,
  *,
  source: str = "",
  licence: str = "",
) -> Items:
  """Opens a split of a benchmark.

  Args:
    name: the benchmark.
    layouts: those that it has.
    path: a file or folder of one of them.
    split: one of ours.
    source: where the data set is published.
    licence: under what.

  Raises:
    UserError: nothing is there, it is none of the layouts or not wholly one, or it has no such
      split. One line names the expected files and what was found.
  """
  path = pathlib.Path(path).expanduser()
  known = list(dict.fromkeys(x for layout in layouts for x in layout.splits))
  if split not in known:
    raise UserError(
      f"{name} has no split {split!r}{did_you_mean(split, known)}; splits: {', '.join(known)}"
    )
  kind = detect(path)
  found = next((x for x in layouts if x.kind in (kind, "pool") and split in x.splits), None)
  if found is None:
    others = [x for x in layouts if split in x.splits]
    wanted = "; or ".join(f"{x.kind}: {', '.join(x.expected(split))}" for x in others)
    there = f"the layout there is {kind}, which" if kind else "nothing is there, and"
    raise UserError(f"{path}: {there} does not give {name}'s split {split!r}; expected {wanted}")
  try:
    opened = found.open(path, split)
  except LayoutError as e:
    others = [x for x in layouts if split in x.splits and x is not found]
    wanted = "".join(f"; or {x.kind}: {', '.join(x.expected(split))}" for x in others)
    raise UserError(f"{e}{wanted if kind == 'raw' else ''}") from e
  if not len(opened):
    raise UserError(f"{path}: no items in the split {split!r} of {name}")
  provenance = Provenance(
    benchmark=name, split=split, layout=found.kind, path=path, source=source, licence=licence
  )
  return Items(len(opened), opened.__getitem__, provenance=provenance)
