# SPDX-License-Identifier: Apache-2.0
"""MMBench v1.1: multiple choice, right only if every rotation of the options is."""

from auditdm_jax.bench.layouts import adapt
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import (
  LETTER,
  VLMEVALKIT,
  lmms_eval,
  mix_choice,
  vlmevalkit_choice,
)

_ABCD = ("A", "B", "C", "D")


def _columns(second: str) -> Columns:
  return Columns(
    item_id="index",
    options=_ABCD,
    hint="hint",
    category="category",
    group="group",
    adapt=adapt.circular,
    makes=("group",),
    keep=(second, "source", "split"),
  )


SPEC = BenchmarkSpec(
  name="mmbench",
  title="MMBench v1.1",
  split="dev",
  cluster="group",
  layouts=(
    Tsv(files={"dev": "MMBench_DEV_EN_V11.tsv"}, columns=_columns("l2-category")),
    # The hub has v1.0 only; it is another benchmark.
    Parquet(
      repo="lmms-lab-encoder/MMBench",
      config="en",
      splits={"dev-v1.0": "dev"},
      columns=_columns("L2-category"),
    ),
    Tsv(files={"dev-v1.0": "MMBench_DEV_EN.tsv"}, columns=_columns("l2-category")),
  ),
  prompts={
    Family.MIX: mix_choice("circular_accuracy", variant=VLMEVALKIT, chooses=True),
    Family.LMMS_EVAL: lmms_eval(
      "{hint}{question} There are several options:\n{options}\n" + LETTER,
      "circular_accuracy",
      task="mmbench_en_dev_static",
      max_tokens=1024,
      hint="{hint} ",
      chooses=True,
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("circular_accuracy"),
  },
  paper=(PaperRow(split="dev", baseline=67.6, repaired=75.0, larger={"12B": 73.8, "27B": 78.3}),),
  source="https://github.com/open-compass/MMBench",
  licence="Apache-2.0",
)
