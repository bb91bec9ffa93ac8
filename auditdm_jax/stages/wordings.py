# SPDX-License-Identifier: Apache-2.0
"""Other wordings of questions that are asked again: of the world, or else by a model."""

from collections.abc import Sequence
import functools

from auditdm_jax.audit.paraphrase import Paraphraser
from auditdm_jax.audit.verify import Paraphrase
from auditdm_jax.stages.context import Context


class Wordings:
  """Words questions otherwise. A model that does is there as long as this is."""

  def __init__(self, ctx: Context):
    """Takes the run, whose world or whose `verify.paraphraser` has the words."""
    self._ctx = ctx

  @property
  def exist(self) -> bool:
    """Whether somebody words questions otherwise."""
    section = self._ctx.settings.verify
    return bool(self._ctx.world.paraphrase or (section.paraphraser and section.paraphrases))

  def of(self, questions: Sequence[str], count: int) -> Paraphrase | None:
    """Returns what has up to `count` other wordings of these questions; None if nobody does.

    A model is asked about all of them here.
    """
    if self._ctx.world.paraphrase or not self.exist:
      return self._ctx.world.paraphrase
    found = self._paraphraser.reword(questions, count)

    def wording(question: str, k: int) -> str | None:
      own = found.get(question, ())
      return own[k - 1] if k <= len(own) else None

    return wording

  @functools.cached_property
  def _paraphraser(self) -> Paraphraser:
    """Loads the model: the auditor that the round began with, or the one that is named."""
    ctx, models = self._ctx, self._ctx.models
    named = ctx.settings.verify.paraphraser  # A training may teach an auditor one question.
    model = models.text_model(models.config.auditor if named == "auditor" else named)
    return Paraphraser(model, ctx.settings.seed)
