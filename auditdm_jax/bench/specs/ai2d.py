# SPDX-License-Identifier: Apache-2.0
"""AI2D: multiple choice about science diagrams."""

from auditdm_jax.bench.layouts import raw_documents
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import (
  LETTER,
  lmms_eval,
  mix_choice,
  transfer,
  vlmevalkit_choice,
)

_ABCD = ("A", "B", "C", "D")

SPEC = BenchmarkSpec(
  name="ai2d",
  title="AI2D",
  split="test",
  layouts=(
    Tfds(
      dataset="ai2d",
      splits={"test": "test", "train": "train"},
      columns=Columns(
        item_id="id",
        answers="label",
        options=("possible_answers",),
        image_key="image_name",
        keep=("abc_label",),
      ),
    ),
    Tsv(
      files={"test": "AI2D_TEST.tsv", "test_no_mask": "AI2D_TEST_NO_MASK.tsv"},
      columns=Columns(item_id="index", options=_ABCD, category="category"),
    ),
    Parquet(
      repo="lmms-lab-encoder/ai2d",
      splits={"test": "test"},
      columns=Columns(item_id="", options=("options",), hashed=True),
    ),
    Raw(
      read=raw_documents.ai2d,
      splits={"test": "test", "train": "train"},
      files=(
        "ai2d_test_ids.csv",
        "ai2d/questions/0.png.json, …",
        "ai2d/annotations/0.png.json, …",
        "ai2d/images/0.png, …",
      ),
    ),
  ),
  prompts={
    # Two blanks after "en", and a blank, a tab and a blank between options: big_vision's.
    Family.TRANSFER: transfer(
      "answer en  {question} choose from: {options}",
      "exact_match",
      max_tokens=128,
      antialias=False,
      antialias_train=True,
    ),
    Family.MIX: mix_choice(),
    Family.LMMS_EVAL: lmms_eval(
      "{question}\n{options}" + LETTER, "letter_match", task="ai2d", max_tokens=16, chooses=True
    ),
    Family.VLMEVALKIT: vlmevalkit_choice("choice_accuracy"),
  },
  paper=(
    PaperRow(
      split="test",
      baseline=76.0,
      sd=0.2,
      repaired=85.3,
      larger={"10B": 84.4, "28B": 84.6},
      at_224=74.7,
    ),
  ),
  sizes={"test": 3_088},
  source="https://allenai.org/data/diagrams",
  licence="CC BY-SA 4.0",
)
