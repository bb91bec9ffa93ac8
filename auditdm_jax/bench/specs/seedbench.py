# SPDX-License-Identifier: Apache-2.0
"""SEED-Bench, the questions about images."""

from auditdm_jax.bench.layouts import raw_choice
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import LETTER, lmms_eval, mix_choice, vlmevalkit_choice

SPEC = BenchmarkSpec(
  name="seedbench",
  title="SEED-Bench image",
  split="image",
  layouts=(
    Tsv(
      files={"image": "SEEDBench_IMG.tsv"},
      columns=Columns(item_id="index", options=("A", "B", "C", "D"), category="category"),
    ),
    Parquet(
      repo="lmms-lab-encoder/SEED-Bench",
      splits={"image": "test"},
      columns=Columns(
        options=("choice_a", "choice_b", "choice_c", "choice_d"),
        image_key="data_id",
        category="question_type_id",
        reads=("data_type",),
      ),
      where=lambda row: row["data_type"] == "image",
    ),
    Raw(
      read=raw_choice.seedbench,
      splits={"image": "image"},
      files=("SEED-Bench.json", "SEED-Bench-image/1454426_2591111986, …"),
    ),
  ),
  prompts={
    Family.MIX: mix_choice(),
    Family.LMMS_EVAL: lmms_eval(
      "{question}\n{options}" + LETTER, "seed_accuracy", task="seedbench", chooses=True
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("seed_accuracy"),
  },
  paper=(PaperRow(split="image", baseline=65.7, repaired=72.9, larger={"12B": 70.6, "27B": 73.2}),),
  sizes={"image": 14_232},
  source="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
  licence="CC BY-NC 4.0",
)
