# SPDX-License-Identifier: Apache-2.0
"""Short answers taken from replies, against labels: how many are right, missed and wrong.

COMMAND
  python -m benchmarks.short_answers [--show]

data/styles/replies.jsonl holds 831 replies as chat models give them, in our words, each with its
question and the short answers that count as right. Three parts were kept from the rules while these
were written. At first sight 264 of 275, 177 of 191 and 106 of 113 were right, together 94.5 %
[92.3, 96.1], and 8, 10 and 5 were wrong, 4.0 % [2.7, 5.9]. Then the rules were mended, so that what
this program prints is no estimate for replies which they have not seen.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
import re

from absl import app, flags

from auditdm_jax.audit.rates import wilson
from auditdm_jax.text.short import Short, short_answer

FILE = pathlib.Path(__file__).parent.parent / "data/styles/replies.jsonl"

_SHOW = flags.DEFINE_bool("show", False, "Print the replies that are missed or wrong.")


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A reply and what is right: (kind, text) pairs, text None where the kind is enough."""

  question: str
  raw: str
  finish: str
  accepted: tuple[tuple[str, str | None], ...]


def load() -> list[Labelled]:
  """Returns all labelled replies."""
  rows = [json.loads(line) for line in FILE.read_text("utf-8").split("\n") if line]
  return [
    Labelled(r["question"], r["raw"], r["finish"], tuple((k, t) for k, t in r["accepted"]))
    for r in rows
  ]


def outcome(item: Labelled, got: Short) -> str:
  """Returns "right"; "missed": the whole text stayed where a short answer was there; "wrong"."""
  for kind, text in item.accepted:
    if kind == got.kind and (text is None or _same(text, got.text or "")):
      return "right"
  return "missed" if got.kind == "whole" else "wrong"


def _same(a: str, b: str) -> bool:
  """Case, articles and the full stop make no other answer."""
  short = lambda t: re.sub(r"^(?:the|an?) (?=\w)", "", " ".join(t.lower().rstrip(".").split()))  # noqa: E731
  return short(a) == short(b)


def measure(items: Sequence[Labelled]) -> Iterator[tuple[Labelled, Short, str]]:
  """Yields each reply with what was taken from it and the outcome."""
  for item in items:
    got = short_answer(item.raw, question=item.question, finish=item.finish)
    yield item, got, outcome(item, got)


def main(argv: Sequence[str]) -> None:
  del argv
  rows = list(measure(load()))
  counts = Counter(result for _, _, result in rows)
  for name in ("right", "missed", "wrong"):
    low, high = wilson(counts[name], len(rows))
    print(f"{name:7} {counts[name] / len(rows):.3f} [{low:.3f}, {high:.3f}] n={len(rows)}")
  if _SHOW.value:
    for item, got, result in rows:
      if result != "right":
        print(f"{result}: {item.question!r} {item.raw!r}\n  got {got}, right {item.accepted}")


if __name__ == "__main__":
  app.run(main)
