# SPDX-License-Identifier: Apache-2.0
"""Every layout of every benchmark, made small, with the items that must come out of it."""

from collections.abc import Callable
import dataclasses
import pathlib

from auditdm_jax.bench.specs import BenchmarkSpec, find
from tests.bench.layouts import made_parquet, made_raw, made_tfds, made_tsv
from tests.bench.layouts.shared import Expected


@dataclasses.dataclass(frozen=True)
class Case:
  """A benchmark in one layout.

  Attributes:
    name: of the spec.
    kind: of the layout.
    split: ours.
    make: makes it in a folder, and returns fields of the items; "values" are their pictures.
    text: a column or key that breaks it when it has another name.
  """

  name: str
  kind: str
  split: str
  make: Callable[[pathlib.Path], Expected]
  text: str = "question"

  @property
  def spec(self) -> BenchmarkSpec:
    return find(self.name, where="test")

  def __str__(self) -> str:
    return f"{self.name}-{self.kind}-{self.split}"


TFDS = (
  Case("vqav2", "tfds", "val", made_tfds.vqa, "question_text"),
  Case("okvqa", "tfds", "val", made_tfds.okvqa_tfds),
  Case("gqa", "tfds", "testdev_balanced", made_tfds.gqa_tfds),
  Case("ai2d", "tfds", "test", made_tfds.ai2d_tfds),
  Case("docvqa", "tfds", "val", made_tfds.docvqa_tfds),
  Case("chartqa", "tfds", "test_human", made_tfds.chartqa_tfds),
  Case("pope", "tfds", "popular", made_tfds.pope_tfds),
  Case("refcoco", "tfds", "val", made_tfds.refcoco_tfds, "bbox"),
  Case("cococap", "tfds", "val", made_tfds.cococap_tfds, "captions"),
)
TSV = (
  Case("gqa", "tsv", "testdev_balanced", made_tsv.answers("GQA_TestDev_Balanced.tsv")),
  Case("ai2d", "tsv", "test", made_tsv.choices("AI2D_TEST.tsv")),
  Case("docvqa", "tsv", "val", made_tsv.answers("DocVQA_VAL.tsv")),
  Case("chartqa", "tsv", "test", made_tsv.answers("ChartQA_TEST.tsv", split=["test_human"] * 3)),
  Case("refcoco", "tsv", "val", made_tsv.refcoco_tsv),
  Case("cococap", "tsv", "test", made_tsv.cococap_tsv, "answer"),
  Case("mmbench", "tsv", "dev", made_tsv.mmbench_tsv),
  Case("mmt", "tsv", "val", made_tsv.choices("MMT-Bench_VAL.tsv")),
  Case("seedbench", "tsv", "image", made_tsv.choices("SEEDBench_IMG.tsv")),
  Case("mme", "tsv", "test", made_tsv.mme_tsv),
  Case("mmmu", "tsv", "val", made_tsv.mmmu_tsv),
  Case("mmstar", "tsv", "val", made_tsv.choices("MMStar.tsv", l2_category=["x"] * 3)),
  Case("realworldqa", "tsv", "test", made_tsv.realworldqa_tsv),
  Case("pope", "tsv", "test", made_tsv.pope_tsv),
)
PARQUET = (
  Case("vqav2", "parquet", "val", made_parquet.vqav2_parquet),
  Case("okvqa", "parquet", "val", made_parquet.okvqa_parquet),
  Case("gqa", "parquet", "testdev_balanced", made_parquet.gqa_parquet),
  Case("ai2d", "parquet", "test", made_parquet.ai2d_parquet),
  Case("docvqa", "parquet", "val", made_parquet.docvqa_parquet),
  Case("chartqa", "parquet", "test_human", made_parquet.chartqa_parquet),
  Case("refcoco", "parquet", "val", made_parquet.refcoco_parquet, "answer"),
  Case("cococap", "parquet", "val2014", made_parquet.cococap_parquet, "answer"),
  Case("mmbench", "parquet", "dev-v1.0", made_parquet.mmbench_parquet),
  Case("mmt", "parquet", "val", made_parquet.mmt_parquet),
  Case("seedbench", "parquet", "image", made_parquet.seedbench_parquet),
  Case("mme", "parquet", "test", made_parquet.mme_parquet),
  Case("mmmu", "parquet", "val", made_parquet.mmmu_parquet),
  Case("mmstar", "parquet", "val", made_parquet.mmstar_parquet),
  Case("realworldqa", "parquet", "test", made_parquet.realworldqa_parquet),
  Case("pope", "parquet", "test", made_parquet.pope_parquet),
)
RAW = (
  Case("vqav2", "raw", "val", made_raw.vqav2_raw),
  Case("okvqa", "raw", "val", made_raw.okvqa_raw),
  Case("gqa", "raw", "testdev_balanced", made_raw.gqa_raw),
  Case("ai2d", "raw", "test", made_raw.ai2d_raw, "answerTexts"),
  Case("docvqa", "raw", "val", made_raw.docvqa_raw),
  Case("chartqa", "raw", "test_human", made_raw.chartqa_raw, "query"),
  Case("refcoco", "raw", "val", made_raw.refcoco_raw, "segmentation"),
  Case("refcoco-boxes", "raw", "val", made_raw.refcoco_json, "sentences"),
  Case("cococap", "raw", "val", made_raw.cococap_raw, "sentences"),
  Case("cococap", "raw", "val2017", made_raw.cococap_official, "caption"),
  Case("seedbench", "raw", "image", made_raw.seedbench_raw),
  Case("mme", "raw", "test", made_raw.mme_raw, "\tYes"),
  Case("pope", "raw", "test", made_raw.pope_raw, "text"),
)
