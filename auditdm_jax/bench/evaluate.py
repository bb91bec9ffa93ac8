# SPDX-License-Identifier: Apache-2.0
"""Predict, score, tabulate: three steps, of which only the first needs a model.

1. Predictions are stored as they come, each under a key of model, example and prompt; a second
   run asks only for keys that are missing, and scoring again asks for none.
2. A scorer gives each prediction a score in [0, 1].
3. The table has one row per group of examples, from which rates follow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses

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
  """Scores in [0, 1] of a group's examples, and the image of each, which is their unit."""

  group: str
  scores: tuple[float, ...]
  images: tuple[str, ...]

  @property
  def n(self) -> int:
    return len(self.scores)

  @property
  def rate(self) -> float:
    return sum(self.scores) / self.n


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
  scores: dict[str, float] = {}
  members: dict[str, list[Example]] = {ALL: []}
  for example in examples:
    scores[example.example_id] = float(scorer(predictions[example.example_id], example.references))
    for group in (ALL, *(groups(example) if groups is not None else ())):
      members.setdefault(group, []).append(example)
  rows = tuple(
    GroupScore(
      group=group,
      scores=tuple(scores[e.example_id] for e in own),
      images=tuple(e.image_id for e in own),
    )
    for group, own in members.items()
    if own
  )
  return Table(model=model, rows=rows, scores=scores)
