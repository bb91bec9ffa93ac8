# SPDX-License-Identifier: Apache-2.0
"""Tables with pictures in them: Hugging Face's Parquet folders, and what `save_to_disk` wrote.

    image             the bytes of a picture file, alone or as `datasets` has them; or a path
    question          text; without such a column there are only images
    answer, answers   text, number, bool, a list of those or of {"answer": …}; or a class
    id, split         text or number

A picture that is in several rows is one image with several questions. Splits are those of a
`DatasetDict`, of file names (train-00000-of-00002.parquet, train.parquet), of folders (train/…), or
of the column; where nothing gives splits, images are shared out.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import logging
import os
import pathlib
import re
from typing import Any

import pyarrow as pa

from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.pools import base
from auditdm_jax.core.pools import rows as rows_lib
from auditdm_jax.core.pools.listed import Entry, FileSource, ListedPool, Source, pool_of
from auditdm_jax.core.pools.remembered import Remembered, version_of
from auditdm_jax.core.pools.shards import Shard
from auditdm_jax.core.pools.shares import NoSplit, Shares

_COUNTED = re.compile(r"(.+?)[-_.]\d+(-of-\d+)?(-[0-9a-f]{8,})?$")
_SPLITS = frozenset("train training validation valid val dev test testing".split())
# Names that say nothing about the split.
_PLAIN = frozenset("data default part shard chunk file dataset parquet arrow".split())
_LARGE = 1 << 28  # Bytes of a row group.
_COLUMNS = ("question", "answers", "answer", "id", "split")


@dataclasses.dataclass(frozen=True)
class Tables:
  """The files of a data set.

  Attributes:
    where: the file or folder.
    files: each with its split; "" if its name says none.
  """

  where: pathlib.Path
  files: tuple[tuple[pathlib.Path, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CellSource:
  """A picture in a row of a table."""

  shard: Shard
  column: str
  row: int
  token: str

  @property
  def name(self) -> str:
    return f"{self.shard.path}: the image of row {self.row}"

  def stored(self) -> base.Stored:
    return self.shard.picture(self.column, self.row)

  def version(self) -> str:
    return self.token


def find(path: pathlib.Path) -> Tables | None:
  """Returns the tables of a file or folder; None if it is of another kind.

  Raises:
    UserError: it says that it is a table, but it is damaged or of a kind that is not read.
  """
  if path.suffix in (".parquet", ".arrow") and path.is_file():
    return Tables(path, ((path, ""),))
  if (path / "dataset_dict.json").is_file():
    named = _read(path / "dataset_dict.json").get("splits")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
      raise UserError(f"{path / 'dataset_dict.json'}: no list of splits")
    parts = [(file, name) for name in named for file in _saved(path / name)]
    return Tables(path, tuple(parts))
  if (path / "state.json").is_file():
    return Tables(path, tuple((file, "") for file in _saved(path)))
  cached = sorted(path.glob("*.arrow")) if path.is_dir() else []
  if not cached and (
    (path / "dataset_info.json").is_file() or (path / "questions.jsonl").is_file()
  ):
    return None
  files = cached or sorted(_parquet_files(path))
  return Tables(path, tuple((f, _split_of(f.relative_to(path))) for f in files)) if files else None


def _saved(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that `Dataset.save_to_disk` wrote into a folder."""
  state = _read(folder / "state.json")
  if state.get("_indices_files"):
    raise UserError(
      f"{folder}: saved with an index of rows, by an old `datasets`; save it again after"
      " flatten_indices()"
    )
  named = state.get("_data_files")
  if not isinstance(named, list) or not all(isinstance(x, dict) and "filename" in x for x in named):
    raise UserError(f"{folder / 'state.json'}: no list of data files")
  files = [folder / pathlib.PurePath(str(x["filename"])).name for x in named]
  if missing := [file for file in files if not file.is_file()]:
    raise UserError(f"{missing[0]}: no such file, but {folder / 'state.json'} names it")
  return files


def _read(path: pathlib.Path) -> Mapping[str, Any]:
  try:
    found = jsonio.read_json(path)
  except OSError as e:
    raise UserError(f"{path}: {e.strerror}") from e
  if not isinstance(found, dict):
    raise UserError(f"{path}: not a JSON object")
  return found


def _parquet_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for folder, folders, files in os.walk(root):
    folders[:] = [name for name in folders if not name.startswith((".", "@"))]
    for name in files:
      if name.endswith(".parquet") and not name.startswith("."):
        yield pathlib.Path(folder, name)


def _split_of(path: pathlib.PurePath) -> str:
  """Returns the split that a file's name and folders say, "" if none."""
  counted = _COUNTED.fullmatch(path.stem)
  name = counted[1] if counted else path.stem
  last = re.split(r"[-_.]", name)[-1]
  if last.lower() in _SPLITS:
    return last
  names = [*([name] if counted else []), *reversed(path.parts[:-1])]
  return next((name for name in names if name.lower() not in _PLAIN), "")


def open_tables(
  tables: Tables,
  split: str,
  *,
  shares: Shares,
  ids: Remembered,
  cache: str | os.PathLike | None,
) -> ListedPool:
  """Opens a split of a data set of tables.

  Args:
    tables: what `find` found.
    split: its name.
    shares: how images are shared out if nothing gives splits.
    ids: the image ids that are known.
    cache: where the hashes of the pictures are kept, None = nowhere.

  Raises:
    UserError: no such split, columns that are missing, or rows that are wrong.
  """
  named = sorted({name for _, name in tables.files if name})
  named = named if len(named) > 1 else []  # One is what `datasets` calls a table without splits.
  files = [path for path, name in tables.files if name == split] if named else None
  if nameless := [path for path, name in tables.files if named and not name]:
    logging.warning("%s: in no split and left out", ", ".join(map(str, nameless[:3])))
  if files == []:
    raise NoSplit(
      f"{tables.where}: no split {split!r}{did_you_mean(split, named)}; splits:"
      f" {', '.join(named)[:300]}"
    )
  shards = [Shard(path) for path in files or [path for path, _ in tables.files]]
  if slow := [x for x in shards if x.largest_block() > _LARGE]:
    logging.warning(
      "%s: row groups of %d MB, which are slow to read one picture from: write row_group_size=100",
      *(slow[0].path, slow[0].largest_block() >> 20),
    )
  known = Remembered(cache, "pictures in tables", os.path.abspath(tables.where))
  entries, said = _entries(shards, tables.where, known)
  if not entries:
    raise UserError(f"{tables.where}: no rows in the split {split!r}")
  if files and not said:
    return ListedPool(entries, split, ids)
  return pool_of(entries, said, split, where=tables.where, shares=shares, ids=ids)


def _entries(
  shards: Sequence[Shard], where: pathlib.Path, known: Remembered
) -> tuple[list[Entry], dict[int, str]]:
  """The images of tables with what is asked about them, and their splits if a column says some."""
  sources: dict[str, Source] = {}
  faults = rows_lib.Faults(where)
  gathered = rows_lib.Gathered[str](faults, same_ids=True)
  for shard in shards:
    faults.source = shard.path
    columns = _columns(shard)
    tokens = _tokens(shard, known)
    for number, (token, fields) in enumerate(zip(tokens, _rows(shard, columns), strict=True)):
      try:
        row = rows_lib.parse(fields, ask="question" in columns)
        if not token:
          raise rows_lib.BadRow("the image is null")
        source = _source(shard, number, token)
      except rows_lib.BadRow as e:
        faults.add(faults.place(number), str(e))
      else:
        sources.setdefault(token, source)
        gathered.add(number, token, row)
  splits = gathered.splits()
  faults.check()
  images = gathered.images
  entries = [Entry(sources[token], gathered.asked(token)) for token in images]
  return entries, {k: splits[token] for k, token in enumerate(images)} if splits else {}


def _columns(shard: Shard) -> list[str]:
  """The columns that are read, of those that there are.

  Raises:
    UserError: the column of pictures is missing or of another kind.
  """
  if "image" not in shard.columns:
    raise UserError(
      f"{shard.path}: no column 'image'{did_you_mean('image', shard.columns)}; columns:"
      f" {', '.join(shard.columns)[:300]}"
    )
  kind = shard.kind("image")
  fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
  is_data = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
  is_path = pa.types.is_string(kind) or pa.types.is_large_string(kind)
  if not (is_data or is_path or fields & {"bytes", "path"}):
    raise UserError(
      f"{shard.path}: the column 'image' is {str(kind)[:80]}, not the bytes or the path of one"
      " picture file"
    )
  return [name for name in _COLUMNS if name in shard.columns]


def _rows(shard: Shard, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
  """The rows; classes by their names."""
  features = shard.features()
  classes = {}
  for name in columns:
    feature = features.get(name)
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
      classes[name] = feature["names"]
  for row in shard.rows(list(columns)):
    fields = {name: row[name] for name in columns}
    for name, names in classes.items():
      if isinstance(fields[name], int):
        fields[name] = names[fields[name]] if 0 <= fields[name] < len(names) else None
    yield fields


def _tokens(shard: Shard, known: Remembered) -> Iterator[str]:
  """What tells the pictures of a file apart, row by row; kept, as it reads the whole file."""
  version = version_of(shard.path)
  for block in range(len(shard.blocks())):
    key = version and f"{version}|{block}"
    tokens = known[key] if key in known else shard.tokens("image", block)
    known.put({key: tokens})
    yield from tokens


def _source(shard: Shard, row: int, token: str) -> Source:
  kind, _, value = token.partition(":")
  if kind == "sha256":
    return CellSource(shard, "image", row, token)
  path = os.path.normpath(shard.path.parent / value)
  if not os.path.isfile(path):
    raise rows_lib.BadRow(f"no image {value[:200]!r}")
  return FileSource(path)
