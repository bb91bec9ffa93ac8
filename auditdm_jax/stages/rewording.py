# SPDX-License-Identifier: Apache-2.0
"""Disagreements of the sweep are asked once more in other words, before anything learns of them.

A search looks where disagreements are, so it is drawn to a question that references or target only
stumble over as it is worded; its neighbours and children then are more of the same. Ours.
"""

from collections.abc import Sequence
import dataclasses

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Again, Attempt, Find
from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Verdict
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.wordings import Wordings

_CANNOT_TELL = ("no answer", "undecided")  # Reasons of a verdict.


def check(ctx: Context) -> None:
  """Checks that somebody words questions otherwise, before hours are spent.

  Raises:
    UserError: nobody does.
  """
  if ctx.settings.discover.again and not Wordings(ctx).exist:
    raise UserError(
      "config.discover.again: nobody words questions otherwise; the world has no paraphrases, so"
      " name a model as config.verify.paraphraser, with config.verify.paraphrases=1 or more"
    )


class Reworded:
  """Asks disagreements again."""

  def __init__(self, ctx: Context, bank: ModelBank):
    """Takes the run, and the models that answer."""
    check(ctx)
    self._ctx, self._bank, self._wordings = ctx, bank, Wordings(ctx)

  def __call__(self, attempts: Sequence[Attempt], *, most: int) -> list[Attempt]:
    """Returns the attempts, the first `most` disagreements of which were asked again.

    One that has no other wording stays as it is.
    """
    finds = [(i, find) for i, a in enumerate(attempts) if (find := a.find)][:most]
    paraphrase = self._wordings.of([find.probe.question for _, find in finds], 1)
    reworded = [
      (i, find, other)
      for i, find in finds
      if paraphrase
      and (other := paraphrase(find.probe.question, 1))
      and other != find.probe.question
    ]
    images = [find.probe.image_id for _, find, _ in reworded]
    judge, questions = self._bank.judge, [other for *_, other in reworded]
    verdicts = self._bank.verdicts(self._ctx.images, questions, image_ids=images)
    judge.prepare(
      (other, verdict.consensus or "", find.consensus)
      for (_, find, other), verdict in zip(reworded, verdicts, strict=True)
      if verdict.disagreement
    )
    out = list(attempts)
    for (i, find, other), verdict in zip(reworded, verdicts, strict=True):
      returned = _returned(find, verdict, judge, question=other)
      out[i] = dataclasses.replace(
        out[i], again=Again(question=other, verdict=verdict, returned=returned)
      )
    return out


def _returned(find: Find, verdict: Verdict, judge: Judge, *, question: str) -> bool | None:
  """Whether a verdict in other words is the same disagreement; None if nobody can tell."""
  if verdict.reason in _CANNOT_TELL:
    return None
  if not verdict.disagreement:
    return False
  same = judge.compare(verdict.consensus or "", find.consensus, question=question)
  return None if same is Same.UNDECIDED else same is Same.SAME
