# SPDX-License-Identifier: Apache-2.0
"""RealWorldQA: photographs from cars and streets, choices and short answers."""

from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import LMMS_EVAL, lmms_eval, mix_choice, vlmevalkit_choice

SPEC = BenchmarkSpec(
  name="realworldqa",
  title="RealWorldQA",
  split="test",
  layouts=(
    Tsv(
      files={"test": "RealWorldQA.tsv"},
      columns=Columns(item_id="index", options=("A", "B", "C", "D", "E")),
    ),
    # The question has its options and its instruction within; the answer is a letter or a word.
    Parquet(
      repo="lmms-lab-encoder/RealWorldQA",
      splits={"test": "test"},
      columns=Columns(item_id="", hashed=True),
    ),
  ),
  prompts={
    Family.MIX: mix_choice("realworldqa_accuracy", variant=LMMS_EVAL, chooses=True),
    Family.LMMS_EVAL: lmms_eval(
      "{question}\n{options}",
      "realworldqa_accuracy",
      task="realworldqa",
      max_tokens=16,
      plain="{question}",
      strip=True,
      chooses=True,
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("realworldqa_accuracy"),
  },
  paper=(PaperRow(split="test", baseline=54.5, repaired=61.4, larger={"12B": 58.3, "27B": 62.5}),),
  sizes={"test": 765},
  source="https://huggingface.co/datasets/xai-org/RealworldQA",
  licence="CC BY-ND 4.0",
)
