# SPDX-License-Identifier: Apache-2.0
"""COCO captions, by the split of Karpathy."""

from auditdm_jax.bench.layouts import adapt, raw_coco
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import OFFICIAL, lmms_eval, mix, transfer, vlmevalkit

SPEC = BenchmarkSpec(
  name="cococap",
  title="COCO captions",
  split="val",
  layouts=(
    Tfds(
      dataset="coco_captions",
      config="2014",
      splits={"val": "val", "test": "test", "train": "train", "restval": "restval"},
      columns=Columns(
        question="", answers="captions/text", item_id="image/id", image_key="image/id"
      ),
    ),
    Tsv(
      files={"test": "COCO_VAL.tsv"},
      columns=Columns(question="", item_id="index", adapt=adapt.listed_answers),
    ),
    Parquet(
      repo="lmms-lab-encoder/COCO-Caption",
      splits={"val2014": "val"},
      columns=Columns(question="", image_key="file_name"),
    ),
    Raw(
      read=raw_coco.captions,
      splits={"val": "val", "test": "test", "val2014": "val2014", "val2017": "val2017"},
      files=(
        "dataset_coco.json (Karpathy's), or captions_val2014.json for val2014",
        "val2014/COCO_val2014_000000000042.jpg, …",
      ),
    ),
  ),
  prompts={
    Family.TRANSFER: transfer(
      "caption en", "cider", max_tokens=32, antialias=False, beam=2, variant=OFFICIAL
    ),
    Family.MIX: mix("caption en", "cider", max_tokens=32, variant=OFFICIAL),
    Family.LMMS_EVAL: lmms_eval(
      "Describe the image briefly.",
      "cider",
      task="coco_karpathy_val",
      max_tokens=64,
      variant=OFFICIAL,
    ),
    Family.VLMEVALKIT: vlmevalkit(
      "Please describe this image in general. Directly provide the description,"
      ' do not include prefix like "This image depicts". ',
      "cider",
    ),
  },
  paper=(
    PaperRow(
      split="val",
      baseline=143.4,
      sd=0.4,
      repaired=145.1,
      larger={"10B": 145.0, "28B": 145.2},
      at_224=141.3,
      note="CIDEr x 100; a part of the split has other document frequencies",
    ),
  ),
  sizes={"val": 5_000, "test": 5_000},
  same_images=("COCO",),
  source="https://cs.stanford.edu/people/karpathy/deepimagesent/ and https://cocodataset.org",
  licence="captions CC BY 4.0; images by the terms of Flickr",
)
