# SPDX-License-Identifier: Apache-2.0
"""What it costs to resume beside many records: time and memory of `Records.rewind` and of reading.

  python -m benchmarks.resume [--rows=1000000]

Rows have the size of a completion of GRPO. The run that resumes removes those of its last steps,
as after a kill, and then goes through the rest once.
"""

from collections.abc import Callable, Iterator, Sequence
import resource
import tempfile
import time
from typing import Any

from absl import app, flags

from auditdm_jax.core import records

PER_STEP, SAVED = 256, 10  # Completions of a step, steps between two checkpoints.
_ROWS = flags.DEFINE_integer("rows", 1_000_000, "Rows that the killed run has written.")


def rows(n: int) -> Iterator[dict[str, Any]]:
  """Yields rows of about 1,000 bytes."""
  turns = [{"kind": "question", "text": "what color is the thing " * 8, "length": 11}]
  answers = {"target": "red", "first": "blue", "second": "blue"}
  for i in range(n):
    probe = {"probe_id": f"{i:032x}", "image_id": f"{i:064x}", "question": "what color is it"}
    verdict = {"answers": answers, "consensus": "blue", "agree": True, "note": "x" * 300}
    yield {"step": i // PER_STEP, "probe": probe, "verdict": verdict, "turns": turns}


def measured(name: str, body: Callable[[], int]) -> None:
  """Runs it and prints its time and the peak of the memory up to its end."""
  wall, cpu = time.perf_counter(), time.process_time()
  n = body()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  print(f"{name:8} {n:9,} rows {wall:7.1f} s {cpu:7.1f} CPU s   peak {peak:6.0f} MiB", flush=True)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  n = _ROWS.value
  with tempfile.TemporaryDirectory() as folder:
    files = records.Records(folder)

    def write() -> int:
      for chunk in records.chunks(rows(n), PER_STEP * SAVED):
        files.append("completions", chunk)
      return n

    measured("write", write)
    last = n // PER_STEP - SAVED // 2
    measured("rewind", lambda: files.rewind("completions", last))
    measured("read", lambda: sum(1 for _ in files.iterate("completions")))


if __name__ == "__main__":
  app.run(main)
