# SPDX-License-Identifier: Apache-2.0
"""Which of the questions that could be asked a batch of the sweep asks.

Many questions are proposed for each that is answered, and each has a probability of being a find.
The best ones alone would be of the few kinds that fail most, so a batch is filled in five steps:

  1. lot     a share by lot among those whom no training has narrowed. What nobody asks gets no
             verdict, and nobody would learn that it fails.
  2. new     a share that is least like anything asked, if the surrogate tells likeness. A failure
             that nobody has met yet is among them sooner than by lot.
  3. unsure  a share of those whose probability is nearest to a half, which teach most.
  4. kind    kinds of questions in turns, each with its best one, while that one is likely a find.
  5. rank    what is left of the batch goes to the best, whatever their kind.

Of one image at most `per_image` are asked in a batch, and of one kind steps 4 and 5 take at most
`per_kind` of it, as long as there are others: a failure that never runs out would be all that is
asked. Ours; the paper asks whatever is sampled.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Literal

import numpy as np

from auditdm_jax.core.config import check

Way = Literal["lot", "new", "unsure", "kind", "rank"]
RANKED = ("kind", "rank")  # The steps that take the likeliest.


@dataclasses.dataclass(frozen=True)
class RankingConfig:
  """How a batch is chosen.

  Attributes:
    per_image: most questions of a batch about one image and what is made of it.
    per_kind: largest share of a batch that the likeliest of one kind have.
    likely: probability of a find, corrected by earlier ones, from which on kinds take turns.
    unsure: share of a batch that is nearest to a half.
    lot: share of a batch that is drawn by lot.
    new: share of a batch that is least like what was asked; takes a `rollout.surrogate.reader`.
  """

  per_image: int = 4
  per_kind: float = 1.0
  likely: float = 0.95
  unsure: float = 0.01
  lot: float = 0.01
  new: float = 0.0

  def __post_init__(self):
    check(vars(self), "ranking", "per_image", least=1)
    check(vars(self), "ranking", "likely", "unsure", "lot", "new", least=0, most=1)
    check(vars(self), "ranking", "per_kind", above=0, most=1)


@dataclasses.dataclass(frozen=True)
class Ranked:
  """What a batch was chosen from.

  Attributes:
    batch: its number.
    proposals: by arm, what was sampled, malformed replies and repeats included.
    candidates: distinct questions among them that had not been asked.
    images: that these go back to.
    made: images that were made for them.
    flops: of the auditors, of the surrogate and, unless an endpoint gave some, of the answers.
  """

  batch: int
  proposals: Mapping[str, int]
  candidates: int
  images: int
  made: int
  flops: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
  """A question that could be asked.

  Attributes:
    image: the one that it goes back to.
    kind: what takes turns.
    score: the probability of a find, corrected by earlier predictions (`audit.recalibration`).
    raw: the surrogate's own prediction, which orders those of equal probability.
    open: whether the lot may draw it.
  """

  image: str
  kind: str
  score: float
  raw: float
  open: bool


def pick(
  candidates: Sequence[Candidate],
  *,
  size: int,
  config: RankingConfig,
  rng: np.random.Generator,
  new: Sequence[int] = (),
  blind: bool = False,
) -> dict[int, Way]:
  """Chooses a batch.

  Args:
    candidates: distinct questions.
    size: how many are wanted; there are fewer if there are fewer candidates.
    config: the shares.
    rng: draws by lot, and decides between equal scores.
    new: places of those that are least like what was asked, `config.new` of a batch.
    blind: the scores mean nothing yet, so that all are drawn by lot.

  Returns:
    {place of a candidate: the step that chose it}, in the order of their choice.
  """
  order = [int(i) for i in rng.permutation(len(candidates))]
  best = sorted(order, key=lambda i: (-candidates[i].score, -candidates[i].raw))
  unsure = sorted(order, key=lambda i: abs(candidates[i].score - 0.5))
  chosen = _Chosen(candidates, size, config.per_image)
  lot = (i for i in order if blind or candidates[i].open)
  chosen.take(lot, "lot", size if blind else round(config.lot * size))
  chosen.take(new, "new", size)
  chosen.take(unsure, "unsure", round(config.unsure * size))
  chosen.per_kind = math.ceil(config.per_kind * size)
  chosen.take(_in_turns(candidates, best, chosen, config.likely), "kind", size)
  chosen.take(best, "rank", size)
  chosen.per_image = chosen.per_kind = len(candidates)  # There are no others.
  chosen.take(best, "rank", size)
  return chosen.ways


class _Chosen:
  """A batch as it is filled."""

  def __init__(self, candidates: Sequence[Candidate], size: int, per_image: int):
    self.per_image, self.per_kind, self.ways = per_image, size, dict[int, Way]()
    self._candidates, self._size = candidates, size
    self._of_image, self._of_kind = Counter[str](), Counter[str]()

  def fits(self, i: int) -> bool:
    """Whether a candidate can be taken."""
    candidate = self._candidates[i]
    few = self._of_image[candidate.image] < self.per_image
    return i not in self.ways and few and self._of_kind[candidate.kind] < self.per_kind

  def take(self, places: Iterable[int], way: Way, most: int) -> None:
    """Takes the first of these that fit, at most so many."""
    most = min(most, self._size - len(self.ways))
    for i in places if most else ():
      if self.fits(i):
        self.ways[i] = way
        self._of_image[self._candidates[i].image] += 1
        self._of_kind[self._candidates[i].kind] += way in RANKED
        most -= 1
      if not most:
        return


def _in_turns(
  candidates: Sequence[Candidate], best: Sequence[int], chosen: _Chosen, likely: float
) -> Iterable[int]:
  """Yields the best likely find of each kind that fits, then the next one of each, and so on."""
  queues: dict[str, list[int]] = defaultdict(list)
  for i in reversed(best):
    if candidates[i].score >= likely:
      queues[candidates[i].kind].append(i)
  kinds = sorted(queues, key=lambda kind: -candidates[queues[kind][-1]].score)
  while kinds:
    for kind in kinds:
      queue = queues[kind]
      while queue and not chosen.fits(queue[-1]):
        queue.pop()
      if queue:
        yield queue.pop()
    kinds = [kind for kind in kinds if queues[kind]]
