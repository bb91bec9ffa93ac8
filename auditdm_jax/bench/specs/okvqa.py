# SPDX-License-Identifier: Apache-2.0
"""OK-VQA: questions that take outside knowledge."""

from auditdm_jax.bench.layouts import raw_questions
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import WORD, lmms_eval, mix, transfer, vlmevalkit

_UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."

SPEC = BenchmarkSpec(
  name="okvqa",
  title="OK-VQA",
  split="val",
  layouts=(
    Tfds(
      dataset="ok_vqa",
      splits={"val": "val", "train": "train"},
      columns=Columns(
        answers="answers",  # Stemmed; big_vision scores against these.
        image_key="image_id",
        category="question_type_readable",
        keep=("answers_raw", "answer_type"),
      ),
    ),
    Parquet(
      repo="lmms-lab-encoder/OK-VQA",
      splits={"val": "val2014"},
      columns=Columns(
        answers="answers", hashed=True, category="question_type", keep=("answer_type",)
      ),
    ),
    Raw(
      read=raw_questions.okvqa,
      splits={"val": "val2014", "train": "train2014"},
      files=(
        "OpenEnded_mscoco_{split}_questions.json",
        "mscoco_{split}_annotations.json",
        "{split}/COCO_{split}_000000297147.jpg, …",
      ),
    ),
  ),
  prompts={
    Family.TRANSFER: transfer(
      "answer en {question}", "okvqa_accuracy", max_tokens=32, antialias=True
    ),
    Family.MIX: mix("answer en {question}", "okvqa_accuracy", max_tokens=32),
    Family.LMMS_EVAL: lmms_eval(
      "{question}" + _UNSURE + WORD, "okvqa_accuracy", task="ok_vqa_val2014"
    ),
    Family.VLMEVALKIT: vlmevalkit("{question}" + WORD, "vqa_accuracy"),
  },
  paper=(
    PaperRow(
      split="val",
      baseline=64.1,
      sd=0.4,
      repaired=69.2,
      larger={"10B": 68.6, "28B": 70.6},
      at_224=64.2,
      note="big_vision's rule: min(1, matches / 3) against stemmed answers",
    ),
  ),
  sizes={"val": 5_046},
  same_images=("COCO",),
  source="https://okvqa.allenai.org/download.html",
  licence="not stated by the publisher; images by the terms of Flickr, as COCO's",
)
