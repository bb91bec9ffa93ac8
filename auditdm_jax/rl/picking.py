# SPDX-License-Identifier: Apache-2.0
"""Steps 2 and 3 with a surrogate: the auditor writes more than is asked, and a net picks.

What the models answer is what a search pays for, and it grows by few finds where most questions
are repeats, or about what the target knows. So

  1. first turns of `proposals` samples are parsed, for each prompt
  2. a group of them is kept: `random` by lot, then the best *distinct* ones by `rl.surrogate`. With
     `prompts` above 1 only some prompts are kept, those whose groups promise most, and some by lot
  3. all else of a step is done with the group alone; advantages compare its samples
  4. the surrogate learns what became of them

Before images are made, the net sees a question and its image. An instruction or a caption is scored
with the source image, since there is no other yet.

The picked ones are not what the policy would say, so they do not tell how good it is. Those drawn
by lot of what it wrote, of prompts drawn by lot, do: `surrogate/lot_found` is the policy's own
success. A share of the proposals may be those of the auditor before training. Ours.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from auditdm_jax.core import streams
from auditdm_jax.rl import neighbours
from auditdm_jax.rl.batch import Pick, Trajectory
from auditdm_jax.rl.reading import Reader
from auditdm_jax.rl.scoring import find_of
from auditdm_jax.rl.surrogate import Look, SurrogateConfig

_BY_LOT = 1 / 4  # Of the prompts that are asked: what is never asked gets no verdict.


class Picker:
  """Picks the proposals that are asked, by a surrogate that learns from them."""

  def __init__(
    self, config: SurrogateConfig, *, look: Look, seed: int, reader: Reader | None = None
  ):
    """Takes what the surrogate sees of images, the seed of the run, and who reads its questions."""
    self.config = config
    self.surrogate = neighbours.make(config, look=look, reader=reader, seed=seed)
    self._seed = seed

  @property
  def proposals(self) -> int:
    """How many are sampled for each prompt."""
    return self.config.proposals

  def pick(
    self, proposals: Sequence[Sequence[Trajectory]], *, size: int
  ) -> tuple[list[list[Trajectory]], list[Trajectory]]:
    """Keeps one in `config.prompts` of each strategy's prompts, and `size` proposals of each.

    Args:
      proposals: by prompt, after their first turns.
      size: how many of a prompt's are kept.

    Returns:
      Those that are kept by prompt, in their order, and all others.
    """
    predicted = self._predict(proposals)
    chosen = [
      choose(
        [text_of(t) for t in group],
        scores,
        size=size,
        by_lot=self.config.random,
        rng=streams.rng(self._seed, "proposals", *group[0].walk, group[0].prompt_id),
      )
      for group, scores in zip(proposals, predicted, strict=True)
    ]
    finds = [
      math.fsum({text_of(group[i]): scores[i] for i in places if i not in lot}.values())
      for group, scores, (places, lot) in zip(proposals, predicted, chosen, strict=True)
    ]
    asked = self._prompts([group[0] for group in proposals], finds)
    kept, rest = [], []
    for row, (group, scores, (places, lot)) in enumerate(zip(proposals, predicted, chosen)):
      if row not in asked:
        rest += group
        continue
      kept.append([])
      for i, trajectory in enumerate(group):
        if i not in places:
          rest.append(trajectory)
          continue
        text = text_of(trajectory)
        known = self.surrogate.ready and text is not None
        pick = Pick(
          text=text,
          predicted=float(scores[i]) if known else None,
          by_lot=i in lot and asked[row],
          proposals=len(group) * self.config.prompts,
          untrained=i >= len(group) - self.config.untrained,
        )
        kept[-1].append(dataclasses.replace(trajectory, pick=pick))
    return kept, rest

  def _predict(self, proposals: Sequence[Sequence[Trajectory]]) -> list[np.ndarray]:
    """Returns the probability of each proposal to be a find by prompt; 0 for malformed ones."""
    flat = [t for group in proposals for t in group]
    texts = [text_of(t) for t in flat]
    read = [i for i, text in enumerate(texts) if text is not None]
    predicted = np.zeros(len(flat))
    predicted[read] = self.surrogate.predict(
      [texts[i] or "" for i in read], [flat[i].source_image_id for i in read]
    )
    return np.split(predicted, np.cumsum([len(group) for group in proposals])[:-1])

  def _prompts(self, firsts: Sequence[Trajectory], finds: Sequence[float]) -> dict[int, bool]:
    """Returns the prompts that are asked, by their place: whether the lot drew them.

    Args:
      firsts: a sample of each prompt.
      finds: how many of its picks are finds, as the surrogate thinks, each question once.
    """
    asked: dict[int, bool] = {}
    for strategy in dict.fromkeys(t.strategy for t in firsts):
      rows = [i for i, t in enumerate(firsts) if t.strategy == strategy]
      rng = streams.rng(self._seed, "asked", *firsts[rows[0]].walk, firsts[rows[0]].prompt_id)
      order, count = [rows[i] for i in rng.permutation(len(rows))], len(rows) // self.config.prompts
      lot = count
      if self.config.prompts > 1 and self.surrogate.ready:
        lot = int(rng.binomial(count, _BY_LOT))
      asked |= dict.fromkeys(order[:lot], True)
      best = sorted(order[lot:], key=lambda i: -finds[i])
      asked |= dict.fromkeys(best[: count - lot], False)
    return asked

  def learn(self, drawn: Sequence[Trajectory], *of: int | str) -> None:
    """Learns what became of a step's proposals; `of` names the random numbers."""
    told = [(t, t.pick.text) for t in drawn if t.pick and t.pick.text and not t.invalid]
    self.surrogate.observe(
      [text for _, text in told],
      [t.source_image_id for t, _ in told],
      [find_of(t) is not None for t, _ in told],
    )
    self.surrogate.fit(*of)

  def flops(self, drawn: Sequence[Trajectory]) -> float:
    """Floating-point operations of the net in a step."""
    return self.surrogate.flops(_proposals(drawn), fits=self.config.fits)

  def state(self) -> dict[str, Any]:
    """For the checkpoint."""
    return self.surrogate.state()

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    self.surrogate.load(state)


def text_of(trajectory: Trajectory) -> str | None:
  """What the surrogate reads of a first turn; None where that is malformed.

  A question stands for itself. Before any other text goes the name of the strategy.
  """
  if trajectory.malformed:
    return None
  kind = trajectory.turns[0].kind
  text = trajectory.fields[kind]
  return text if kind == "question" else f"{trajectory.strategy} {text}"


def metrics(drawn: Sequence[Trajectory]) -> dict[str, float]:
  """How well the surrogate picks; of the net's picks and of those by lot, malformed ones included.

  AUC: how often a find of the step was thought likelier than another question; over all that were
  answered, which leaves out what the net thought hopeless.
  """
  valid = [(t, t.pick) for t in drawn if t.pick and not t.invalid]
  lot = [find_of(t) is not None for t, pick in valid if pick.by_lot and not pick.untrained]
  picked = [(pick.predicted, find_of(t) is not None) for t, pick in valid if not pick.by_lot]
  out = {"surrogate/proposals": float(_proposals(drawn)), "surrogate/lot": float(len(lot))}
  if lot:
    out["surrogate/lot_found"] = sum(lot) / len(lot)
  best = [(p, found) for p, found in picked if p is not None]
  out["surrogate/picked"] = float(len(best))
  if best:
    out["surrogate/predicted"] = math.fsum(p for p, _ in best) / len(best)
    out["surrogate/found"] = sum(found for _, found in best) / len(best)
  told = [(k.predicted, find_of(t) is not None) for t, k in valid if k.predicted is not None]
  auc = area([p for p, _ in told], [found for _, found in told])
  return out if auc is None else out | {"surrogate/auc": auc}


def area(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
  """Returns the area under the ROC curve, ties half; None where one class is missing."""
  yes = np.asarray(positive, bool)
  ones, zeros = int(yes.sum()), int((~yes).sum())
  if not ones or not zeros:
    return None
  ranks = stats.rankdata(scores)
  return float((ranks[yes].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _proposals(drawn: Sequence[Trajectory]) -> int:
  return sum({(t.walk, t.prompt_id): t.pick.proposals for t in drawn if t.pick}.values())


def choose(
  questions: Sequence[str | None],
  scores: Sequence[float] | np.ndarray,
  *,
  size: int,
  by_lot: int,
  rng: np.random.Generator,
) -> tuple[list[int], set[int]]:
  """Chooses `size` proposals: some by lot, then the best distinct ones.

  Args:
    questions: the proposals; None for a malformed one, which only the lot can draw.
    scores: one per proposal.
    size: how many are wanted; there are at least so many.
    by_lot: how many of them are drawn by lot.
    rng: draws, and decides between equal scores.

  Returns:
    Places in order, and those of them that were drawn by lot.
  """
  order = [int(i) for i in rng.permutation(len(questions))]
  chosen = order[: min(by_lot, size)]
  lot, taken = set(chosen), {questions[i] for i in chosen}
  for i in sorted(order, key=lambda i: -scores[i]):
    if len(chosen) < size and questions[i] is not None and questions[i] not in taken:
      chosen.append(i)
      taken.add(questions[i])
  chosen += [i for i in order if i not in set(chosen)][: size - len(chosen)]
  return sorted(chosen), lot
