# SPDX-License-Identifier: Apache-2.0
"""Predict, score, tabulate: three steps, of which only the first needs a model.

1. Predictions are stored as they come, each under a key of model, example and prompt; a second
   run asks only for keys that are missing, and scoring again asks for none.
2. A scorer gives each prediction a score in [0, 1].
3. The table has one row per group of examples, with an interval.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from auditdm_jax.bench import scorers
from auditdm_jax.core import jsonio
from auditdm_jax.core.records import Records

ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One benchmark question.

  Attributes:
    example_id: unique in its benchmark.
    image: place of the image in the pool it comes from.
    image_id: hash of the pixels; questions about one image are not independent.
    question: what the model is asked.
    references: accepted answers.
  """

  example_id: str
  image: int
  image_id: str
  question: str
  references: tuple[str, ...]


AnswerFn = Callable[[Sequence[Example]], Sequence[str]]
Groups = Callable[[Example], Iterable[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupScore:
  """Mean score of a group: `k` is the sum of scores, a whole number for scores of 0 and 1."""

  group: str
  k: float
  n: int
  ci95: tuple[float, float]

  @property
  def rate(self) -> float:
    return self.k / self.n

  def to_dict(self) -> dict[str, Any]:
    k = int(self.k) if float(self.k).is_integer() else self.k
    return {"k": k, "n": self.n, "rate": self.rate, "ci95": list(self.ci95)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Rows by group, "all" first, and the score of every example for paired comparisons."""

  model: str
  rows: tuple[GroupScore, ...]
  scores: Mapping[str, float]

  def row(self, group: str) -> GroupScore:
    by_name = {row.group: row for row in self.rows}
    if group not in by_name:
      raise KeyError(f"no group {group!r}; groups: {', '.join(by_name)}")
    return by_name[group]

  def rates(self, *groups: str) -> dict[str, dict[str, Any]]:
    """{group: {"k", "n", "rate", "ci95"}} of the named groups, or of all; none of empty ones."""
    return {row.group: row.to_dict() for row in self.rows if not groups or row.group in groups}


def evaluate(
  answer_fn: AnswerFn,
  examples: Sequence[Example],
  *,
  model: str,
  scorer: scorers.Scorer = scorers.normalized_match,
  groups: Groups | None = None,
  records: Records | None = None,
  batch_size: int = 1024,
  on_batch: Callable[[int], None] | None = None,
) -> Table:
  """Asks a model every question and returns its table.

  Args:
    answer_fn: examples -> one text each, in order.
    examples: the benchmark; ids must be unique.
    model: name and revision; predictions of another model are not taken for this one's.
    scorer: (prediction, references) -> [0, 1].
    groups: names of the groups that an example belongs to, in addition to "all".
    records: where predictions are kept and found again; nothing is kept if None.
    batch_size: predictions per call and per write.
    on_batch: told the number of examples that are answered so far.
  """
  predictions = predict(
    answer_fn, examples, model=model, records=records, batch_size=batch_size, on_batch=on_batch
  )
  return score(predictions, examples, model=model, scorer=scorer, groups=groups)


def predict(
  answer_fn: AnswerFn,
  examples: Sequence[Example],
  *,
  model: str,
  records: Records | None = None,
  batch_size: int = 1024,
  on_batch: Callable[[int], None] | None = None,
) -> dict[str, str]:
  """Returns {example id: prediction}, asking only for what `records` does not hold."""
  keys = {example.example_id: _key(model, example) for example in examples}
  if len(keys) != len(examples):
    raise ValueError("examples have repeated ids")
  known = {}
  if records is not None:
    known = {row["key"]: row["prediction"] for row in records.read("predictions")}
  missing = [example for example in examples if keys[example.example_id] not in known]
  for start in range(0, len(missing), batch_size):
    batch = missing[start : start + batch_size]
    texts = list(answer_fn(batch))
    if len(texts) != len(batch):
      raise ValueError(f"{model} gave {len(texts)} answers to {len(batch)} questions")
    rows = [
      {
        "key": keys[example.example_id],
        "model": model,
        "example_id": example.example_id,
        "image_id": example.image_id,
        "question": example.question,
        "prediction": text,
      }
      for example, text in zip(batch, texts, strict=True)
    ]
    known |= {row["key"]: row["prediction"] for row in rows}
    if records is not None:
      records.append("predictions", rows)
    if on_batch is not None:
      on_batch(len(examples) - len(missing) + start + len(batch))
  return {example_id: known[key] for example_id, key in keys.items()}


def _key(model: str, example: Example) -> str:
  return jsonio.canonical_hash([model, example.example_id, example.image_id, example.question])


def score(
  predictions: Mapping[str, str],
  examples: Sequence[Example],
  *,
  model: str,
  scorer: scorers.Scorer = scorers.normalized_match,
  groups: Groups | None = None,
) -> Table:
  """Scores stored predictions; rows are in order of first appearance, "all" first."""
  scores, members = {}, {ALL: []}
  for example in examples:
    value = float(scorer(predictions[example.example_id], example.references))
    scores[example.example_id] = value
    members[ALL].append(value)
    for group in groups(example) if groups is not None else ():
      members.setdefault(group, []).append(value)
  rows = tuple(_row(group, np.asarray(values)) for group, values in members.items() if values)
  return Table(model=model, rows=rows, scores=scores)


def _row(group: str, values: np.ndarray) -> GroupScore:
  """`values` f64[N]. Wilson's interval for scores of 0 and 1, the mean's normal one for others,
  of which one alone says nothing.
  """
  k, n = float(values.sum()), len(values)
  if np.isin(values, (0.0, 1.0)).all():
    interval = stats.binomtest(int(k), n).proportion_ci(method="wilson")
    low, high = float(interval.low), float(interval.high)
  elif n == 1:
    low, high = 0.0, 1.0
  else:
    half = stats.norm.ppf(0.975) * float(values.std(ddof=1)) / n**0.5
    low, high = max(k / n - half, 0.0), min(k / n + half, 1.0)
  return GroupScore(group=group, k=k, n=n, ci95=(low, high))
