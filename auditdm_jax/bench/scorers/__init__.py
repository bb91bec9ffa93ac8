# SPDX-License-Identifier: Apache-2.0
"""Scores of answers: pure functions of texts, without Java, TensorFlow or torch.

- `rows`: Item, Scored, Metric and Variant, what goes in and out.
- `table`: METRICS, metric name x variant -> Metric.
- `vqa`, `matches`, `choices`, `mmmu`, `yes_no`: from a text to a score.
- `boxes`, `masks`, `seg_vae`: RefCOCO.
- `ptb`, `captions`: COCO captions.
- `cases`: what a published implementation gives for one case.

Published scorers of one benchmark differ from each other; each function says whose rules it
follows. An answer that cannot be read is wrong and counted as invalid, never guessed.
"""

from auditdm_jax.bench.scorers.cases import score_case
from auditdm_jax.bench.scorers.matches import (
  anls,
  edit_distance,
  exact_match,
  letter_match,
  normalized_match,
  relaxed_accuracy,
)
from auditdm_jax.bench.scorers.rows import Item, Metric, Region, Scored, Scorer, Variant, per_answer
from auditdm_jax.bench.scorers.table import METRICS, metric
from auditdm_jax.bench.scorers.vqa import vote_accuracy, vqa_accuracy

__all__ = [
  "METRICS",
  "Item",
  "Metric",
  "Region",
  "Scored",
  "Scorer",
  "Variant",
  "anls",
  "edit_distance",
  "exact_match",
  "letter_match",
  "metric",
  "normalized_match",
  "per_answer",
  "relaxed_accuracy",
  "score_case",
  "vote_accuracy",
  "vqa_accuracy",
]
