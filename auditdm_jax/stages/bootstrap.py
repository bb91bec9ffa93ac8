# SPDX-License-Identifier: Apache-2.0
"""bootstrap: failures on an unlabelled pool, for a strategy that trains on their consensus.

1. Several stored auditors ask about the pool's images; no label of the pool is looked at.
2. Finds that the audit does not have are verified as its own are, except for V2 by an oracle.
3. Those whose consensus is sure enough are kept; `rectify.strategy` says what is sure.
"""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit.attempt import Find, unique_finds
from auditdm_jax.core import metrics, streams
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import grading, sources
from auditdm_jax.stages.asking import Asker
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Bootstrapped, Verified
from auditdm_jax.stages.run import BOOTSTRAP


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, BOOTSTRAP) as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> Bootstrapped:
  """Asks about the unlabelled pool and verifies what is found.

  Raises:
    UserError: the audit's own failures are not verified yet.
  """
  if (found := ctx.folder.done(BOOTSTRAP, Bootstrapped)) is not None:
    return found
  known = ctx.folder.done("verify", Verified)
  if known is None:
    raise UserError(f"{ctx.folder.path}: no verified failures; run the stage verify first")
  ctx.pool("images")  # So that their images are found by id.
  asked = _ask(ctx)
  finds = _new_finds(ctx)
  progress = metrics.Progress(len(finds), BOOTSTRAP)
  graded = grading.grade(
    ctx, finds, ctx.models.bank(), progress=lambda done, _: progress.update(done)
  )
  progress.close()
  # The modes of the audit, so that both sources are balanced alike.
  images = ctx.gallery.terms(known.taxonomy.looks, [f.probe for f in finds])
  questions = [f.probe.question for f in finds]
  modes = known.taxonomy.match(questions, [f.consensus for f in finds], images)
  failures = [
    dataclasses.replace(f, mode_id=mode.mode_id if mode else None)
    for f, mode in zip(graded.failures, modes, strict=True)
  ]
  ctx.folder.append_failures(failures, name=BOOTSTRAP)
  verified = sum(f.verified for f in failures)
  print(f"  {asked:,} probes about unlabelled images, {len(finds):,} finds, {verified:,} verified")
  return ctx.folder.finish(BOOTSTRAP, Bootstrapped(asked, len(finds), verified))


def _ask(ctx: Context) -> int:
  """Asks with each auditor as often, whatever is in the folder already left out."""
  section, pool = ctx.settings.rectify.unlabelled, sources.unlabelled(ctx)
  auditors = checkpoints(ctx)
  done = dict(ctx.folder.batches(BOOTSTRAP))
  asker = None
  for i, step in enumerate(auditors):
    n = section.probes * (i + 1) // len(auditors) - section.probes * i // len(auditors)
    if i in done or not n:
      continue
    asker = asker or Asker(ctx, ctx.models.bank(), pool=pool, full=True)
    walk = ctx.round.walk(BOOTSTRAP, i)
    asked = {a.probe.probe_id for _, batch in ctx.folder.batches(BOOTSTRAP) for a in batch}
    attempts = asker.ask(step, n, arm=f"{BOOTSTRAP}@{step or 0}", walk=walk, asked=asked)
    ctx.folder.append_batch(BOOTSTRAP, i, attempts)
  return sum(len(batch) for _, batch in ctx.folder.batches(BOOTSTRAP))


def checkpoints(ctx: Context) -> list[int | None]:
  """Returns the updates of the auditors that ask: the last one, and earlier ones evenly between."""
  if not ctx.settings.optim.steps:
    return [None]
  stored, wanted = sorted(ctx.folder.auditors()), ctx.settings.rectify.unlabelled.auditors
  last = len(stored) - 1
  places = {last - last * i // max(wanted - 1, 1) for i in range(wanted)}
  return [stored[i] for i in sorted(places)]


def _new_finds(ctx: Context) -> list[Find]:
  """Returns the finds that the audit does not have; at most `verify.limit`, drawn by the seed."""
  known = {a.probe.probe_id for a in ctx.folder.attempts() if a.verdict}
  finds = unique_finds(a for _, batch in ctx.folder.batches(BOOTSTRAP) for a in batch)
  finds = [f for f in finds if f.probe.probe_id not in known]
  order = streams.rng(ctx.settings.seed, BOOTSTRAP, ctx.round.number).permutation(len(finds))
  return [finds[int(i)] for i in sorted(order[: ctx.settings.verify.limit])]
