# SPDX-License-Identifier: Apache-2.0
r"""A benchmark of one's own: images with questions and answers, a prompt, and what scores a reply.

COMMAND
  for stage in predict score table; do
    python -m auditdm_jax $stage --workdir=runs/mine --config=configs/benchmarks.py:baseline=DIR \
      --config.benchmarks.mine.path=data/mine \
      --config.benchmarks.mine.spec=examples.own_benchmark:SPEC
  done

`data/mine/test` holds images, and a questions.jsonl of {"image": …, "question": …, "answer": …}.
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
).spec()
