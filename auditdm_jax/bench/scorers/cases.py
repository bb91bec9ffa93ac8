# SPDX-License-Identifier: Apache-2.0
"""Scores one reference case: what a published implementation gives for an answer.

A case is an object of JSON with `benchmark`, `metric`, `prediction`, `references`, optional `args`
and `reference`, the short id of the implementation. Ids begin with the code they come from: `bv_`
big_vision, `lmms_` lmms-eval, `vlmk_` VLMEvalKit. Corpus cases carry lists.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import re
from typing import Any

import numpy as np

from auditdm_jax.bench.scorers import (
  boxes,
  captions,
  masks,
  matches,
  ptb,
  table,
  vqa,
)
from auditdm_jax.bench.scorers.rows import Item, Metric, Region, Scored, Scorer, Variant, macro
from auditdm_jax.core.config import UserError, did_you_mean

Case = Mapping[str, Any]
Score = float | dict[str, float | list[float]]
CaseScorer = Callable[[Case], Score]

_FIELDS = ("benchmark", "metric", "prediction", "references", "reference")
_THRESHOLD = re.compile(r"@(0?\.\d+)")
_IMAGE_SIZE = re.compile(r"image (\d+)x(\d+)")


def score_case(case: Case) -> Score:
  """Scores a case as its `reference` does.

  Args:
    case: see above; other fields, such as `expected`, are not read.

  Returns:
    A number, or numbers by name for a metric of a corpus.

  Raises:
    UserError: a field is missing or unfit, or the implementation is not known for this benchmark.
  """
  missing = [name for name in _FIELDS if name not in case]
  if missing:
    raise UserError(f"a case needs {', '.join(_FIELDS)}; {missing[0]!r} is missing")
  try:
    return _scorer_of(case)(case)
  except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
    where = case.get("id", case["benchmark"])
    raise UserError(
      f"case {where}: its fields do not fit {case['reference']!r}: {error}"
    ) from error


def _scorer_of(case: Case) -> CaseScorer:
  """The implementation's scorer, or the one of its family for this benchmark."""
  reference, benchmark = str(case["reference"]), str(case["benchmark"])
  if reference in IMPLEMENTATIONS:
    return IMPLEMENTATIONS[reference]
  families = _FAMILIES.get(benchmark)
  if families is None:
    hint = did_you_mean(benchmark, _FAMILIES)
    raise UserError(f"no benchmark {benchmark!r}{hint}; known: {', '.join(_FAMILIES)}")
  family = reference.partition("_")[0]
  if family not in families:
    raise UserError(
      f"no implementation {reference!r}{did_you_mean(reference, IMPLEMENTATIONS)} of"
      f" {benchmark}; for it there are {', '.join(families.values())}; all:"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  return IMPLEMENTATIONS[families[family]]


def _answers(scorer: Scorer, case: Case) -> float:
  """The score of one answer, or the mean over a list of answers."""
  predictions, references = case["prediction"], case["references"]
  if isinstance(predictions, str):
    return float(scorer(predictions, references))
  return float(np.mean([scorer(x, y) for x, y in zip(predictions, references, strict=True)]))


def _per_answer(scorer: Callable[..., float], **options: Any) -> CaseScorer:
  return functools.partial(_answers, functools.partial(scorer, **options))


def _big_vision_vqa(case: Case) -> float:
  """One evaluator with three metrics; one reference is compared, several are votes."""
  name = str(case["metric"]).lower()
  if "anls" in name:
    return _answers(functools.partial(matches.anls, variant=Variant.BIG_VISION), case)
  several = not isinstance(case["references"], str)
  if "any" in name or not several:
    return _answers(matches.exact_match, case)
  return _answers(vqa.vote_accuracy, case)


def _choice_item(case: Case) -> Item:
  args, references = case.get("args") or {}, case["references"]
  return Item(
    key=str(case.get("id", "")),
    prediction=_text(case["prediction"]),
    references=(references,) if isinstance(references, str) else tuple(references),
    options=_options(args.get("options", ())),
  )


def _options(options: Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
  """Texts in the order of their letters."""
  if isinstance(options, Mapping):
    return tuple(options[letter] for letter in sorted(options))
  return tuple(options)


def _text(prediction: Any) -> str:
  if not isinstance(prediction, str):
    raise TypeError(f"the prediction is {type(prediction).__name__}, not a text")
  return prediction


def _single(metric: Metric, case: Case) -> float:
  return metric.score([_choice_item(case)])[0].score


def _vlmk_choice(case: Case) -> float:
  """VLMEvalKit's choices; it makes a choice of MMMU's open questions."""
  name = "mmmu_accuracy" if case["metric"] == "open" else "choice_accuracy"
  return _single(table.METRICS[name, Variant.VLMEVALKIT], case)


def _circular(metric: Metric, case: Case) -> float:
  """One group; the options of rotation k are those of rotation 0, moved to the left by k."""
  args = case.get("args") or {}
  options = _options(args.get("options_rotation_0", args.get("options", ())))
  if args.get("rotation", "left by k") != "left by k":
    raise ValueError(f"no rotation {args['rotation']!r}; known: 'left by k'")
  pairs = zip(case["prediction"], case["references"], strict=True)
  items = []
  for k, (prediction, letter) in enumerate(pairs):
    turn = k % len(options) if options else 0
    rotated = options[turn:] + options[:turn]
    item = Item(
      key=str(k), prediction=prediction, references=(letter,), options=rotated, group="group"
    )
    items.append(item)
  return metric.score(items)[0].score


def _mmstar(name: str, case: Case) -> float:
  """Means of scores that are given with their categories."""
  pairs = zip(case["prediction"], case["references"], strict=True)
  rows = [
    Scored(key=str(i), score=float(score), category=group) for i, (score, group) in enumerate(pairs)
  ]
  return float(macro(rows, np.ones((1, len(rows))))[name][0])


def _pope(variant: Variant, names: Mapping[str, str], scale: float, case: Case) -> Score:
  items = _yes_no_items(zip(case["prediction"], case["references"], strict=True))
  metric = table.METRICS["pope_f1", variant]
  values = metric.reduce(metric.score(items)) | {"num": float(len(items)) / scale}
  return {name: scale * values[ours] for name, ours in names.items()}


def _yes_no_items(pairs: Any) -> list[Item]:
  return [
    Item(key=str(i), prediction=_text(said), references=(truth,))
    for i, (said, truth) in enumerate(pairs)
  ]


def _mme(variant: Variant, cognition: str, case: Case) -> Score:
  rows = zip(case["prediction"], case["references"], strict=True)
  items = [
    Item(key=str(i), prediction=_text(said), references=(truth,), group=image, category=category)
    for i, (said, (image, category, truth)) in enumerate(rows)
  ]
  metric = table.METRICS["mme_sum", variant]
  values = metric.reduce(metric.score(items))
  return {"perception": values["perception"], cognition: values["cognition"]}


def _vlmk_yes_no(case: Case) -> Score:
  if case["benchmark"] == "mme":
    return _mme(Variant.VLMEVALKIT, "reasoning", case)
  return _pope(Variant.VLMEVALKIT, _VLMK_POPE, 100.0, case)


def _regions(case: Case) -> list[Region]:
  """The true boxes; the mask of a box is the box in whole pixels."""
  args = case.get("args") or {}
  order = str(args.get("box_order", "ymin"))
  found = [case["references"]] if isinstance(case["prediction"], str) else case["references"]
  size = _IMAGE_SIZE.search(order)
  width, height = (int(size[1]), int(size[2])) if size else (1000, 1000)
  height, width = args.get("image_hw", (height, width))
  return [_region(box, height, width, x_first=order.startswith("x")) for box in found]


def _region(box: Sequence[float], height: int, width: int, *, x_first: bool) -> Region:
  a, b, c, d = (float(x) for x in box)
  y1, x1, y2, x2 = (b, a, d, c) if x_first else (a, b, c, d)
  mask = np.zeros((height, width), bool)
  mask[int(y1 * height) : int(y2 * height), int(x1 * width) : int(x2 * width)] = True
  return Region(box=(y1, x1, y2, x2), height=height, width=width, mask=mask)


def _region_items(case: Case) -> list[Item]:
  said = case["prediction"]
  texts = [said] if isinstance(said, str) else said
  pairs = zip(texts, _regions(case), strict=True)
  return [
    Item(key=str(i), prediction=_text(x), region=region) for i, (x, region) in enumerate(pairs)
  ]


def _thresholds(case: Case) -> tuple[float, ...]:
  return tuple(float(x) for x in _THRESHOLD.findall(str(case["metric"]))) or (0.5,)


def _segmentation(case: Case) -> Score:
  """big_vision's, with a decoder that fills every box, which is how the cases were made."""
  metric = masks.referring_masks(_full_masks, thresholds=_thresholds(case))
  values = metric.reduce(metric.score(_region_items(case)))
  return {name: float(value) for name, value in values.items()}


def _full_masks(codes: np.ndarray) -> np.ndarray:
  return np.ones((len(codes), 64, 64), np.float32)


def _boxes(reader: boxes.BoxReader, overlap: Callable[..., float], case: Case) -> float:
  thresholds, name = _thresholds(case), str(case["metric"]).lower()
  metric = boxes.referring_boxes(reader, thresholds=thresholds, overlap=overlap)
  values = metric.reduce(metric.score(_region_items(case)))
  key = "center" if "center" in name else "iou" if "iou" in name else f"acc@{thresholds[0]:g}"
  return values[key]


def _cider(tokenized: bool, case: Case) -> Score:
  """CIDEr-D with tokens by Java's lines: a line end in a caption moves all that follow.

  Tokens of the predictions that the case gives are taken as they are.
  """
  args = case.get("args") or {}
  said, references = [[x] for x in case["prediction"]], [list(x) for x in case["references"]]
  if tokenized:
    said, references = as_java_lines(said), as_java_lines(references)
    if "tokenized_predictions" in args:
      said = [[x] for x in args["tokenized_predictions"]]
  items = [
    Item(key=str(i), prediction=x[0], references=tuple(y))
    for i, (x, y) in enumerate(zip(said, references, strict=True))
  ]
  scores = [row.score for row in captions.cider(items, tokenizer=captions.words)]
  return {"corpus": float(np.mean(scores)), "per_image": scores}


def as_java_lines(groups: Sequence[Sequence[str]]) -> list[list[str]]:
  """Tokens, joined by blanks, as pycocoevalcap hands them out: one line of its file per caption."""
  text = "\n".join(caption.replace("\n", " ") for group in groups for caption in group)
  lines = iter(ptb.LINE_ENDS.split(text))
  return [[" ".join(ptb.tokens(next(lines))) for _ in group] for group in groups]


_LMMS_POPE = {
  **{"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1_score": "f1"},
  "yes_ratio": "yes_ratio_of_truth",
}
_OFFICIAL_POPE = _LMMS_POPE | {"yes_ratio": "yes_ratio"}
_BV_POPE = {"acc": "accuracy", "valid_percent": "readable", "num": "num"}
_VLMK_POPE = {"f1": "f1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
_LMMS_MMMU = table.METRICS["mmmu_accuracy", Variant.LMMS_EVAL]
_OFFICIAL_MMMU = table.METRICS["mmmu_accuracy", Variant.OFFICIAL]

IMPLEMENTATIONS: Mapping[str, CaseScorer] = {
  "vqa_official": _per_answer(vqa.vqa_accuracy, variant=Variant.OFFICIAL),
  "bv_vqav2": _per_answer(vqa.vqa_accuracy, variant=Variant.BIG_VISION),
  "lmms_vqav2": _per_answer(vqa.vqa_accuracy, variant=Variant.LMMS_EVAL),
  "vlmk_vqa": _per_answer(vqa.vqa_accuracy, variant=Variant.VLMEVALKIT),
  "bv_vqa": _big_vision_vqa,
  "lmms_okvqa": _per_answer(vqa.vote_accuracy, variant=Variant.LMMS_EVAL),
  "lmms_em": _per_answer(matches.exact_match, variant=Variant.LMMS_EVAL),
  "vlmk_acc": _per_answer(matches.exact_match, variant=Variant.VLMEVALKIT),
  "lmms_anls": _per_answer(matches.anls, variant=Variant.LMMS_EVAL),
  "bv_vqa_anls": _per_answer(matches.anls, variant=Variant.BIG_VISION),
  "vlmk_anls": _per_answer(matches.anls, variant=Variant.VLMEVALKIT),
  "anls_pypi": _per_answer(matches.anls, variant=Variant.ANLS),
  "anls_star": _per_answer(matches.anls, variant=Variant.ANLS_STAR),
  "bv_chartqa": _per_answer(matches.relaxed_accuracy, variant=Variant.BIG_VISION),
  "lmms_chartqa": _per_answer(matches.relaxed_accuracy, variant=Variant.LMMS_EVAL),
  "vlmk_relaxed": _per_answer(matches.relaxed_accuracy, variant=Variant.VLMEVALKIT),
  "lmms_ai2d": _per_answer(matches.letter_match),
  "bv_seg": _segmentation,
  "lmms_rec": functools.partial(_boxes, boxes.read_brackets, boxes.lmms_iou),
  "vlmk_refcoco": functools.partial(_boxes, boxes.read_any_numbers, boxes.iou),
  "pycocoevalcap": functools.partial(_cider, True),
  "vlmk_caption": functools.partial(_cider, False),
  "vlmk_circ": functools.partial(_circular, table.METRICS["circular_accuracy", Variant.VLMEVALKIT]),
  "lmms_mmb_static": functools.partial(
    _circular, table.METRICS["circular_accuracy", Variant.LMMS_EVAL]
  ),
  "vlmk_mcq": _vlmk_choice,
  "lmms_mcq_extract": functools.partial(
    _single, table.METRICS["choice_accuracy", Variant.LMMS_EVAL]
  ),
  "lmms_mmt": functools.partial(_single, table.METRICS["mmt_accuracy", Variant.LMMS_EVAL]),
  "lmms_seed": functools.partial(_single, table.METRICS["seed_accuracy", Variant.LMMS_EVAL]),
  "lmms_rwqa": functools.partial(_single, table.METRICS["realworldqa_accuracy", Variant.LMMS_EVAL]),
  "lmms_mmmu": functools.partial(_single, _LMMS_MMMU),
  "lmms_mmmu_eval_open": functools.partial(_single, _OFFICIAL_MMMU),
  "mmmu_official": functools.partial(_single, _OFFICIAL_MMMU),
  "lmms_mmstar": functools.partial(_mmstar, "macro"),
  "micro": functools.partial(_mmstar, "micro"),
  "pope_official": functools.partial(_pope, Variant.OFFICIAL, _OFFICIAL_POPE, 1.0),
  "lmms_pope": functools.partial(_pope, Variant.LMMS_EVAL, _LMMS_POPE, 1.0),
  "bv_pope": functools.partial(_pope, Variant.BIG_VISION, _BV_POPE, 1.0),
  "vlmk_yorn": _vlmk_yes_no,
  "mme_official": functools.partial(_mme, Variant.OFFICIAL, "cognition"),
  "lmms_mme": functools.partial(_mme, Variant.LMMS_EVAL, "cognition"),
}
# Benchmark -> {family: the id that stands for it}.
_FAMILIES: Mapping[str, Mapping[str, str]] = {
  "vqav2": {"vqa": "vqa_official", "bv": "bv_vqav2", "lmms": "lmms_vqav2", "vlmk": "vlmk_vqa"},
  "okvqa": {"vqa": "vqa_official", "bv": "bv_vqa", "lmms": "lmms_okvqa", "vlmk": "vlmk_vqa"},
  "gqa": {"bv": "bv_vqa", "lmms": "lmms_em", "vlmk": "vlmk_acc"},
  "ai2d": {"bv": "bv_vqa", "lmms": "lmms_ai2d", "vlmk": "vlmk_mcq"},
  "docvqa": {"bv": "bv_vqa_anls", "lmms": "lmms_anls", "vlmk": "vlmk_anls", "anls": "anls_pypi"},
  "chartqa": {"bv": "bv_chartqa", "lmms": "lmms_chartqa", "vlmk": "vlmk_relaxed"},
  "refcoco": {"bv": "bv_seg", "lmms": "lmms_rec", "vlmk": "vlmk_refcoco"},
  "cococap": dict.fromkeys(("pycocoevalcap", "bv", "lmms"), "pycocoevalcap")
  | {"vlmk": "vlmk_caption"},
  "mmbench": {"lmms": "lmms_mmb_static", "vlmk": "vlmk_circ"},
  "mmt": {"lmms": "lmms_mmt", "vlmk": "vlmk_mcq"},
  "seedbench": {"lmms": "lmms_seed", "vlmk": "vlmk_mcq"},
  "mme": {"mme": "mme_official", "lmms": "lmms_mme", "vlmk": "vlmk_yorn"},
  "mmmu": {"mmmu": "mmmu_official", "lmms": "lmms_mmmu", "vlmk": "vlmk_mcq"},
  "mmstar": {"lmms": "lmms_mmstar", "vlmk": "micro", "micro": "micro"},
  "realworldqa": {"lmms": "lmms_rwqa", "vlmk": "vlmk_mcq"},
  "pope": {"pope": "pope_official", "bv": "bv_pope", "lmms": "lmms_pope", "vlmk": "vlmk_yorn"},
}
