# SPDX-License-Identifier: Apache-2.0
"""The table of metrics: name x variant -> how to score.

A benchmark names one row. A metric that needs a file of the user (masks) or a choice of the run
(captions of a part) is made by `masks.referring_masks` and `captions.metric` instead.
"""

from collections.abc import Mapping, Sequence
import functools
from types import MappingProxyType

import numpy as np

from auditdm_jax.bench.scorers import boxes, captions, choices, matches, mmmu, vqa, yes_no
from auditdm_jax.bench.scorers.rows import (
  Metric,
  Scored,
  Values,
  Variant,
  category_means,
  macro,
  mean_and_categories,
  micro,
  per_answer,
  weighted_mean,
)
from auditdm_jax.core import config as config_lib

HUMAN, AUGMENTED = "human", "augmented"

_OFFICIAL, _LMMS, _VLMK, _BV, _OURS = (
  Variant.OFFICIAL,
  Variant.LMMS_EVAL,
  Variant.VLMEVALKIT,
  Variant.BIG_VISION,
  Variant.OURS,
)


def chartqa_parts(rows: Sequence[Scored], weights: np.ndarray) -> Values:
  """{"average", "overall", "human", "augmented"} of relaxed accuracies.

  The average is the unweighted mean of the parts that are there, as big_vision reports it; overall
  is the mean over questions, as lmms-eval has it.
  """
  parts = category_means(rows, weights)
  average = np.nanmean(np.stack(list(parts.values())), axis=0)
  return {"average": average, "overall": weighted_mean(rows, weights), **parts}


_TABLE: dict[tuple[str, Variant], Metric] = {
  **{
    ("vqa_accuracy", variant): per_answer(
      functools.partial(vqa.vqa_accuracy, variant=variant), reduction=mean_and_categories
    )
    for variant in (_OFFICIAL, _LMMS, _VLMK, _BV)
  },
  **{
    ("okvqa_accuracy", variant): per_answer(functools.partial(vqa.vote_accuracy, variant=variant))
    for variant in (_OFFICIAL, _LMMS, _BV)
  },
  **{
    ("exact_match", variant): per_answer(functools.partial(matches.exact_match, variant=variant))
    for variant in (_BV, _LMMS, _VLMK)
  },
  ("exact_match", _OURS): per_answer(matches.normalized_match),
  ("letter_match", _LMMS): per_answer(matches.letter_match),
  **{
    ("anls", variant): per_answer(functools.partial(matches.anls, variant=variant))
    for variant in (_OFFICIAL, _LMMS, _VLMK, _BV, Variant.ANLS, Variant.ANLS_STAR)
  },
  **{
    ("relaxed_accuracy", variant): per_answer(
      functools.partial(matches.relaxed_accuracy, variant=variant), reduction=chartqa_parts
    )
    for variant in (_OFFICIAL, _LMMS, _VLMK, _BV)
  },
  ("box_accuracy", _OURS): boxes.referring_boxes(boxes.read_loc),
  ("box_accuracy", _BV): boxes.referring_boxes(boxes.read_loc_and_seg),
  ("box_accuracy", _LMMS): boxes.referring_boxes(boxes.read_brackets, overlap=boxes.lmms_iou),
  ("box_accuracy", _VLMK): boxes.referring_boxes(boxes.read_any_numbers),
  ("cider", _OFFICIAL): captions.metric(),
  ("cider", _VLMK): captions.metric(tokenizer=captions.words),
  ("cider_subset", _OFFICIAL): captions.metric(label="cider_subset"),
  ("circular_accuracy", _VLMK): choices.circular(choices.vlmevalkit_letter),
  ("circular_accuracy", _LMMS): choices.circular(choices.mmbench_letter),
  ("choice_accuracy", _VLMK): choices.choice(choices.vlmevalkit_letter),
  ("choice_accuracy", _LMMS): choices.choice(choices.lmms_letter),
  ("mmstar_accuracy", _LMMS): choices.choice(choices.lmms_letter, reduction=macro),
  ("mmstar_accuracy", _VLMK): choices.choice(choices.vlmevalkit_letter, reduction=micro),
  ("seed_accuracy", _LMMS): choices.choice(choices.first_character),
  ("mmt_accuracy", _LMMS): choices.choice(choices.mmt_letter),
  ("realworldqa_accuracy", _LMMS): choices.choice_or_text(choices.lmms_letter),
  **{
    (name, _VLMK): choices.choice(choices.vlmevalkit_letter)
    for name in ("seed_accuracy", "mmt_accuracy", "realworldqa_accuracy")
  },
  ("mmmu_accuracy", _OFFICIAL): mmmu.metric(_OFFICIAL),
  ("mmmu_accuracy", _LMMS): mmmu.metric(_LMMS),
  ("mmmu_accuracy", _VLMK): mmmu.metric(_VLMK),
  ("pope_f1", _OFFICIAL): yes_no.pope(yes_no.negation_words, valid=yes_no.says_either),
  ("pope_f1", _LMMS): yes_no.pope(yes_no.bare_word, ignores_unread=True),
  ("pope_f1", _VLMK): yes_no.pope(yes_no.one_of_the_words),
  ("pope_f1", _BV): yes_no.pope(yes_no.bare_word_as_is),
  ("mme_sum", _OFFICIAL): yes_no.mme(yes_no.first_four),
  ("mme_sum", _LMMS): yes_no.mme(yes_no.first_four_or_initial),
  ("mme_sum", _VLMK): yes_no.mme(yes_no.one_of_the_words),
}
METRICS: Mapping[tuple[str, Variant], Metric] = MappingProxyType(_TABLE)


def metric(name: str, variant: str | Variant) -> Metric:
  """Returns a row of the table.

  Raises:
    UserError: there is no such name, or not in this variant.
  """
  variants = {v: METRICS[n, v] for n, v in METRICS if n == name}
  if not variants:
    names = sorted({n for n, _ in METRICS})
    hint = config_lib.did_you_mean(name, names)
    raise config_lib.UserError(f"no metric {name!r}{hint}; known: {', '.join(names)}")
  for known, found in variants.items():
    if known == variant:
      return found
  raise config_lib.UserError(
    f"metric {name} has no variant {str(variant)!r}; it has {', '.join(variants)}"
  )
