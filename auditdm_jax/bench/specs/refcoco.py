# SPDX-License-Identifier: Apache-2.0
"""RefCOCO: the object that a sentence is about, as a box and as a mask."""

from auditdm_jax.bench.layouts import adapt, raw_coco
from auditdm_jax.bench.layouts.base import Columns
from auditdm_jax.bench.layouts.parquet import Parquet
from auditdm_jax.bench.layouts.prepared import Tfds
from auditdm_jax.bench.layouts.raw import Raw
from auditdm_jax.bench.layouts.tsv import Tsv
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, PaperRow
from auditdm_jax.bench.specs.common import BIG_VISION, OURS, lmms_eval, mix, transfer, vlmevalkit

# lmms-eval's tasks refcoco_bbox_* and refcoco_seg_* are captioning of regions; this is its _rec.
_BOX = (
  "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x,"
  " bottom-right y). All values are floating point numbers bounded between 0 and 1. Please provide"
  " the bounding box coordinate of the region this sentence describes: {question}"
)
_SPLITS = ("val", "testA", "testB")


def _spec(
  name: str, title: str, *, metric: str, variant: str, mix_word: str, paper: tuple[PaperRow, ...]
) -> BenchmarkSpec:
  """RefCOCO scored by masks, or by boxes, which takes no decoder of masks."""
  return BenchmarkSpec(
    name=name,
    title=title,
    split="val",
    layouts=(
      Tfds(
        dataset="ref_coco_bv",
        config="refcoco_unc",
        splits={"val": "validation_flat", "testA": "testA_flat", "testB": "testB_flat"},
        columns=Columns(
          question="sentence",
          answers="",
          item_id="ref",
          image_key="id",
          adapt=adapt.refcoco_flat,
          reads=("objects/bbox", "objects/mask", "objects/refs/sentence", "objects/refs/id"),
          makes=("sentence", "ref"),
          keep=("height", "width"),
        ),
      ),
      Tsv(
        files=dict.fromkeys(_SPLITS, "RefCOCO.tsv"),
        only={name: f"RefCOCO_{name}" for name in _SPLITS},
        part=adapt.refcoco_part,
        columns=Columns(
          item_id="index",
          answers="",
          adapt=adapt.refcoco_kit,
          keep=("split", "category"),
        ),
      ),
      Parquet(
        repo="lmms-lab-encoder/RefCOCO",
        splits={name: name for name in _SPLITS},
        columns=Columns(
          question="answer",
          answers="",
          several="answer",
          image_key="image_id",
          adapt=adapt.refcoco_hub,
          reads=("file_name",),
          makes=("image_id",),
          pixel_box="bbox",
          outline="segmentation",
          keep=("file_name", "iscrowd"),
        ),
      ),
      Raw(
        read=raw_coco.refcoco,
        splits={name: f"refcoco/unc/{name}" for name in _SPLITS},
        files=(
          "refcoco/refs(unc).p or refcoco/refs(unc).json",
          "refcoco/instances.json",
          "train2014/COCO_train2014_000000581857.jpg, … (or train2017/)",
        ),
      ),
    ),
    prompts={
      Family.TRANSFER: transfer(
        "{question}", metric, max_tokens=48, antialias=False, variant=variant
      ),
      Family.MIX: mix(mix_word + " {question}", metric, max_tokens=48, variant=variant),
      Family.LMMS_EVAL: lmms_eval(_BOX, "box_accuracy", task="refcoco_bbox_rec_val"),
      Family.VLMEVALKIT: vlmevalkit("{question}", "box_accuracy"),
    },
    paper=paper,
    sizes={"val": 10_834, "testA": 5_657, "testB": 5_095},
    same_images=("COCO",),
    source="https://github.com/lichengunc/refer",
    licence="Apache-2.0; images by the terms of Flickr, as COCO's",
  )


SPEC = _spec(
  "refcoco",
  "RefCOCO masks",
  metric="mask_iou",  # Made by `scorers.masks.referring_masks` with the decoder's file.
  variant=BIG_VISION,
  mix_word="segment",
  paper=(
    PaperRow(
      split="val",
      baseline=76.3,
      sd=0.1,
      repaired=77.8,
      larger={"10B": 78.2, "28B": 77.3},
      at_224=73.4,
      note="mean IoU of masks",
    ),
  ),
)
BOXES = _spec(
  "refcoco-boxes", "RefCOCO boxes", metric="box_accuracy", variant=OURS, mix_word="detect", paper=()
)
