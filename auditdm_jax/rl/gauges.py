# SPDX-License-Identifier: Apache-2.0
"""Gauges of reward hacking: rewards of a sample of finds, scored again in two other ways.

  held out   a model outside the ensemble answers: how often does it side with the references?
  blank      the image is replaced by a grey one: how often is it still a find? Such a question
             plays on what the models guess without looking, not on what they see.

They are written down and never enter a reward.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import Model, ask
from auditdm_jax.audit.judge import Same
from auditdm_jax.core import streams
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.batch import Trajectory

_GREY = 127


@dataclasses.dataclass(frozen=True)
class GaugeConfig:
  """When to look.

  Attributes:
    every: steps between two looks; 0 = never.
    sample: finds that are looked at, at most.
    heldout: folder or endpoint of a model that is neither target nor reference; "" = none.
  """

  every: int = 0
  sample: int = 64
  heldout: str = ""

  def __post_init__(self):
    if self.every < 0 or self.sample < 1:
      raise UserError("rollout.gauges: every must be at least 0, sample at least 1")
    if self.heldout and not self.every:
      raise UserError("rollout.gauges.heldout: is never asked, since rollout.gauges.every is 0")


class Gauges:
  """Looks at the finds of some steps."""

  def __init__(
    self,
    config: GaugeConfig,
    bank: ModelBank,
    *,
    seed: int,
    load: Callable[[str], np.ndarray],
    heldout: Model | None = None,
  ):
    """Takes what is asked.

    Args:
      config: when to look.
      bank: target and references.
      seed: the seed of the run.
      load: image id -> u8[H,W,3].
      heldout: a model outside the ensemble.
    """
    self._config, self._bank, self._seed = config, bank, seed
    self._load, self._heldout = load, heldout

  def look(
    self, finds: Sequence[Trajectory], *, walk: tuple[int | str, ...], step: int
  ) -> dict[str, float]:
    """Returns the gauges of a sample of the step's finds; in most steps nothing."""
    if not self._config.every or step % self._config.every:
      return {}
    order = streams.rng(self._seed, "gauges", *walk, step).permutation(len(finds))
    sample = [finds[i] for i in order[: self._config.sample]]
    return measure(self._bank, sample, load=self._load, heldout=self._heldout)


def measure(
  bank: ModelBank,
  finds: Sequence[Trajectory],
  *,
  load: Callable[[str], np.ndarray],
  heldout: Model | None,
) -> dict[str, float]:
  """Shares of the finds, with their number; nothing if there is no find.

  Args:
    bank: target and references.
    finds: with their verdicts.
    load: image id -> u8[H,W,3].
    heldout: a model outside the ensemble, or None.
  """
  if not finds:
    return {}
  images = [load(t.image_id) for t in finds]
  questions = [t.question for t in finds]
  blank = bank.verdicts([np.full_like(image, _GREY) for image in images], questions)
  out = {
    "gauge/finds": float(len(finds)),
    "gauge/blank": sum(v.disagreement for v in blank) / len(finds),
  }
  if heldout is not None:
    seen = heldout.encode(images) if heldout.takes == "features" else images
    answers = ask(heldout, seen, questions, config=bank.config)
    rows = zip(questions, answers, finds)
    sides = bank.judge.compare_all((q, a.text, t.consensus) for q, a, t in rows)
    out["gauge/heldout"] = sides.count(Same.SAME) / len(finds)
  return out
