# SPDX-License-Identifier: Apache-2.0
"""What a run has to train on; repair here and exports take their examples from one place."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses

from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rectify.strategy import StrategyConfig, confident
from auditdm_jax.stages import sources
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Bootstrapped, Verified
from auditdm_jax.stages.run import BOOTSTRAP, VERIFY

UNNAMED = "unnamed"  # The group of failures that belong to no mode.


@dataclasses.dataclass(frozen=True)
class Chosen:
  """What a model is trained on.

  Attributes:
    examples: by where they are from: labelled, probes, bootstrapped, random or earlier rounds.
    left_out: failures whose consensus is not sure enough to be a label, by why.
  """

  examples: Mapping[str, Sequence[TrainingExample]]
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def all(self) -> list[TrainingExample]:
    return [e for part in self.examples.values() for e in part]


def by_strategy(ctx: Context, strategy: StrategyConfig) -> Chosen:
  """Returns the examples of a strategy: of each source its share of `curate.size`, if it has them.

  Raises:
    UserError: the stage that makes a source did not run, or there is no labelled set.
  """
  size, left_out = ctx.settings.rectify.curate.size, Counter[str]()
  parts: dict[str, Sequence[TrainingExample]] = {}
  if strategy.labelled:
    parts["labelled"] = sources.labelled_examples(ctx, _part(size, strategy.labelled))
  for name, share, stage, result in (
    ("probes", strategy.probes, VERIFY, Verified),
    ("bootstrapped", strategy.bootstrapped, BOOTSTRAP, Bootstrapped),
  ):
    if share:
      if ctx.folder.done(stage, result) is None:
        raise UserError(f"{ctx.folder.path}: no verified failures; run the stage {stage} first")
      parts[name], fell_out = _from_failures(ctx, stage, strategy, _part(size, share))
      left_out.update(fell_out)
  return Chosen(parts, left_out)


def _part(size: int, share: float) -> int:
  return max(round(size * share), 1)


def from_failures(ctx: Context) -> list[TrainingExample]:
  """Returns examples of the audit's verified failures, evenly over modes and over sources."""
  return by_strategy(ctx, StrategyConfig()).all


def _from_failures(
  ctx: Context, stage: str, strategy: StrategyConfig, size: int
) -> tuple[list[TrainingExample], Mapping[str, int]]:
  """Returns examples of failures whose consensus is sure enough, and why others fell out."""
  ctx.pool("images")  # So that their images are found by id.
  if stage == BOOTSTRAP:
    sources.unlabelled(ctx)
  verified = (f for f in ctx.folder.failures_of(stage) if f.verified)
  sure, left_out = confident(verified, strategy.confidence, ctx.judge, ctx.settings.bank.rule)
  offered = [TrainingExample.of(f, group=f.mode_id or UNNAMED) for f in sure]
  config = dataclasses.replace(ctx.settings.rectify.curate, size=size)
  return curate_lib.curate(offered, config, seed=ctx.settings.seed)[0], left_out
