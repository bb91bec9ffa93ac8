# SPDX-License-Identifier: Apache-2.0
"""MME: two yes-or-no questions a picture, over fourteen categories."""

from auditdm_jax.bench.layouts import raw_choice
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import LMMS_EVAL, WORD, lmms_eval, mix, vlmevalkit

SPEC = BenchmarkSpec(
  name="mme",
  title="MME",
  split="test",
  cluster="group",
  scale=1.0,  # A sum of 100 accuracy + 100 accuracy+ over categories.
  layouts=(
    Tsv(
      files={"test": "MME.tsv"},
      columns=Columns(
        item_id="index", image_key="image_path", category="category", group="image_path"
      ),
    ),
    Parquet(
      repo="lmms-lab-encoder/MME",
      splits={"test": "test"},
      columns=Columns(
        item_id="",  # Both questions of a picture have its question_id.
        image_key="question_id",
        category="category",
        group="question_id",
      ),
    ),
    Raw(
      read=raw_choice.mme,
      splits={"test": ""},
      files=(
        "existence/000000006040.jpg and .txt, or existence/images and questions_answers_YN",
        "all fourteen categories: "
        + ", ".join((*raw_choice.MME_PERCEPTION, *raw_choice.MME_COGNITION)),
      ),
    ),
  ),
  prompts={
    Family.MIX: mix("answer en {question}", "mme_sum", max_tokens=16, variant=LMMS_EVAL),
    Family.LMMS_EVAL: lmms_eval(
      "{question}" + WORD,
      "mme_sum",
      task="mme",
      max_tokens=16,
      drop=" Please answer yes or no.",
      strip=True,
    ),
    Family.VLMEVALKIT: vlmevalkit("{question}", "mme_sum"),
  },
  paper=(
    PaperRow(
      split="test",
      baseline=1376.0,
      repaired=1450.3,
      larger={"12B": 1519.0, "27B": 1529.0},
      note="the sum; the larger models are read off a plot",
    ),
  ),
  sizes={"test": 2_374},
  source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
  licence="for research, by request",
)
