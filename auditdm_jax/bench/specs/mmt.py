# SPDX-License-Identifier: Apache-2.0
"""MMT-Bench: multiple choice over many tasks, up to nine options."""

from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, OptionStyle, PaperRow
from auditdm_jax.bench.specs.common import lmms_eval, mix_choice, vlmevalkit_choice

_COLUMNS = Columns(
  item_id="index",
  options=tuple("ABCDEFGHI"),
  category="category",
  keep=("l2-category", "split"),
)

SPEC = BenchmarkSpec(
  name="mmt",
  title="MMT-Bench",
  split="val",
  layouts=(
    Tsv(files={"val": "MMT-Bench_VAL.tsv"}, columns=_COLUMNS),
    Parquet(repo="lmms-lab-encoder/MMT-Benchmark", splits={"val": "val"}, columns=_COLUMNS),
  ),
  prompts={
    Family.MIX: mix_choice(),
    # lmms-eval writes "<image>" after "Question: ", which its Gemma 3 takes away.
    Family.LMMS_EVAL: lmms_eval(
      "Question: \n{question}\n{options}"
      "\nAnswer the question using a single character from the given options.",
      "mmt_accuracy",
      task="mmt_val",
      max_tokens=8,
      options=OptionStyle(each="{letter}: {text}"),
      strip=True,
      chooses=True,
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("mmt_accuracy"),
  },
  paper=(PaperRow(split="val", baseline=53.2, repaired=58.9, larger={"12B": 58.5, "27B": 59.2}),),
  sizes={"val": 3_127},
  source="https://github.com/OpenGVLab/MMT-Bench",
  licence="see the source; its pictures are those of 150 data sets",
)
