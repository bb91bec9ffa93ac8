# SPDX-License-Identifier: Apache-2.0
"""DocVQA: questions about scanned documents."""

from auditdm_jax.bench.layouts import adapt, raw_documents
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import WORD, lmms_eval, mix, transfer, vlmevalkit

SPEC = BenchmarkSpec(
  name="docvqa",
  title="DocVQA",
  split="val",
  layouts=(
    Tfds(
      dataset="doc_vqa",
      splits={"val": "val", "train": "train", "test": "test"},
      columns=Columns(answers="answers", image_key="image/filename"),
    ),
    Tsv(
      files={"val": "DocVQA_VAL.tsv", "test": "DocVQA_TEST.tsv"},
      columns=Columns(item_id="index", adapt=adapt.listed_answers),
    ),
    Parquet(
      repo="lmms-lab-encoder/DocVQA",
      config="DocVQA",
      splits={"val": "validation", "test": "test"},
      columns=Columns(
        item_id="questionId",
        answers="answers",
        image_key="page",
        category="question_types",
        adapt=adapt.docvqa,
        reads=("ucsf_document_id", "ucsf_document_page_no"),
        makes=("page",),
        keep=("docId",),
      ),
    ),
    Raw(
      read=raw_documents.docvqa,
      splits={"val": "val", "train": "train", "test": "test"},
      files=(
        "{split}_v1.0_withQT.json or {split}_v1.0.json",
        "{split}/documents/xnbl0037_1.png, …",
      ),
    ),
  ),
  prompts={
    Family.TRANSFER: transfer("{question}", "anls", max_tokens=32, antialias=True),
    Family.MIX: mix("answer en {question}", "anls", max_tokens=32),
    Family.LMMS_EVAL: lmms_eval("{question}" + WORD, "anls", task="docvqa_val", max_tokens=32),
    Family.VLMEVALKIT: vlmevalkit("{question}" + WORD, "anls"),
  },
  paper=(
    PaperRow(
      split="val",
      baseline=73.6,
      sd=0.3,
      repaired=77.5,
      larger={"10B": 76.6, "28B": 76.1},
      at_224=39.9,
    ),
  ),
  sizes={"val": 5_349},
  source="https://rrc.cvc.uab.es/?ch=17&com=downloads",
  licence="for research, after registration with the Robust Reading Competition",
)
