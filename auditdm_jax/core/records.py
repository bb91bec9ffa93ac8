# SPDX-License-Identifier: Apache-2.0
"""The records of a run: append-only shards, one per kind of record and process.

The run that resumes writes a record that was cut short (`core.jsonl`) again, since its key is not
among `Records.keys`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import heapq
import itertools
import operator
import os
import pathlib
import re
from typing import Any, Generic, TypeVar

from auditdm_jax.core import jsonl, paths

T = TypeVar("T")

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # No dash: it separates the name from the process.


class Stored(Iterable[T], Generic[T]):
  """Rows that are read anew each time somebody goes through them: a million need no memory."""

  def __init__(self, rows: Callable[[], Iterator[T]]):
    self._rows = rows

  def __iter__(self) -> Iterator[T]:
    return self._rows()

  def __bool__(self) -> bool:
    return any(True for _ in self)


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
  """Yields the rows in lists of `size`, of which the last may be shorter."""
  left = iter(rows)
  while chunk := list(itertools.islice(left, size)):
    yield chunk


class Records:
  """Append-only shards `<dir>/<name>-<process>.jsonl`, one per kind of record and process."""

  def __init__(
    self,
    dir: str | os.PathLike,
    process: int = 0,
    *,
    processes: int = 1,
    max_row_bytes: int = 1 << 20,
  ):
    """Opens the folder, which is made if it is not there.

    Args:
      dir: the folder.
      process: this one, which writes a shard of its own.
      processes: how many there are.
      max_row_bytes: longest row.
    """
    self.dir = paths.as_path(dir)
    self.dir.mkdir(parents=True, exist_ok=True)
    self._process, self._processes = process, processes
    self._max_row_bytes = max_row_bytes
    self._keys: dict[tuple, tuple[dict[pathlib.Path, int], set]] = {}

  def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows to this process's shard; see `jsonl.JsonLines.append`."""
    self._shard(name).append(rows)

  def read(self, name: str) -> list[dict[str, Any]]:
    """Returns the rows of all processes, shard by shard."""
    return list(self.iterate(name))

  def iterate(self, name: str) -> Iterator[dict[str, Any]]:
    """Yields what `read` returns without holding it all."""
    for shard in self._shards(name):
      for _, row in shard.iterate():
        yield row

  def by_step(self, name: str, *then: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards step by step, those of a step by the fields `then`.

    Each shard has its steps in order, and one step at a time is held.
    """
    step = operator.itemgetter("step")
    merged = heapq.merge(
      *((row for _, row in shard.iterate()) for shard in self._shards(name)), key=step
    )
    for _, rows in itertools.groupby(merged, step):
      yield from sorted(rows, key=lambda row: [row[field] for field in then])

  def keys(self, name: str, *fields: str) -> set:
    """Returns the values of one field, or tuples of several, over all rows: what is done already.

    Reads only what was added since the last call. The set belongs to this object: look things up
    in it, do not change it.
    """
    ends, found = self._keys.setdefault((name, fields), ({}, set()))
    for shard in self._shards(name):
      for end, row in shard.iterate(ends.get(shard.path, 0)):
        ends[shard.path] = end
        found.add(row[fields[0]] if len(fields) == 1 else tuple(row[f] for f in fields))
    return found

  def rewind(self, name: str, step: int, *, field: str = "step") -> int:
    """Removes the rows of steps after `step`, which a resumed run writes again.

    Each process sees to its own shard, and to its share of those that an earlier run of more
    processes left. Other `Records` of the same folder must be made anew afterwards. Returns how
    many were removed.
    """
    self._keys = {key: value for key, value in self._keys.items() if key[0] != name}
    return sum(
      shard.rewind(step, field=field)
      for shard in self._shards(name)
      if int(shard.path.stem.rpartition("-")[2]) % self._processes == self._process
    )

  def _shard(self, name: str) -> jsonl.JsonLines:
    if not _NAME.fullmatch(name):
      raise ValueError(f"records are named like 'probes' or 'mode_rates', not {name!r}")
    path = self.dir / f"{name}-{self._process}.jsonl"
    return jsonl.json_lines(path, max_row_bytes=self._max_row_bytes)

  def _shards(self, name: str) -> list[jsonl.JsonLines]:
    found = self._shard(name).path.parent.glob(f"{name}-*.jsonl")
    return [jsonl.json_lines(p) for p in sorted(found, key=lambda p: (len(p.name), p.name))]
