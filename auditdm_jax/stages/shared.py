# SPDX-License-Identifier: Apache-2.0
"""Files of a run that the first process writes and all of them read.

All processes come by here in the same order (`core.runtime`). They wait for each other before they
read, so that everything written is there, and after it, so that nothing is written meanwhile.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
from typing import Any

from auditdm_jax.core import jsonio, paths, records, runtime


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """The block sees the same files in every process."""
  runtime.barrier()
  yield
  runtime.barrier()


def read_json(path: str | os.PathLike) -> Any:
  """What a file holds, or None if there is none."""
  with reading():
    return jsonio.read_json(path) if paths.as_path(path).exists() else None


def write_json(path: str | os.PathLike, value: Any) -> None:
  """As `jsonio.write_json`."""
  if runtime.is_main():
    jsonio.write_json(path, value)


class Records(records.Records):
  """Records in one shard; those of GRPO, of which each process writes its share, can be read."""

  def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if runtime.is_main():
      super().append(name, rows)

  def read(self, name: str) -> list[dict[str, Any]]:
    with reading():
      return super().read(name)

  def keys(self, name: str, *fields: str) -> set:
    with reading():
      return super().keys(name, *fields)

  def rewind(self, name: str, step: int, *, field: str = "step") -> int:
    return super().rewind(name, step, field=field) if runtime.is_main() else 0
