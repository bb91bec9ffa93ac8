# SPDX-License-Identifier: Apache-2.0
"""How finds are graded in a run: those of the sweep, of a search, and of a second round."""

from collections.abc import Callable, Sequence
import functools

from auditdm_jax.audit import leaks
from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt, Find, unique_finds
from auditdm_jax.audit.duplicates import DuplicateIndex
from auditdm_jax.audit.outside import Outside
from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.verify import Verification
from auditdm_jax.stages import edits
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.wordings import Wordings


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
  graded = grade(ctx, unique_finds(attempts), bank).failures
  return ctx.oracle.success(attempts, verified={f.probe.probe_id for f in graded if f.verified})


def grade(
  ctx: Context,
  finds: Sequence[Find],
  bank: ModelBank,
  *,
  outside: Sequence[Outside] = (),
  progress: Callable[[int, int], None] | None = None,
) -> Verification:
  """Verifies finds with the gates, other wordings and limits of the config.

  Args:
    ctx: the run's config and images.
    finds: what is graded.
    bank: the models that were asked.
    outside: who is asked for V2, in order.
    progress: is told (done, of).
  """
  probes, section = [f.probe for f in finds], ctx.settings.verify
  local = ctx.settings.images.client.local_edits
  return verify_lib.verify(
    finds,
    bank,
    measured=edits.measure(ctx, bank, probes) if local else edits.unmeasured(ctx, probes),
    images=ctx.images,
    paraphrase=Wordings(ctx).of([p.question for p in probes], section.paraphrases),
    outside=outside,
    config=section,
    benchmark=_benchmarks(ctx.settings.benchmark.leaks),
    progress=progress,
  )


@functools.lru_cache(maxsize=1)
def _benchmarks(files: tuple[str, ...]) -> DuplicateIndex | None:
  """Returns the items that finds must not repeat; None = the gate is not measured."""
  return leaks.joined([leaks.load(file) for file in files]).duplicates() if files else None
