# SPDX-License-Identifier: Apache-2.0
"""MMStar: choices that take sight, six abilities."""

from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, OptionStyle, PaperRow
from auditdm_jax.bench.specs.common import VLMEVALKIT, lmms_eval, mix_choice, vlmevalkit_choice

SPEC = BenchmarkSpec(
  name="mmstar",
  title="MMStar",
  split="val",
  layouts=(
    Tsv(
      files={"val": "MMStar.tsv"},
      columns=Columns(
        item_id="index",
        options=("A", "B", "C", "D"),
        category="l2_category",  # Which lmms-eval averages over.
        keep=("category",),
      ),
    ),
    # The question ends with its options, "Options: A: …, B: …"; the answer is a letter.
    Parquet(
      repo="Lin-Chen/MMStar",
      splits={"val": "val"},
      columns=Columns(item_id="index", category="l2_category", keep=("category", "meta_info")),
    ),
  ),
  prompts={
    Family.MIX: mix_choice("mmstar_accuracy", variant=VLMEVALKIT, chooses=True),
    Family.LMMS_EVAL: lmms_eval(
      "{question}\nOptions: {options}"
      "\nAnswer with the option's letter from the given choices directly",
      "mmstar_accuracy",
      task="mmstar",
      plain="{question}\nAnswer with the option's letter from the given choices directly",
      options=OptionStyle(each="{letter}: {text}", between=", "),
      drop=" Please answer yes or no.",
      strip=True,
      chooses=True,
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("mmstar_accuracy"),
  },
  paper=(
    PaperRow(
      split="val",
      baseline=46.1,
      repaired=52.4,
      larger={"12B": 55.7, "27B": 58.8},
      note="lmms-eval averages over abilities, VLMEvalKit over questions",
    ),
  ),
  sizes={"val": 1_500},
  source="https://huggingface.co/datasets/Lin-Chen/MMStar",
  licence="see the source",
)
