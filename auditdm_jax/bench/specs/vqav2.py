# SPDX-License-Identifier: Apache-2.0
"""VQAv2: ten annotators a question, photographs of COCO."""

from auditdm_jax.bench.layouts import raw_questions
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import WORD, lmms_eval, mix, transfer, vlmevalkit

SPEC = BenchmarkSpec(
  name="vqav2",
  title="VQAv2",
  split="minival",
  layouts=(
    Tfds(
      dataset="vqa",
      splits={
        "minival": "validation[-10240:]",
        "val": "validation",
        "train": "train",
        "test-dev": "test-dev",
        "test": "test",
      },
      columns=Columns(
        question="question_text",
        answers="answers",
        image_key="image/id",
        category="answer_type",
        keep=("question_type",),
      ),
    ),
    Parquet(
      repo="lmms-lab-encoder/VQAv2",
      splits={"val": "validation", "test-dev": "testdev", "test": "test"},
      columns=Columns(
        answers="answers", image_key="image_id", category="answer_type", keep=("question_type",)
      ),
    ),
    Raw(
      read=raw_questions.vqav2,
      splits={"minival": "minival", "val": "val2014", "train": "train2014"},
      files=(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
        "val2014/COCO_val2014_000000000042.jpg, … (train2014 for train)",
      ),
    ),
  ),
  prompts={
    Family.TRANSFER: transfer(
      "answer en {question}", "vqa_accuracy", max_tokens=32, antialias=True
    ),
    Family.MIX: mix("answer en {question}", "vqa_accuracy", max_tokens=32),
    Family.LMMS_EVAL: lmms_eval(
      "{question}" + WORD, "vqa_accuracy", task="vqav2_val", max_tokens=16
    ),
    Family.VLMEVALKIT: vlmevalkit("{question}" + WORD, "vqa_accuracy"),
  },
  paper=(
    PaperRow(
      split="minival",
      baseline=84.8,
      sd=0.2,
      repaired=86.7,
      larger={"10B": 85.8, "28B": 85.8},
      at_224=83.0,
    ),
  ),
  sizes={"minival": 10_240, "val": 214_354},
  same_images=("COCO",),
  source="https://visualqa.org/download.html",
  licence="questions and answers CC BY 4.0; images by the terms of Flickr, as COCO's",
)
