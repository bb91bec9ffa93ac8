# SPDX-License-Identifier: Apache-2.0
r"""A benchmark of one's own: images with questions and answers, a prompt, and what scores a reply.

COMMAND
  python -m examples.own_images --output=data/mine
  for stage in predict score table; do
    python -m auditdm_jax $stage --workdir=runs/own_benchmark \
      --config=configs/benchmarks.py:baseline=data/scenes/weights/target_easy \
      --config.benchmarks.mine.path=data/mine \
      --config.benchmarks.mine.spec=examples.own_benchmark:SPEC
  done

`data/mine` is images with questions and answers, in any form that an audit takes.
"""

from auditdm_jax.bench.specs import OwnBenchmark


def starts_right(prediction: str, references: list[str]) -> float:
  """Returns 1.0 if a reply begins as one of the right answers does."""
  said = prediction.strip().lower()
  return float(any(said.startswith(answer.lower()) for answer in references))


SPEC = OwnBenchmark(
  name="mine",
  scorer="examples.own_benchmark:starts_right",
  prompt="{question}\nAnswer in one word.",
  split="train",  # Of the data; "test" if nothing is said.
).spec()
