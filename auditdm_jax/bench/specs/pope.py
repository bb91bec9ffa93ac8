# SPDX-License-Identifier: Apache-2.0
"""POPE: is there such a thing in the image? Random, popular and adversarial things."""

from auditdm_jax.bench.layouts import raw_questions
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import WORD, lmms_eval, mix, transfer, vlmevalkit

_PARTS = ("random", "popular", "adversarial")

SPEC = BenchmarkSpec(
  name="pope",
  title="POPE",
  split="test",
  layouts=(
    Tfds(
      dataset="pope",
      splits=dict.fromkeys(_PARTS, "test"),
      configs={part: f"pope_{part}" for part in _PARTS},
      columns=Columns(image_key="image/filename", keep=("thing",)),
    ),
    Tsv(
      files={"test": "POPE.tsv"},
      columns=Columns(item_id="index", category="category", keep=("image_path",)),
    ),
    Parquet(
      repo="lmms-lab-encoder/POPE",
      splits={"test": "test"},
      columns=Columns(item_id="id", image_key="image_source", category="category"),
    ),
    Raw(
      read=raw_questions.pope,
      splits={"test": "all", **{part: part for part in _PARTS}},
      files=("coco_pope_{random,popular,adversarial}.json", "val2014/COCO_val2014_….jpg, …"),
    ),
  ),
  prompts={
    # Zero-shot, with the transfer to VQAv2.
    Family.TRANSFER: transfer("{question}", "pope_f1", max_tokens=48, antialias=False),
    Family.MIX: mix("answer en {question}", "pope_f1", max_tokens=48),
    Family.LMMS_EVAL: lmms_eval("{question}" + WORD, "pope_f1", task="pope", strip=True),
    Family.VLMEVALKIT: vlmevalkit("{question}", "pope_f1"),
  },
  paper=(PaperRow(split="test", baseline=85.1, repaired=85.5, larger={"12B": 86.0, "27B": 85.2}),),
  sizes={"test": 9_000, **dict.fromkeys(_PARTS, 3_000)},
  same_images=("COCO",),
  source="https://github.com/AoiDragon/POPE",
  licence="MIT; images by the terms of Flickr, as COCO's",
)
