# SPDX-License-Identifier: Apache-2.0
"""ChartQA: questions that people wrote, and questions made from summaries."""

from auditdm_jax.bench.layouts import adapt, raw_documents
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import WORD, lmms_eval, mix, transfer, vlmevalkit

_HUMAN, _AUGMENTED = "test_human", "test_augmented"


def _parquet(split: str, kind: str = "") -> Parquet:
  """One of the two kinds of questions, or both."""
  return Parquet(
    repo="lmms-lab-encoder/ChartQA",
    splits={split: "test"},
    columns=Columns(
      item_id="",
      category="part",
      hashed=True,
      adapt=adapt.chartqa,
      reads=("type",),
      makes=("part",),
    ),
    where=(lambda row: row["type"] == kind) if kind else None,
  )


SPEC = BenchmarkSpec(
  name="chartqa",
  title="ChartQA",
  split=_HUMAN,
  layouts=(
    Tfds(
      dataset="chart_qa",
      splits={_HUMAN: "test", _AUGMENTED: "test", "val_human": "val", "val_augmented": "val"},
      configs={
        name: name.partition("_")[2] for name in (_HUMAN, _AUGMENTED, "val_human", "val_augmented")
      },
      columns=Columns(image_key="image/filename"),
    ),
    Tsv(
      files={
        _HUMAN: "ChartQA_TEST.tsv",
        _AUGMENTED: "ChartQA_TEST.tsv",
        "test": "ChartQA_TEST.tsv",
      },
      only={_HUMAN: _HUMAN, _AUGMENTED: _AUGMENTED},
      columns=Columns(item_id="index", adapt=adapt.chartqa_kit, category="part", makes=("part",)),
    ),
    _parquet(_HUMAN, "human_test"),
    _parquet(_AUGMENTED, "augmented_test"),
    _parquet("test"),
    Raw(
      read=raw_documents.chartqa,
      splits={
        _HUMAN: "test/human",
        _AUGMENTED: "test/augmented",
        "test": "test",
        "val_human": "val/human",
        "val_augmented": "val/augmented",
      },
      files=("test/test_human.json", "test/test_augmented.json", "test/png/41699051005347.png, …"),
    ),
  ),
  prompts={
    Family.TRANSFER: transfer("{question}", "relaxed_accuracy", max_tokens=48, antialias=True),
    Family.MIX: mix("answer en {question}", "relaxed_accuracy", max_tokens=48),
    Family.LMMS_EVAL: lmms_eval(
      "{question}\nAnswer the question with a single word.",
      "relaxed_accuracy",
      task="chartqa",
      max_tokens=16,
    ),
    Family.VLMEVALKIT: vlmevalkit("{question}" + WORD, "relaxed_accuracy"),
  },
  paper=(
    PaperRow(
      split=_HUMAN,
      baseline=54.0,
      sd=0.6,
      repaired=63.8,
      larger={"10B": 66.4, "28B": 61.3},
      at_224=42.0,
      note="the human part; big_vision's number is the mean of test_human and test_augmented",
    ),
  ),
  sizes={_HUMAN: 1_250, _AUGMENTED: 1_250, "test": 2_500},
  source="https://github.com/vis-nlp/ChartQA",
  licence="GPL-3.0, as its repository; charts by the terms of their sites",
)
