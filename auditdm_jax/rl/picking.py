# SPDX-License-Identifier: Apache-2.0
"""Steps 2 and 3 with a surrogate: the auditor writes more than is asked, and a net picks.

What the models answer is what a search pays for, and it grows by few finds where most questions
are repeats, or about what the target knows. So

  1. first turns of `proposals` samples are parsed, for each prompt
  2. a group of them is kept: `random` by lot, then the best *distinct* ones by `rl.surrogate`
  3. all else of a step is done with the group alone; advantages compare its samples
  4. the surrogate learns what became of them

Before images are made, the net sees a question and its image. An instruction or a caption is scored
with the source image, since there is no other yet.

The picked ones are not what the policy would say, so they do not tell how good it is. Those drawn
by lot do: `surrogate/lot_found` is the policy's own success. Ours.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from auditdm_jax.core import streams
from auditdm_jax.rl.batch import Pick, Trajectory
from auditdm_jax.rl.scoring import find_of
from auditdm_jax.rl.surrogate import Look, Surrogate, SurrogateConfig


class Picker:
  """Picks the proposals that are asked, by a surrogate that learns from them."""

  def __init__(self, config: SurrogateConfig, *, look: Look, seed: int):
    """Takes what the surrogate sees of images, and the seed of the run."""
    self.config, self.surrogate = config, Surrogate(config, look=look, seed=seed)
    self._seed = seed

  def pick(
    self, proposals: Sequence[Sequence[Trajectory]], *, size: int
  ) -> tuple[list[list[Trajectory]], list[Trajectory]]:
    """Keeps `size` of the proposals of each prompt.

    Args:
      proposals: by prompt, after their first turns.
      size: how many are kept.

    Returns:
      Those that are kept by prompt, in their order, and all others.
    """
    flat = [t for group in proposals for t in group]
    texts = [text_of(t) for t in flat]
    read = [i for i, text in enumerate(texts) if text is not None]
    predicted = np.zeros(len(flat))
    predicted[read] = self.surrogate.predict(
      [texts[i] or "" for i in read], [flat[i].source_image_id for i in read]
    )
    kept, rest = [], []
    for first, group in zip(np.cumsum([0, *map(len, proposals)]), proposals):
      scores = predicted[first : first + len(group)]
      said = texts[first : first + len(group)]
      rng = streams.rng(self._seed, "proposals", *group[0].walk, group[0].prompt_id)
      places, lot = choose(said, scores, size=size, by_lot=self.config.random, rng=rng)
      kept.append([])
      for i, trajectory in enumerate(group):
        if i not in places:
          rest.append(trajectory)
          continue
        known = self.surrogate.ready and said[i] is not None
        pick = Pick(said[i], float(scores[i]) if known else None, i in lot, len(group))
        kept[-1].append(dataclasses.replace(trajectory, pick=pick))
    return kept, rest

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
  lot = [find_of(t) is not None for t, pick in valid if pick.by_lot]
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
