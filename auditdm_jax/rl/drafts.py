# SPDX-License-Identifier: Apache-2.0
"""Which of several captions or instructions an image is made for.

An image is dear and a text cheap, and most texts show what others have shown. So several are
written for each image, and the one is kept whose words stood together in the fewest texts before:

  novelty(text) = mean over its words and pairs of words of 1 / (1 + texts that had them)

A failure that hangs on three things which a pool's images hardly show together is met sooner so
than by lot. Nothing is known of what words mean. A count-based bonus as in exploration (Strehl and
Littman, 2008); that it counts pairs is ours.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
import itertools

from auditdm_jax.audit.words import tokens
from auditdm_jax.rl.batch import Trajectory


class Drafts:
  """Keeps the drafts that say what was said least.

  Attributes:
    proposals: how many are written of which one is kept.
  """

  def __init__(self, proposals: int):
    """Takes how many drafts are written for each image."""
    self.proposals = proposals
    self._said = Counter[str | tuple[str, str]]()

  def read(self, text: str) -> None:
    """Takes up a text for which an image was made."""
    self._said.update(_parts(text))

  def copy(self) -> "Drafts":
    """Returns one that goes on from here by itself."""
    other = Drafts(self.proposals)
    other._said = self._said.copy()
    return other

  def novelty(self, text: str) -> float:
    """Returns a number in [0, 1]: 1 if none of it was said before."""
    said = [1 / (1 + self._said[part]) for part in _parts(text)]
    return sum(said) / len(said) if said else 0.0

  def pick(
    self, proposals: Sequence[Sequence[Trajectory]], *, size: int
  ) -> tuple[list[list[Trajectory]], list[Trajectory]]:
    """Keeps `size` drafts of each prompt, one after the other, and takes each one up.

    Args:
      proposals: by prompt, after their first turns.
      size: how many of a prompt's are kept.

    Returns:
      Those that are kept by prompt, in their order, and all others. Malformed ones are kept where
      there are no others.
    """
    kept, rest = [], []
    for group in proposals:
      texts = {i: text for i, t in enumerate(group) if (text := _text(t)) is not None}
      chosen: list[int] = []
      while len(chosen) < min(size, len(texts)):
        best = max(texts.keys() - set(chosen), key=lambda i: (self.novelty(texts[i]), -i))
        self.read(texts[best])
        chosen.append(best)
      chosen += [i for i in range(len(group)) if i not in texts][: size - len(chosen)]
      kept.append([group[i] for i in sorted(chosen)])
      rest += [t for i, t in enumerate(group) if i not in chosen]
    return kept, rest


def _text(trajectory: Trajectory) -> str | None:
  return None if trajectory.malformed else trajectory.fields[trajectory.turns[0].kind]


def _parts(text: str) -> Iterable[str | tuple[str, str]]:
  """The words of a text and their pairs, each once."""
  words = sorted(set(tokens(text)))
  return [*words, *itertools.combinations(words, 2)]
