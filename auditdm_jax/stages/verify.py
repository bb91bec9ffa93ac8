# SPDX-License-Identifier: Apache-2.0
"""verify: grades the finds of discovery, names their failure modes, measures the modes afresh.

1. Finds pass the gates and the stability trials (V1). The data set's labels, a model outside the
   ensemble or the oracle says whether the consensus is right and the target wrong (V2).
2. The taxonomy is found on all attempted probes, failures or not, and then frozen.
3. A mode's rate comes from fresh questions about fresh images, never from its discovery set, and
   tells whether the mode is confirmed. Bootstrap samples of the images tell how stable it is.
4. Questions whose answers are known say how many finds are real (`audit.precision`).

Reads:  WORKDIR/discover and WORKDIR/records/train.
Writes: WORKDIR/verify, WORKDIR/fresh, WORKDIR/heldout.
Costs:  at most config.verify.limit finds, each asked about again several times;
        config.taxonomy.fresh.rest + asks fresh probes; config.verify.labelled questions with a
        known answer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import confirm, stability
from auditdm_jax.audit import taxonomy as taxonomy_lib
from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.attempt import Attempt, Failure, Find, unique_attempts, unique_finds
from auditdm_jax.audit.confirm import ModeTest
from auditdm_jax.audit.mode import Mode
from auditdm_jax.audit.outside import Labels, Outside, Outsider, TrueAnswers
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.core import metrics, streams
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import fresh as fresh_lib
from auditdm_jax.stages import grading, labelled
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.fresh import Fresh
from auditdm_jax.stages.results import Discovered, Found, ModeRow, Verified
from auditdm_jax.stages.truth import Truth


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "verify") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> Verified:
  """Grades the finds of this workdir's discovery, and names their modes."""
  if (found := ctx.folder.done("verify", Verified)) is not None:
    return found
  if ctx.folder.done("discover", Discovered) is None:
    raise UserError(f"{ctx.folder.path}: nothing to verify; run the stage discover first")
  ctx.pool("images")  # So that their images are found by id.
  attempts = ctx.folder.attempts()
  failures, funnel, tax, stable = audit(ctx, attempts)
  ctx.folder.append_failures(failures)
  fresh = fresh_lib.draw(ctx, tax, bank=ctx.models.bank(), questions=_questions(failures))
  return ctx.folder.finish(
    "verify",
    Verified(
      funnel=_counted(attempts) | funnel,
      taxonomy=tax,
      modes=tuple(fresh_modes(ctx, tax, fresh, stable)),
      labelled=labelled.find_precision(ctx),
      gates=verify_lib.tally(failures, ctx.settings.verify.required),
      sides=verify_lib.sides(failures),
      fresh=fresh.draw if tax.modes else None,
    ),
  )


def _questions(failures: Iterable[Failure]) -> dict[str, list[str]]:
  """Returns by mode id the questions of its verified finds, the commonest first."""
  asked: dict[str, Counter[str]] = {}
  for failure in failures:
    if failure.mode_id is not None and failure.verified:
      asked.setdefault(failure.mode_id, Counter())[failure.probe.question] += 1
  return {mode_id: [text for text, _ in counts.most_common()] for mode_id, counts in asked.items()}


def _counted(attempts: Iterable[Attempt]) -> dict[str, int]:
  """Returns the first rows of the funnel."""
  n, unique = 0, set()
  for attempt in attempts:
    n += 1
    unique.add(attempt.probe.probe_id)
  return {"attempted": n, "unique": len(unique)}


def audit(
  ctx: Context, attempts: Iterable[Attempt]
) -> tuple[list[Failure], dict[str, int], Taxonomy, dict[str, float]]:
  """Grades (a bounded, seeded choice of) the unique finds and names their modes.

  Returns:
    Failures with mode ids, the funnel, the taxonomy, the stability of its modes by id.
  """
  bank = ctx.models.bank()
  finds = unique_finds(attempts)
  evidence = taxonomy_lib.gather(
    unique_attempts(attempts),
    ctx.seeds,
    config=ctx.settings.taxonomy.modes,
    gallery=ctx.gallery,
  )
  tax = taxonomy_lib.name_modes(evidence)
  stable = stability.stability(evidence, tax, seed=ctx.settings.seed)
  matched = tax.match_attempts(finds, ctx.gallery)
  limit, seed = ctx.settings.verify.limit, ctx.settings.seed
  weights = choose(finds, tax, matched, limit=limit, seed=seed)
  chosen = [finds[i] for i in weights]
  with metrics.Progress(len(chosen), "verify") as progress:
    verification = grading.grade(
      ctx, chosen, bank, outside=_outside(ctx), progress=lambda done, _: progress.update(done)
    )
  modes = tax.match_attempts(verification.failures, ctx.gallery)
  failures = [
    dataclasses.replace(f, mode_id=mode.mode_id if mode else None, weight=weight)
    for f, mode, weight in zip(verification.failures, modes, weights.values(), strict=True)
  ]
  return failures, {"finds": len(finds), **verification.funnel}, tax, stable


def _outside(ctx: Context) -> list[Outside]:
  """Who is asked for V2: first the labels, then the model of the config, or else the oracle."""
  asked: list[Outside] = [Labels(labelled.answers_of(ctx.pool("images")))]
  if spec := ctx.settings.verify.model:
    asked.append(Outsider(ctx.models.bank(ctx.models.open(spec)), ctx.images))
  elif ctx.oracle.exists:
    asked.append(TrueAnswers(ctx.oracle.answer))
  return asked


def choose(
  finds: Sequence[Find],
  tax: Taxonomy,
  modes: Sequence[Mode | None],
  *,
  limit: int,
  seed: int,
) -> dict[int, float]:
  """Chooses at most `limit` finds, evenly over families of modes: one with few keeps them all.

  Args:
    finds: all of them.
    tax: the modes.
    modes: the mode of each find.
    limit: how many are wanted at most.
    seed: of the run.

  Returns:
    By row of `finds`, in order, how many finds of its family it stands for.
  """
  if len(finds) <= limit:
    return dict.fromkeys(range(len(finds)), 1.0)
  groups: dict[str, list[int]] = {}
  for i in streams.rng(seed, "verify").permutation(len(finds)):
    mode = modes[int(i)]
    groups.setdefault(tax.families[mode.mode_id] if mode else "", []).append(int(i))
  taken: list[tuple[int, str]] = []
  turn = 0
  while len(taken) < limit:
    taken += [(g[turn], family) for family, g in groups.items() if turn < len(g)]
    turn += 1
  taken = sorted(taken[:limit])
  chosen = Counter(family for _, family in taken)
  return {i: len(groups[family]) / chosen[family] for i, family in taken}


def fresh_modes(
  ctx: Context, tax: Taxonomy, fresh: Fresh, stable: Mapping[str, float]
) -> list[ModeRow]:
  """Tests each mode on fresh probes, and counts how many of those the oracle confirms.

  Args:
    ctx: the run's config and oracle.
    tax: the modes.
    fresh: the probes.
    stable: stability of the modes by id.
  """
  of = {a.probe.probe_id: a for a in fresh.attempts}
  planned = ctx.settings.taxonomy.fresh.planned
  rows = []
  for mode, test in zip(tax.modes, fresh.tests(ctx, tax), strict=True):
    own = confirm.counted(mode.mode_id, fresh.probes, planned=planned)
    truths = [ctx.oracle.truth(of[p.probe_id].find) for p in own]
    row = _mode_row(mode, test, truths)
    rows.append(
      dataclasses.replace(
        row, stability=stable.get(mode.mode_id), family=tax.families[mode.mode_id]
      )
    )
  return rows


def _mode_row(mode: Mode, test: ModeTest, truths: Sequence[Truth]) -> ModeRow:
  confirmed = sum(t.confirmed for t in truths)
  gaps = Counter(t.gap for t in truths if t.confirmed and t.gap)
  gap, most = max(gaps.items(), key=lambda item: item[1], default=(None, 0))
  low, high = test.ratio_ci95
  return ModeRow(
    mode_id=mode.mode_id,
    name=mode.name,
    definition=mode.definition,
    skills=mode.skills,
    found=Found(mode.k, mode.n),
    fresh=test.fresh if test.fresh.n else None,
    confirmed=confirmed,
    gap=gap,
    gap_share=most / confirmed if confirmed else 0.0,
    status=test.status,
    base=test.base if test.base.n else None,
    ratio=test.ratio,
    ratio_ci95=(low, high if math.isfinite(high) else None),
    q=test.q,
    images=test.images,
    consensus=test.consensus if test.consensus.n else None,
    needs=test.needs,
  )
