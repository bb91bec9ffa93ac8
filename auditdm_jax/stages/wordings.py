# SPDX-License-Identifier: Apache-2.0
"""Other wordings of questions that are asked again: of the world, or else by a model."""

from collections.abc import Sequence

from auditdm_jax.audit.paraphrase import Paraphraser
from auditdm_jax.audit.verify import Paraphrase
from auditdm_jax.stages.context import Context


def exist(ctx: Context) -> bool:
  """Returns whether somebody words questions otherwise."""
  section = ctx.settings.verify
  return bool(ctx.world.paraphrase or (section.paraphraser and section.paraphrases))


def paraphrase(ctx: Context, questions: Sequence[str]) -> Paraphrase | None:
  """Returns what words these questions otherwise; None if nobody does.

  A model is asked about all of them here, and is gone afterwards.
  """
  section = ctx.settings.verify
  if ctx.world.paraphrase or not exist(ctx):
    return ctx.world.paraphrase
  models = ctx.models
  # The auditor as it was before its training, which may have taught it one question.
  is_auditor = section.paraphraser == "auditor"
  model = models.text_model(models.config.auditor if is_auditor else section.paraphraser)
  found = Paraphraser(model, ctx.settings.seed).reword(questions, section.paraphrases)

  def wording(question: str, k: int) -> str | None:
    own = found.get(question, ())
    return own[k - 1] if k <= len(own) else None

  return wording
