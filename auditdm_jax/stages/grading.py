# SPDX-License-Identifier: Apache-2.0
"""Search success of attempts that are not the sweep's: those of a search, or of a second round."""

from collections.abc import Sequence

from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt, unique_finds
from auditdm_jax.audit.rates import Rate
from auditdm_jax.stages import edits, wordings
from auditdm_jax.stages.context import Context


def success(ctx: Context, attempts: Sequence[Attempt], *, bank: ModelBank) -> Rate:
  """Returns the share of real failures among attempts.

  The oracle says which finds these are. Without an oracle, every find is verified.

  Args:
    ctx: the run's images and oracle.
    attempts: what was asked.
    bank: the models that were asked.
  """
  if ctx.oracle.exists:
    return ctx.oracle.success(attempts)
  finds = unique_finds(attempts)
  probes = [f.probe for f in finds]
  local = ctx.settings.images.client.local_edits
  graded = verify_lib.verify(
    finds,
    bank,
    measured=edits.measure(ctx, bank, probes) if local else edits.unmeasured(ctx, probes),
    images=ctx.images,
    paraphrase=wordings.paraphrase(ctx, [f.probe.question for f in finds]),
    config=ctx.settings.verify,
  ).failures
  return ctx.oracle.success(attempts, verified={f.probe.probe_id for f in graded if f.verified})
