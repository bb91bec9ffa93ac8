# SPDX-License-Identifier: Apache-2.0
"""What a world's oracle says of attempts. It reports only: it is in no reward and in no label."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from auditdm_jax.audit import diversity, rates
from auditdm_jax.audit.attempt import Attempt, Find, is_true
from auditdm_jax.audit.diversity import Sample, Spread
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


NOT_CONFIRMED = Truth(False)
_KNOWN = 1 << 15  # Answers that are kept, about 10 MB: those of a round of scenes.
LEAST_FINDS = 5  # Confirmed ones, from which on a planted gap is found.


class Oracle:
  """A world's oracle, which is not asked again what it was asked of late.

  Attributes:
    exists: whether the world has one. Without it nothing is confirmed.
  """

  def __init__(self, world: World, *, images: Callable[[str], np.ndarray], judge: Judge):
    """Takes the world, how images are found by id, and what decides sameness."""
    self._world, self._images, self._judge = world, images, judge
    self._known = functools.lru_cache(maxsize=_KNOWN)(self._ask)
    self.exists = world.oracle is not None

  def answer(self, image_id: str, question: str) -> str | None:
    """Returns the true answer; None without an oracle, or where the question has none."""
    return self._known(image_id, question)

  def _ask(self, image_id: str, question: str) -> str | None:
    oracle = self._world.oracle
    return None if oracle is None else oracle(self._images(image_id), question)

  def truth(self, find: Find | None) -> Truth:
    """Returns whether the consensus is true and the target wrong."""
    if find is None:
      return NOT_CONFIRMED
    question = find.probe.question
    answer = self.answer(find.probe.image_id, question)
    if answer is None or not is_true(find, answer, self._judge):
      return NOT_CONFIRMED
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

  def confirmed(self, attempts: Iterable[Attempt]) -> list["Confirmed"]:
    """Returns the confirmed finds; without an oracle there are none."""
    return confirmed(
      Told(
        a.probe.probe_id if (find := a.find) else None,
        a.probe.origin_id,
        self.truth(find),
        a.queries,
      )
      for a in attempts
    )

  def coverage(self, attempts: Iterable[Attempt], auditable: Sequence[str] = ()) -> Coverage | None:
    """Returns how far unique confirmed finds reach; without an oracle there is nothing to tell."""
    return coverage(self.confirmed(attempts), auditable) if self.exists else None


@dataclasses.dataclass(frozen=True, slots=True)
class Confirmed:
  """A confirmed find, each question about an image once.

  Attributes:
    query: which query of its arm it was, from 1 on.
    origin_id: the image that it goes back to.
    gap: planted gap that it lies in.
    mode: nameable mode.
  """

  query: int
  origin_id: str
  gap: str | None
  mode: str | None


class Told(NamedTuple):
  """What is told of an attempt.

  Attributes:
    probe_id: None if it is no find.
    origin_id: the image that it goes back to.
    truth: what the oracle says.
    queries: that it took.
  """

  probe_id: str | None
  origin_id: str
  truth: Truth
  queries: int


def confirmed(told: Iterable[Told]) -> list[Confirmed]:
  """Returns the confirmed finds among attempts in their order."""
  seen: set[str] = set()
  found = []
  query = 0
  for probe_id, origin_id, truth, queries in told:
    query += queries
    if probe_id is None or probe_id in seen:
      continue
    seen.add(probe_id)
    if truth.confirmed:
      found.append(Confirmed(query, origin_id, truth.gap, truth.mode))
  return found


def coverage(
  found: Sequence[Confirmed], auditable: Sequence[str] = (), *, least: int = LEAST_FINDS
) -> Coverage:
  """Returns how far confirmed finds reach; a gap is found from `least` of them on."""
  per_gap = Counter(c.gap for c in found if c.gap)
  queries = diversity.queries_to(
    [(c.query, c.gap) for c in found if c.gap], wanted=auditable, least=least
  )
  return Coverage(
    confirmed=len(found),
    per_gap=dict(sorted(per_gap.items())),
    gaps_auditable=len(auditable),
    gaps_found=len(queries),
    queries_to_gaps=queries,
    modes=_spread(modes_of(found)),
    skills=_spread(skills_of(found)),
  )


def modes_of(found: Iterable[Confirmed]) -> Sample:
  """Returns the finds that have a nameable mode, by mode and image."""
  named = [(c.mode, c.origin_id) for c in found if c.mode]
  return Sample([mode for mode, _ in named], [origin for _, origin in named])


def skills_of(found: Iterable[Confirmed]) -> Sample:
  """The same by skill."""
  named = [(c.mode.split(":")[0], c.origin_id) for c in found if c.mode]
  return Sample([skill for skill, _ in named], [origin for _, origin in named])


def _spread(sample: Sample) -> Spread | None:
  return diversity.spread(sample, sample.total) if sample.total >= diversity.LEAST else None


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
