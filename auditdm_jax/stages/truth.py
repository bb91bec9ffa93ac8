# SPDX-License-Identifier: Apache-2.0
"""What a world's oracle says of attempts. It reports only: it is in no reward and in no label."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Attempt, Find, is_true, unique_finds
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.skills import Assigner, Seeds
from auditdm_jax.audit.summary import Coverage
from auditdm_jax.stages.worlds import World


@dataclasses.dataclass(frozen=True)
class Truth:
  """What the oracle says of a find: is it a real failure, in which planted gap and mode?"""

  confirmed: bool
  gap: str | None = None
  mode: str | None = None


class Oracle:
  """A world's oracle, asked once per image and question.

  Attributes:
    exists: whether the world has one. Without it nothing is confirmed.
  """

  def __init__(self, world: World, *, images: Callable[[str], np.ndarray], judge: Judge):
    """Takes the world, how images are found by id, and what decides sameness."""
    self._world, self._images, self._judge = world, images, judge
    self._known: dict[tuple[str, str], str | None] = {}
    self.exists = world.oracle is not None

  def answer(self, image_id: str, question: str) -> str | None:
    """Returns the true answer; None without an oracle, or where the question has none."""
    if self._world.oracle is None:
      return None
    key = image_id, question
    if key not in self._known:
      self._known[key] = self._world.oracle(self._images(image_id), question)
    return self._known[key]

  def truth(self, find: Find | None) -> Truth:
    """Returns whether the consensus is true and the target wrong."""
    if find is None:
      return Truth(False)
    question = find.probe.question
    answer = self.answer(find.probe.image_id, question)
    if answer is None or not is_true(find, answer, self._judge):
      return Truth(False)
    gap_of, mode_of = self._world.gap_of, self._world.mode_of
    return Truth(
      True,
      gap_of(question, answer) if gap_of else None,
      mode_of(question, answer) if mode_of else None,
    )

  def success(self, attempts: Sequence[Attempt], *, verified: Collection[str] = ()) -> Rate:
    """Returns the share of real failures among all attempts, malformed ones included.

    Args:
      attempts: the attempts.
      verified: ids of the probes whose find was verified, which count where there is no oracle.
    """
    if self.exists:
      real = [self.truth(a.find).confirmed for a in attempts]
    else:
      real = [a.verdict is not None and a.probe.probe_id in verified for a in attempts]
    return rates.rate_by_image(real, [a.probe.origin_id for a in attempts])

  def coverage(
    self, attempts: Sequence[Attempt], auditable: Sequence[str] = (), *, least: int = 5
  ) -> Coverage | None:
    """Returns how far unique confirmed finds reach; a gap is found from `least` of them on.

    Without an oracle nothing is confirmed, and there is nothing to tell.
    """
    if not self.exists:
      return None
    truths = [self.truth(find) for find in unique_finds(attempts)]
    confirmed = [t for t in truths if t.confirmed]
    per_gap = Counter(t.gap for t in confirmed if t.gap)
    modes = [t.mode for t in confirmed if t.mode]
    skills = Counter(mode.split(":")[0] for mode in modes)
    return Coverage(
      confirmed=len(confirmed),
      per_gap=dict(sorted(per_gap.items())),
      gaps_auditable=len(auditable),
      gaps_found=sum(per_gap[g] >= least for g in auditable),
      effective_modes=round(rates.effective_number(Counter(modes).values()), 2),
      effective_skills=round(rates.effective_number(skills.values()), 2),
    )


class ModeKey:
  """A find's kind, from its text alone: (named skill, consensus). What arms and novelty count."""

  def __init__(self, seeds: Seeds):
    self._assign = Assigner(seeds)

  def __call__(self, attempt: Attempt) -> str | None:
    find = attempt.find
    return None if find is None else self.of(find.probe.question, find.consensus)

  def of(self, question: str, consensus: str) -> str:
    skill = self._assign([question])[0][0] or "other"
    return f"{skill}/{consensus}"
