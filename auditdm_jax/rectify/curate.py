# SPDX-License-Identifier: Apache-2.0
"""Chooses training examples from what an audit found.

The label of an example is the consensus of the references. An independent judge has no say here:
neither in the labels nor, through grades, in which finds are taken, because outside a world with
an oracle there is none. Evenness over failure modes repairs more than number does (measured in
the scenes world), so finds are taken in turns: one per group and round, in each group one per
source and turn, up to a cap per group.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Self

from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.core import streams

LABELS = "labels"  # The source of examples whose label is no consensus.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How many examples to take and how evenly.

  Attributes:
    size: examples wanted; fewer when there are not enough.
    cap: largest share of `size` that one group may take, in (0, 1].
    balanced: take groups in turns; if False draw from all finds alike (still under the cap),
      which is what a control of random questions needs to stay random.
  """

  size: int = 2000
  cap: float = 0.15
  balanced: bool = True

  def __post_init__(self):
    if self.size < 1 or not 0 < self.cap <= 1:
      raise ValueError(f"size must be positive and cap in (0, 1], got {self.size} and {self.cap}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExample:
  """One training example, and what decides whether it is taken.

  Attributes:
    label: what the target is to answer.
    group: failure mode or question template, what the cap counts.
    source: which auditor checkpoint or arm asked; `LABELS` if the label is the data set's own.
    origin_id: the image that a made image goes back to; "" = the image itself.
    is_prompt: the question is put as it is, and not in the target's style.
    provenance: goes with the example unread.
  """

  image_id: str
  question: str
  label: str
  group: str = ""
  source: str = ""
  origin_id: str = ""
  is_prompt: bool = False
  provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> tuple[str, str]:
    return self.image_id, self.question

  @classmethod
  def of(cls, asked: Attempt | Find, *, group: str) -> Self:
    """Returns the example that teaches the consensus on a probe.

    Raises:
      ValueError: there is no consensus.
    """
    probe = asked.probe
    if asked.verdict is None or asked.verdict.consensus is None:
      raise ValueError(f"probe {probe.probe_id} has no consensus to train on")
    source = f"{probe.arm}@{probe.step}"
    return cls(
      image_id=probe.image_id,
      question=probe.question,
      label=asked.verdict.consensus,
      group=group,
      source=source,
      origin_id=probe.origin_id,
      provenance={
        "probe_id": probe.probe_id,
        "strategy": probe.strategy,
        "arm": probe.arm,
        "step": str(probe.step),
        "seed": str(probe.seed),
        "group": group,
        "source": source,
      },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
  """What was offered and what was taken; `short` is by how much the wanted size was missed."""

  offered: int
  duplicates: int
  conflicting: int
  taken: int
  short: int
  by_group: Mapping[str, int]
  by_source: Mapping[str, int]
  by_label: Mapping[str, int]


def curate(
  candidates: Sequence[TrainingExample], config: Config, *, seed: int
) -> tuple[list[TrainingExample], Stats]:
  """Takes up to `config.size` examples, whatever the order of the candidates.

  `seed` decides every choice that is left open.

  The same question about the same image is one example. If two candidates give it different
  labels, which happens when references change between rounds, it is left out.
  """
  unique, duplicates, conflicting = _distinct(candidates)
  ordered = sorted(unique, key=lambda c: _rank(seed, c.image_id, c.question))
  limit = math.ceil(config.cap * config.size)
  taken = (
    _in_turns(ordered, config, limit, seed) if config.balanced else _capped(ordered, config, limit)
  )
  order = streams.rng(seed, "examples").permutation(len(taken))
  taken = [taken[i] for i in order]
  return taken, Stats(
    offered=len(candidates),
    duplicates=duplicates,
    conflicting=conflicting,
    taken=len(taken),
    short=config.size - len(taken),
    by_group=_counts(c.group for c in taken),
    by_source=_counts(c.source for c in taken),
    by_label=_counts(c.label for c in taken),
  )


def _distinct(candidates: Sequence[TrainingExample]) -> tuple[list[TrainingExample], int, int]:
  """Returns one candidate per image and question, and the numbers of repeats and conflicts."""
  by_key: dict[tuple[str, str], list[TrainingExample]] = {}
  for candidate in candidates:
    question = " ".join(candidate.question.lower().split())
    by_key.setdefault((candidate.image_id, question), []).append(candidate)
  agreed = {key: same for key, same in by_key.items() if len({c.label for c in same}) == 1}
  conflicting = sum(len(same) for key, same in by_key.items() if key not in agreed)
  chosen = [min(same, key=lambda c: (c.source, c.question, c.group)) for same in agreed.values()]
  return chosen, sum(len(same) - 1 for same in agreed.values()), conflicting


def _rank(seed: int, *parts: str) -> bytes:
  """Returns a seeded order that does not depend on what else is in the list."""
  return streams.key_data(seed, "rank", *parts).tobytes()


def _capped(ordered: list[TrainingExample], config: Config, limit: int) -> list[TrainingExample]:
  taken, counts = [], {}
  for candidate in ordered:
    if len(taken) < config.size and counts.get(candidate.group, 0) < limit:
      taken.append(candidate)
      counts[candidate.group] = counts.get(candidate.group, 0) + 1
  return taken


def _in_turns(
  ordered: list[TrainingExample], config: Config, limit: int, seed: int
) -> list[TrainingExample]:
  """Rounds over the groups in a seeded order, one candidate each, until there are enough."""
  queues: dict[str, list[TrainingExample]] = {}
  for candidate in ordered:
    queues.setdefault(candidate.group, []).append(candidate)
  turns = {group: _alternating(queue)[:limit] for group, queue in queues.items()}
  groups = sorted(turns, key=lambda group: _rank(seed, group))
  longest = max(map(len, turns.values()), default=0)
  rounds = (turns[g][i] for i in range(longest) for g in groups if i < len(turns[g]))
  return [candidate for candidate, _ in zip(rounds, range(config.size), strict=False)]


def _alternating(queue: list[TrainingExample]) -> list[TrainingExample]:
  """Returns the candidates of one group with its sources taking turns."""
  place: dict[str, int] = {}
  keyed = []
  for candidate in queue:
    place[candidate.source] = place.get(candidate.source, 0) + 1
    keyed.append((place[candidate.source], len(keyed), candidate))
  return [candidate for _, _, candidate in sorted(keyed, key=lambda item: item[:2])]


def _counts(names: Iterable[str]) -> dict[str, int]:
  counts: dict[str, int] = {}
  for name in names:
    counts[name] = counts.get(name, 0) + 1
  return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
