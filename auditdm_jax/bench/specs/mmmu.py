# SPDX-License-Identifier: Apache-2.0
"""MMMU: college exams, choices and open questions, up to seven pictures."""

from auditdm_jax.bench.layouts import adapt
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import OFFICIAL, lmms_eval, mix_choice, vlmevalkit_choice

SPEC = BenchmarkSpec(
  name="mmmu",
  title="MMMU",
  split="val",
  layouts=(
    Tsv(
      files={"val": "MMMU_DEV_VAL.tsv", "dev": "MMMU_DEV_VAL.tsv"},
      only={"val": "validation", "dev": "dev"},
      columns=Columns(
        item_id="index", options=tuple("ABCDEFGHI"), category="category", keep=("id", "split")
      ),
    ),
    Parquet(
      repo="lmms-lab-encoder/MMMU",
      splits={"val": "validation", "dev": "dev"},
      columns=Columns(
        item_id="id",
        options=("options",),
        pictures=tuple(f"image_{k}" for k in range(1, 8)),
        image_key="id",
        category="subject",
        adapt=adapt.mmmu,
        reads=("options", "question_type"),
        makes=("subject",),
        keep=("question_type", "topic_difficulty", "subfield"),
      ),
    ),
  ),
  prompts={
    Family.MIX: mix_choice("mmmu_accuracy", variant=OFFICIAL, chooses=True),
    # The official way, pictures first; "<image 1>" stays in the text.
    Family.LMMS_EVAL: lmms_eval(
      "{question}\n{options}\n\nAnswer with the option's letter from the given choices directly.",
      "mmmu_accuracy",
      task="mmmu_val",
      variant=OFFICIAL,
      plain="{question}\n\nAnswer the question using a single word or phrase.",
      chooses=True,
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("mmmu_accuracy"),
  },
  paper=(PaperRow(split="val", baseline=39.6, repaired=45.2, larger={"12B": 44.8, "27B": 49.7}),),
  sizes={"val": 900},
  source="https://huggingface.co/datasets/MMMU/MMMU",
  licence="Apache-2.0",
)
