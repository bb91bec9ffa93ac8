# SPDX-License-Identifier: Apache-2.0
"""leaks: makes an index of benchmarks, so that finds that repeat one of their items are known.

  python -m auditdm_jax leaks --output=leaks.npz vqav2/val=/data/vqav2 gqa=/data/gqa

Each word is a benchmark of `bench.specs`, its split (the reported one by default) and where it
lies; docs/benchmarks.md lists the layouts. `config.benchmark.leaks` names the file for the gate
`benchmark_leak`.

Reads:  the folders of the benchmarks.
Writes: --output.
Costs:  each picture is decoded once; no model.
"""

from collections.abc import Iterable, Iterator
import pathlib
from typing import TypeVar

from absl import flags

from auditdm_jax.audit import leaks
from auditdm_jax.bench import specs
from auditdm_jax.core import metrics
from auditdm_jax.core.config import UserError

T = TypeVar("T")
FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "The file to make.", required=True, flag_values=FLAGS)


def main(words: list[str]) -> int:
  """Makes the index of the benchmarks that the words name."""
  if not words:
    raise UserError("no benchmarks; write such as vqav2/val=/data/vqav2")
  target = pathlib.Path(_OUTPUT.value).expanduser()
  if target.exists():
    raise UserError(f"--output={target} is there already, and nothing is written over")
  found = [_index(word) for word in words]
  whole = leaks.joined(found)
  whole.save(target)
  print(f"wrote {target}: {len(whole.texts)} items, {len(whole.bits)} pictures")
  return 0


def _index(word: str) -> leaks.LeakIndex:
  named, _, path = word.partition("=")
  name, _, split = named.partition("/")
  if not path:
    raise UserError(f"{word!r}: written BENCHMARK=PATH or BENCHMARK/SPLIT=PATH")
  spec = specs.find(name, where=f"{word!r}: benchmark")
  items = spec.open(path, split)
  print(f"{spec.title}, {items.provenance.split}: {len(items)} items", flush=True)
  with metrics.Progress(len(items), spec.name) as progress:
    counted = _counted(items, progress)
    return leaks.build(counted, source=f"{spec.name}/{items.provenance.split}")


def _counted(items: Iterable[T], progress: metrics.Progress) -> Iterator[T]:
  """Yields the items, and says how many are done."""
  for i, item in enumerate(items, 1):
    yield item
    progress.update(i)
