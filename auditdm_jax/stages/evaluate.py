# SPDX-License-Identifier: Apache-2.0
"""evaluate: the benchmark of held-out images, for target, references and sibling.

Accuracy per skill, per planted gap, on all gaps and on the rest, each with n and its interval.
"""

from collections.abc import Mapping
import pathlib

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit import health
from auditdm_jax.audit.answer import ask
from auditdm_jax.bench import evaluate as bench
from auditdm_jax.bench import specs
from auditdm_jax.core import metrics
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.paging import Paged
from auditdm_jax.stages.talking import Talking
from auditdm_jax.stages.worlds import gap_set
from auditdm_jax.vlm import Vlm

# A gap can be found by an audit if the references are right about it and the target is not.
REFERENCES_KNOW, TARGET_FAILS = 0.85, 0.6
EMPTY = {"k": 0, "n": 0, "rate": None, "ci95": [0.0, 1.0]}


def benchmark(ctx: Context, vlm: Vlm | Paged | Talking) -> bench.Table:
  """The held-out benchmark of one model; rows "all", "gaps", "rest", "skill: …", "gap: …"."""
  vlm, pool = ctx.answering(vlm), ctx.pool("heldout")
  examples = specs.from_pool(pool)
  groups = specs.scenes_groups(gap_set(ctx.settings.world.gaps)) if ctx.world.oracle else None
  progress = metrics.Progress(len(examples), f"benchmark {vlm.name}")

  def answer(chunk):
    features = ctx.cache.features(vlm, [e.image_id for e in chunk], ctx.images)
    questions = [e.question for e in chunk]
    return [a.text for a in ask(vlm, features, questions, config=ctx.settings.bank)]

  table = bench.evaluate(answer, examples, model=vlm.name, groups=groups, on_batch=progress.update)
  progress.close()
  return table


def accuracy_of(table: Mapping[str, dict]) -> dict[str, dict]:
  """{"all", "gaps", "rest"} of `by_group`: what summary.json calls A; a missing group has n = 0."""
  return {name: table.get(name, EMPTY) for name in ("all", "gaps", "rest")}


def by_group(table: bench.Table) -> dict[str, dict]:
  return {row.group: row.to_dict() for row in table.rows}


def auditable(target: Mapping[str, dict], references: list[Mapping[str, dict]]) -> list[str]:
  """Gaps an audit can find: every reference is right about at least `REFERENCES_KNOW` of their
  questions and the target about at most `TARGET_FAILS`.

  Args:
    target: `by_group` of the target.
    references: `by_group` of each reference.
  """
  names = [g.removeprefix("gap: ") for g in target if g.startswith("gap: ")]
  return [
    n for n in names
    if target[f"gap: {n}"]["rate"] <= TARGET_FAILS
    and all(r[f"gap: {n}"]["rate"] >= REFERENCES_KNOW for r in references)
  ]  # fmt: skip


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "evaluate") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> dict:
  """Tables of target, references and sibling, the auditable gaps and the ensemble's health."""
  if (found := ctx.done("evaluate")) is not None:
    return found
  models = [ctx.target, *ctx.references.values(), *([ctx.sibling] if ctx.sibling else [])]
  tables = {m.name: by_group(benchmark(ctx, m)) for m in models}
  result = {
    "tables": tables,
    "auditable": auditable(tables[ctx.target.name], [tables[n] for n in ctx.references]),
    "health": _health(ctx),
  }
  for name, table in tables.items():
    print(line(name, table))
  return ctx.finish("evaluate", result)


def _health(ctx: Context, *, questions: int = 2000) -> dict:
  """Errors the models share, measured on benchmark questions with known answers."""
  examples = specs.from_pool(ctx.pool("heldout"))
  pick = np.random.default_rng(ctx.settings.seed).permutation(len(examples))[:questions]
  chosen = [examples[int(i)] for i in pick]
  bank = ctx.bank()
  answers = bank.answers(
    ctx.images, [e.question for e in chosen], image_ids=[e.image_id for e in chosen], cascade=False
  )
  truth = [e.references[0] for e in chosen]
  return health.health(
    answers, truth, ctx.judge, target=bank.target, references=bank.references
  ).to_dict()


def line(name: str, table: Mapping[str, dict]) -> str:
  parts = []
  for group in ("all", "gaps", "rest"):
    row = table.get(group)
    if row and row["n"]:
      parts.append(
        f"{group} {row['rate']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}] n={row['n']}"
      )
  return f"  {name:16} " + "  ".join(parts)
