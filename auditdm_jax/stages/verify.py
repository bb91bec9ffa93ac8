# SPDX-License-Identifier: Apache-2.0
"""verify: grades the finds of discovery, names their failure modes, measures the modes afresh.

1. Finds pass the gates and the stability trials (V1). The data set's labels, a model outside the
   ensemble or the oracle says whether the consensus is right and the target wrong (V2).
2. The taxonomy is found on all attempted probes, failures or not, and then frozen.
3. A mode's rate comes from fresh questions about fresh images, never from its discovery set.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import taxonomy as taxonomy_lib
from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.attempt import Attempt, Failure, Find, unique_attempts, unique_finds
from auditdm_jax.audit.outside import Labels, Outside, Outsider, TrueAnswers
from auditdm_jax.audit.rates import Rate, rate_by_image
from auditdm_jax.audit.taxonomy import Mode, Taxonomy
from auditdm_jax.core import metrics, streams
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import asking, grading
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.pools import InMemoryPool
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
  failures, funnel, tax = audit(ctx, attempts)
  ctx.folder.append_failures(failures)
  unique = len({a.probe.probe_id for a in attempts})
  return ctx.folder.finish(
    "verify",
    Verified(
      funnel={"attempted": len(attempts), "unique": unique, **funnel},
      precision=_precision(ctx, failures) if ctx.oracle.exists else None,
      taxonomy=tax,
      modes=tuple(fresh_modes(ctx, tax)),
      gates=verify_lib.tally(failures, ctx.settings.verify.required),
      sides=verify_lib.sides(failures),
    ),
  )


def _precision(ctx: Context, failures: Sequence[Failure]) -> Rate:
  """Returns the share of verified failures that the oracle confirms, whoever gave their V2."""
  verified = [f for f in failures if f.verified]
  confirmed = [ctx.oracle.truth(f).confirmed for f in verified]
  return rate_by_image(confirmed, [f.probe.origin_id for f in verified])


def audit(
  ctx: Context, attempts: Sequence[Attempt]
) -> tuple[list[Failure], dict[str, int], Taxonomy]:
  """Grades (a bounded, seeded choice of) the unique finds and names their modes.

  Returns:
    Failures with mode ids, the funnel, the taxonomy.
  """
  bank = ctx.models.bank()
  finds = unique_finds(attempts)
  tax = taxonomy_lib.discover_modes(
    unique_attempts(attempts), ctx.seeds, config=ctx.settings.taxonomy.modes
  )
  chosen = choose(finds, tax, limit=ctx.settings.verify.limit, seed=ctx.settings.seed)
  progress = metrics.Progress(len(chosen), "verify")
  verification = grading.grade(
    ctx, chosen, bank, outside=_outside(ctx), progress=lambda done, _: progress.update(done)
  )
  progress.close()
  modes = _match(tax, verification.failures)
  failures = [
    dataclasses.replace(f, mode_id=mode.mode_id if mode else None)
    for f, mode in zip(verification.failures, modes, strict=True)
  ]
  return failures, {"finds": len(finds), **verification.funnel}, tax


def _outside(ctx: Context) -> list[Outside]:
  """Who is asked for V2: first the labels, then the model of the config, or else the oracle."""
  asked: list[Outside] = [Labels(_labels(ctx.pool("images")))]
  if spec := ctx.settings.verify.model:
    asked.append(Outsider(ctx.models.bank(ctx.models.open(spec)), ctx.images))
  elif ctx.oracle.exists:
    asked.append(TrueAnswers(ctx.oracle.answer))
  return asked


def _labels(pool: InMemoryPool) -> Callable[[str, str], tuple[str, ...]]:
  """Returns what the pool answers to a question of its own about one of its images."""
  rows: dict[str, list[int]] = {}  # An image may be there twice.
  for i in range(len(pool)):
    rows.setdefault(pool.image_id(i), []).append(i)

  def given(image_id: str, question: str) -> tuple[str, ...]:
    found, wanted = [], _spelled(question)
    for i in rows.get(image_id, ()):
      for asked, answers in zip(pool.questions(i), pool.answers(i), strict=True):
        found += answers if _spelled(asked) == wanted else ()
    return tuple(found)

  return given


def _spelled(question: str) -> str:
  """A question without case, double blanks and the sign at its end."""
  return " ".join(question.casefold().split()).rstrip(" ?.")


def choose(finds: Sequence[Find], tax: Taxonomy, *, limit: int, seed: int) -> list[Find]:
  """Returns at most `limit` finds, evenly over families of modes: one with few keeps them all."""
  if len(finds) <= limit:
    return list(finds)
  modes = _match(tax, finds)
  groups: dict[str, list[int]] = {}
  for i in streams.rng(seed, "verify").permutation(len(finds)):
    mode = modes[int(i)]
    groups.setdefault(tax.families[mode.mode_id] if mode else "", []).append(int(i))
  taken: list[int] = []
  turn = 0
  while len(taken) < limit:
    taken += [g[turn] for g in groups.values() if turn < len(g)]
    turn += 1
  return [finds[i] for i in sorted(taken[:limit])]


def _match(tax: Taxonomy, finds: Sequence[Find]) -> list[Mode | None]:
  return tax.match([f.probe.question for f in finds], [f.consensus for f in finds])


def fresh_modes(ctx: Context, tax: Taxonomy) -> list[ModeRow]:
  """Measures each mode on fresh probes, and counts how many of those the oracle confirms."""
  attempts = asking.fresh_attempts(ctx) if tax.modes and ctx.settings.pool.fresh else []
  # A fresh probe is asked in full: its consensus is that of its verdict.
  matched = tax.match([a.probe.question for a in attempts], [a.consensus for a in attempts])
  rates = tax.fresh_rates(unique_attempts(attempts))
  truths: dict[str, list[Truth]] = {}
  for attempt, mode in zip(attempts, matched, strict=True):
    if mode:
      truths.setdefault(mode.mode_id, []).append(ctx.oracle.truth(attempt.find))
  return [_mode_row(m, rates[m.mode_id], truths.get(m.mode_id, [])) for m in tax.modes]


def _mode_row(mode: Mode, fresh: Rate, truths: Sequence[Truth]) -> ModeRow:
  confirmed = sum(t.confirmed for t in truths)
  gaps = Counter(t.gap for t in truths if t.confirmed and t.gap)
  gap, most = max(gaps.items(), key=lambda item: item[1], default=(None, 0))
  return ModeRow(
    mode_id=mode.mode_id,
    name=mode.name,
    definition=mode.definition,
    skills=mode.skills,
    found=Found(mode.k, mode.n),
    fresh=fresh if fresh.n else None,
    confirmed=confirmed,
    gap=gap,
    gap_share=most / confirmed if confirmed else 0.0,
  )
