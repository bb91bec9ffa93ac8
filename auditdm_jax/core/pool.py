# SPDX-License-Identifier: Apache-2.0
"""Where images come from; `open_pool` says what it can open.

All sources answer the same questions: how many images, which pixels, which id, which questions,
which answers.
"""

import os
import pathlib

from auditdm_jax.core import pictures
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pools import folder, prepared, tables
from auditdm_jax.core.pools.base import ImagePool, Pool
from auditdm_jax.core.pools.prepared import PreparedPool
from auditdm_jax.core.pools.remembered import Remembered
from auditdm_jax.core.pools.shares import NoSplit, Shares

__all__ = ["ImagePool", "NoSplit", "Pool", "Shares", "cache_folder", "open_pool", "open_tfds"]


def cache_folder() -> pathlib.Path:
  """Returns auditdm_jax/images in the user's cache folder: what is known about image files."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "auditdm_jax" / "images"


def open_pool(
  path: str | os.PathLike,
  split: str,
  *,
  questions: str | os.PathLike | None = None,
  shares: Shares | None = None,
  cache: str | os.PathLike | None = None,
) -> Pool:
  """Opens a split of a data set of any of these kinds.

    *.jsonl                     rows {"image": path, "question": text, …}, see `pools.rows`
    a folder of images          and of folders, with an optional questions.jsonl: `pools.folder`
    *.parquet, or a folder      Hugging Face's, with columns called as the keys of those rows:
      with such files           `pools.tables`
    `Dataset.save_to_disk`'s    the same
    a prepared TFDS data set    features `image`, `questions` and `answers`

  Every row is checked here. Pictures are decoded one at a time, when they are asked for.

  Args:
    path: the file or folder.
    split: folder, file name, column, TFDS or `DatasetDict` say what the splits are. Where nothing
      does, images are shared out.
    questions: a JSONL file about the images of a folder, instead of its own.
    shares: how images are shared out; None = 80 % train, 10 % heldout, 10 % fresh.
    cache: folder where image ids are kept for the next time, such as `cache_folder()`; None = they
      are computed again.

  Raises:
    NoSplit: the data set has no such split.
    UserError: no such data set, or rows that are wrong: which, where and why.
  """
  path, shares = pathlib.Path(path), shares or Shares()
  asked = pathlib.Path(questions) if questions else None
  if asked and not asked.is_file():
    raise UserError(f"{asked}: no such file of questions")
  ids = Remembered(cache, "image ids", os.path.abspath(path), pictures.DECODER)
  if (table := tables.find(path)) and not asked:
    return tables.open_tables(table, split, shares=shares, ids=ids, cache=cache)
  if path.suffix in (".jsonl", ".ndjson") and path.is_file() and not asked:
    return folder.open_jsonl(path, split, shares=shares, ids=ids)
  if (path / "dataset_info.json").is_file() and not asked:
    return prepared.open_prepared(path, split, ids=ids)
  if path.is_dir():
    return folder.open_folder(path, split, questions=asked, shares=shares, ids=ids)
  if path.is_file():
    raise UserError(f"{path}: neither a folder nor one of *.jsonl, *.parquet and *.arrow")
  raise UserError(
    f"{path}: neither a prepared data set nor a folder with images in {split}/: nothing is there"
  )


def open_tfds(directory: str | os.PathLike, split: str) -> PreparedPool:
  """Opens a split of a prepared TFDS data set, see `pools.prepared.open_prepared`."""
  return prepared.open_prepared(pathlib.Path(directory), split, ids=Remembered(None))
