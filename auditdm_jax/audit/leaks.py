# SPDX-License-Identifier: Apache-2.0
"""Which items of benchmarks a probe repeats: what their pictures look like, and their questions.

An index is one file for any number of benchmarks: 224 bytes a picture before compression, and the
questions. It is made once (`python -m auditdm_jax leaks`), and `config.benchmark.leaks` names it.
"""

from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import io
import itertools
import json
import os
import pathlib
from typing import Any, Protocol
import zipfile

import numpy as np

from auditdm_jax.audit.duplicates import DuplicateIndex, ImagePrint, fingerprint
from auditdm_jax.audit.words import asked
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError

_VERSION = 1
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 4 * _THREADS  # Pictures in memory.


class Leakable(Protocol):
  """An item of a benchmark, such as `bench.items.BenchmarkItem`."""

  @property
  def item_id(self) -> str: ...

  @property
  def image_key(self) -> str: ...

  @property
  def question(self) -> str: ...

  @property
  def pictures(self) -> Sequence[Any]: ...

  def image(self, k: int) -> np.ndarray:
    """Returns u8[H,W,3] of the k-th picture."""
    ...


@dataclasses.dataclass(frozen=True)
class LeakHit:
  """An item whose picture looks the same.

  Attributes:
    source: its benchmark and split.
    item_id: its id there.
    question: what is asked; "" for captions.
    overlap: Jaccard overlap of the words of both questions, see `words.asked`.
  """

  source: str
  item_id: str
  question: str
  overlap: float


@dataclasses.dataclass(frozen=True)
class LeakIndex:
  """Pictures and questions of benchmarks.

  Attributes:
    bits: u64[M,4], difference hashes of M pictures.
    colours: u8[M,192], their thumbnails.
    picture: i64[N], the picture of each of N rows; an item with several pictures has several rows.
    source: i64[N], places in `sources`.
    sources: "benchmark/split".
    texts: (item id, question) of each row.
  """

  bits: np.ndarray
  colours: np.ndarray
  picture: np.ndarray
  source: np.ndarray
  sources: tuple[str, ...]
  texts: tuple[tuple[str, str], ...]

  def hits(self, image: np.ndarray, question: str = "") -> list[LeakHit]:
    """Returns the items whose picture looks like u8[H,W,3], those of like questions first."""
    looks, limits, words = fingerprint(image), DuplicateIndex(), asked(question)
    near = np.flatnonzero(np.bitwise_count(self.bits ^ looks.bits).sum(1) <= limits.bits)
    away = np.abs(self.colours[near].astype(np.int16) - looks.colours)
    near = near[away.max(axis=1, initial=0) <= limits.levels]
    rows = np.flatnonzero(np.isin(self.picture, near))
    found = [
      LeakHit(self.sources[self.source[row]], *self.texts[row], _overlap(words, self.texts[row][1]))
      for row in rows
    ]
    return sorted(found, key=lambda hit: -hit.overlap)

  def duplicates(self) -> DuplicateIndex:
    """Returns the index that the gate `benchmark_leak` asks."""
    index = DuplicateIndex()
    for row, picture in enumerate(self.picture):
      looks = ImagePrint(self.bits[picture], self.colours[picture])
      index.add(looks, self.texts[row][1])
    return index

  def save(self, path: str | os.PathLike) -> None:
    """Writes the index to a file .npz, whole or not at all."""
    said = json.dumps({"version": _VERSION, "sources": self.sources, "texts": self.texts})
    out = io.BytesIO()
    np.savez_compressed(
      out,
      bits=self.bits,
      colours=self.colours,
      picture=self.picture,
      source=self.source,
      said=np.frombuffer(said.encode(), np.uint8),
    )
    paths.write_bytes(path, out.getvalue())


def _overlap(words: frozenset[str], question: str) -> float:
  theirs = asked(question)
  return len(words & theirs) / len(words | theirs) if words | theirs else 0.0


def build(items: Iterable[Leakable], *, source: str) -> LeakIndex:
  """Returns the index of the items of one split; each of its pictures is decoded once.

  Args:
    items: the items; several about one picture have its `image_key` in common.
    source: what hits call it, such as "vqav2/val".

  Raises:
    UserError: a picture cannot be read.
  """
  places: dict[tuple[str, int], int] = {}
  rows: list[tuple[int, str, str]] = []

  def new() -> Iterator[tuple[Leakable, int]]:
    for item in items:
      for k in range(len(item.pictures)):
        key = (item.image_key, k)
        if key not in places:
          places[key] = len(places)
          yield item, k
        rows.append((places[key], item.item_id, item.question))

  prints = list(_fingerprints(new()))
  return LeakIndex(
    bits=np.stack([x.bits for x in prints]) if prints else np.empty((0, 4), np.uint64),
    colours=np.stack([x.colours for x in prints]) if prints else np.empty((0, 192), np.uint8),
    picture=np.asarray([row[0] for row in rows], np.int64),
    source=np.zeros(len(rows), np.int64),
    sources=(source,),
    texts=tuple((item_id, question) for _, item_id, question in rows),
  )


def _fingerprints(pictures: Iterator[tuple[Leakable, int]]) -> Iterator[ImagePrint]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    while chunk := list(itertools.islice(pictures, _AT_ONCE)):
      yield from threads.map(lambda job: fingerprint(job[0].image(job[1])), chunk)


def joined(indices: Sequence[LeakIndex]) -> LeakIndex:
  """Returns one index of several."""
  pictures = np.cumsum([0, *(len(x.bits) for x in indices)])
  sources = np.cumsum([0, *(len(x.sources) for x in indices)])
  return LeakIndex(
    bits=np.concatenate([x.bits for x in indices]),
    colours=np.concatenate([x.colours for x in indices]),
    picture=np.concatenate([x.picture + n for x, n in zip(indices, pictures)]),
    source=np.concatenate([x.source + n for x, n in zip(indices, sources)]),
    sources=tuple(name for x in indices for name in x.sources),
    texts=tuple(text for x in indices for text in x.texts),
  )


def load(path: str | os.PathLike) -> LeakIndex:
  """Reads what `LeakIndex.save` wrote.

  Raises:
    UserError: no such file, or it is damaged or of another kind.
  """
  path = pathlib.Path(path).expanduser()
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in ("bits", "colours", "picture", "source", "said")}
    said = json.loads(arrays.pop("said").tobytes())
    if said["version"] != _VERSION:
      raise UserError(f"{path}: an index of version {said['version']}; make it again")
    texts = tuple((str(item_id), str(question)) for item_id, question in said["texts"])
    found = LeakIndex(**arrays, sources=tuple(map(str, said["sources"])), texts=texts)
    _check(found)
  except OSError as e:
    raise UserError(f"{path}: {e.strerror or e}") from e
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as e:
    reason = " ".join(str(e).split())[:200]
    raise UserError(f"{path}: no index of leaks, make it again ({reason})") from e
  return found


def _check(index: LeakIndex) -> None:
  pictures, rows = len(index.bits), len(index.texts)
  kinds = [
    (index.bits, np.uint64, (pictures, 4)),
    (index.colours, np.uint8, (pictures, 192)),
    (index.picture, np.int64, (rows,)),
    (index.source, np.int64, (rows,)),
  ]
  if any(array.dtype != kind or array.shape != shape for array, kind, shape in kinds):
    raise ValueError("arrays of other shapes")
  for array, size in ((index.picture, pictures), (index.source, len(index.sources))):
    if rows and not (0 <= array.min() and array.max() < size):
      raise ValueError("places outside of the index")
