# SPDX-License-Identifier: Apache-2.0
"""The benchmark that a run makes of its own held-out images, in groups of questions.

It is asked, stored and scored as any other; a run only adds which groups a question belongs to.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

from auditdm_jax.audit.rates import Rate, rate_by_image
from auditdm_jax.bench.items import BenchmarkItem, Provenance
from auditdm_jax.bench.predict import Questions
from auditdm_jax.bench.results import ResultRows
from auditdm_jax.bench.specs import BenchmarkSpec, Family, ItemGroups, MetricName, PromptSpec

ALL = "all"
ENTRY = "heldout"


def questions_of(
  items: Sequence[BenchmarkItem], *, split: str, scorer: str, max_tokens: int
) -> Questions:
  """Returns questions of a pool as a benchmark.

  Args:
    items: see `specs.from_pool`.
    split: of the pool.
    scorer: import path of (prediction, references) -> [0, 1].
    max_tokens: of an answer.
  """
  metric = MetricName(name=scorer, variant="own")
  prompt = PromptSpec(template="{question}", metric=metric, max_tokens=max_tokens, source="own")
  spec = BenchmarkSpec(
    name=ENTRY,
    title="held-out questions",
    layouts=(),
    prompts={Family.MIX: prompt},
    split=split,
    source="the run's own pool",
    licence="the pool's",
  )
  return Questions(
    entry=ENTRY,
    spec=spec,
    items=items,
    split=split,
    total=len(items),
    family=Family.MIX,
    prompt=prompt,
    max_tokens=max_tokens,
  )


def provenance(questions: Questions) -> Provenance:
  """Returns where the questions are from."""
  return Provenance(
    benchmark=ENTRY,
    split=questions.split,
    layout="pool",
    path=pathlib.Path(),
    source=questions.spec.source,
    licence=questions.spec.licence,
  )


def titled(spec: BenchmarkSpec, group: str) -> BenchmarkSpec:
  """Returns the benchmark as tables call one of its groups."""
  return dataclasses.replace(spec, title=group)


def members(items: Sequence[BenchmarkItem], groups: ItemGroups | None) -> dict[str, list[str]]:
  """Returns the ids of each group's items: "all" first, "skill: …" and the like last."""
  found: dict[str, list[str]] = {}
  for item in items:
    for group in (ALL, *(groups(item) if groups is not None else ())):
      found.setdefault(group, []).append(item.item_id)
  return {name: found[name] for name in sorted(found, key=lambda g: (g != ALL, ": " in g, g))}


def rates_of(rows: ResultRows, groups: Mapping[str, Sequence[str]]) -> dict[str, Rate]:
  """Returns the rate of each group, by image."""
  found = {}
  for group, ids in groups.items():
    own = [rows.units[i] for i in ids if i in rows.units]
    if own:
      found[group] = rate_by_image([row.score for row in own], [row.image for row in own])
  return found


def of_group(rows: ResultRows, group: str, ids: Sequence[str]) -> ResultRows | None:
  """Returns the part of a result that is about a group; None if there is nothing of it."""
  units = {i: rows.units[i] for i in ids if i in rows.units}
  if not units:
    return None
  head = dataclasses.replace(
    rows.head,
    asked=dataclasses.replace(rows.head.asked, entry=group),
    units=len(units),
    predictions=sum(row.n for row in units.values()),
    images=len({row.image for row in units.values()}),
    invalid=sum(row.invalid for row in units.values()),
  )
  return ResultRows(head=head, units=units)
