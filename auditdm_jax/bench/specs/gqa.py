# SPDX-License-Identifier: Apache-2.0
"""GQA: compositional questions over scene graphs."""

from auditdm_jax.bench.layouts import adapt, raw_questions
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import WORD, lmms_eval, mix, transfer, vlmevalkit

SPEC = BenchmarkSpec(
  name="gqa",
  title="GQA",
  split="testdev_balanced",
  layouts=(
    Tfds(
      dataset="gqa",
      splits={name: name for name in ("testdev_balanced", "val_balanced", "train_balanced")},
      columns=Columns(
        item_id="example_id", image_key="image/id", keep=("full_answer", "is_balanced")
      ),
    ),
    Tsv(
      files={"testdev_balanced": "GQA_TestDev_Balanced.tsv"},
      columns=Columns(item_id="index", adapt=adapt.listed_answers, keep=("full_answer", "split")),
    ),
    Parquet(
      repo="lmms-lab-encoder/GQA",
      config="testdev_balanced_instructions",
      images="testdev_balanced_images",
      joined=("imageId", "id"),
      splits={"testdev_balanced": "testdev"},
      columns=Columns(item_id="id", image_key="imageId", keep=("fullAnswer",)),
    ),
    Raw(
      read=raw_questions.gqa,
      splits={name: name for name in ("testdev_balanced", "val_balanced", "train_balanced")},
      files=("{split}_questions.json", "images/2354786.jpg, …"),
    ),
  ),
  prompts={
    Family.TRANSFER: transfer(
      "answer en {question}", "exact_match", max_tokens=32, antialias=False
    ),
    Family.MIX: mix("answer en {question}", "exact_match", max_tokens=32),
    Family.LMMS_EVAL: lmms_eval("{question}" + WORD, "exact_match", task="gqa", max_tokens=16),
    Family.VLMEVALKIT: vlmevalkit("{question}" + WORD, "exact_match"),
  },
  paper=(
    PaperRow(
      split="testdev_balanced",
      baseline=68.1,
      sd=0.2,
      repaired=71.1,
      larger={"10B": 68.3, "28B": 68.3},
      at_224=66.2,
    ),
  ),
  sizes={"testdev_balanced": 12_578},
  same_images=("Visual Genome",),
  source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
  licence="CC BY 4.0",
)
