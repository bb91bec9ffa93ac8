# SPDX-License-Identifier: Apache-2.0
"""evaluate: the benchmark of held-out images, for target, references and sibling.

Accuracy per skill, per planted gap, on all gaps and on the rest, each with n and its interval. The
health of the ensemble (errors that its models share) is measured on the same questions.

Reads:  the held-out images with their questions and answers.
Writes: WORKDIR/evaluate, WORKDIR/heldout, WORKDIR/benchmark.
Costs:  an answer of each model to each held-out question.
"""

from collections.abc import Sequence
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import health
from auditdm_jax.audit.answer import Heard
from auditdm_jax.audit.ask import Answer
from auditdm_jax.audit.precision import LabelPrecision
from auditdm_jax.audit.verdict import unsure_of
from auditdm_jax.stages import labelled, suite
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Evaluated, Groups

# A gap can be found by an audit if the references are right about it and the target is not.
REFERENCES_KNOW, TARGET_FAILS = 0.85, 0.6


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "evaluate") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> Evaluated:
  """Measures target, references and sibling, the auditable gaps and the ensemble's health."""
  if (found := ctx.folder.done("evaluate", Evaluated)) is not None:
    return found
  ctx.models.prepare()
  config, models = ctx.settings.models, ctx.models
  target, references, sibling = models.target, models.references, models.sibling
  asked = [(target, config.target, suite.BASELINE)]
  for folder, reference in zip(config.references, references.values(), strict=True):
    asked.append((reference, folder, f"reference {reference.name}"))
  if sibling:
    asked.append((sibling, config.sibling, suite.LARGER))
  ensemble = (target.name, *references)
  heard: dict[str, dict[tuple[str, str], Answer]] = {name: {} for name in ensemble}
  tables = {}
  for model, folder, role in asked:
    own = None if model is sibling else heard[model.name]
    tables[model.name] = suite.benchmark(ctx, model, folder, role=role, heard=own)
  for name, table in tables.items():
    print(line(name, table))
  return ctx.folder.finish(
    "evaluate",
    Evaluated(
      tables=tables,
      auditable=auditable(tables[target.name], [tables[name] for name in references]),
      health=_health(ctx, heard),
    ),
  )


def auditable(target: Groups, references: Sequence[Groups]) -> tuple[str, ...]:
  """Returns the gaps that an audit can find.

  In these every reference is right about at least `REFERENCES_KNOW` of the questions and the target
  about at most `TARGET_FAILS`.
  """
  gaps = [group for group in target if group.startswith("gap: ")]
  return tuple(
    group.removeprefix("gap: ")
    for group in gaps
    if target[group].value <= TARGET_FAILS
    and all(group in r and r[group].value >= REFERENCES_KNOW for r in references)
  )


def _health(ctx: Context, heard: Heard) -> health.Health:
  """Measures errors that the models share, on held-out questions with known answers.

  They are questions of the benchmark too, so that `heard` has the answers.
  """
  attempts = labelled.heldout_attempts(ctx, heard=heard)
  truth = labelled.answers_of(ctx.pool("heldout"))
  asked = [a for a in attempts if a.verdict]
  target, references = ctx.models.target.name, list(ctx.models.references)
  return health.health(
    {
      name: [(a.verdict.answers[name] or "") if a.verdict else "" for a in asked]
      for name in (target, *references)
    },
    [truth(a.probe.image_id, a.probe.question) for a in asked],
    ctx.judge,
    target=target,
    references=references,
    questions=[a.probe.question for a in asked],
    images=[a.probe.origin_id for a in asked],
    unsure=[unsure_of(a.verdict.kinds) if a.verdict else () for a in asked],
  )


def labels(examples: int, found: Sequence[LabelPrecision]) -> str:
  """Returns how many examples there are and how many of their labels are right, as text."""
  parts = [
    f"{x.right.value:.3f} [{x.right.ci95[0]:.3f}, {x.right.ci95[1]:.3f}] n={x.right.n} by {x.by}"
    for x in found
  ]
  told = "; ".join(parts) or "not known, since nobody knows the answers"
  return f"{examples:,} examples; consensus labels that are right: {told}"


def line(name: str, table: Groups) -> str:
  """Returns a model's accuracy as a line of text."""
  parts = []
  for group in ("all", "gaps", "rest"):
    r = table.get(group)
    if r and r.n:
      parts.append(f"{group} {r.value:.3f} [{r.ci95[0]:.3f}, {r.ci95[1]:.3f}] n={r.n}")
  return f"  {name:16} " + "  ".join(parts)
