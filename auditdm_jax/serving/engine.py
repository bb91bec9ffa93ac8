# SPDX-License-Identifier: Apache-2.0
"""What the model's thread does with a batch: features of images not seen lately, completions.

One image is often asked about several times in a row, and its features cost more than an answer:
the last ones are kept. A batch is filled up with copies of its last request where a program of that
size is there and one of its own would have to be compiled first.
"""

from collections.abc import Sequence
import dataclasses
import logging

import numpy as np

from auditdm_jax.serving.pictures import Square
from auditdm_jax.vlm import Completion, Prompt, Vlm
from auditdm_jax.vlm_batching import padded_length

_LOG = logging.getLogger(__name__)
_LEAST_BUCKET = 16  # Tokens: shorter prompts and answers are too cheap to be told apart.
_MOST_COPIES = 2  # Rows of a program that is there, per row of the one that would be compiled.


@dataclasses.dataclass(frozen=True, eq=False)
class Ask:
  """A request as the model takes it.

  Attributes:
    ids: the prompt, with the slots of its images.
    squares: the images, in order.
    max_new_tokens: the longest answer.
    temperature: 0 is greedy.
    seed: seed of the sampling, 32 bits.
  """

  ids: tuple[int, ...]
  squares: tuple[Square, ...]
  max_new_tokens: int
  temperature: float
  seed: int

  @property
  def key(self) -> tuple[int, int, int]:
    """Requests of one key share a call: none of them waits for one that takes far longer."""
    sizes = (max(n, _LEAST_BUCKET) for n in (len(self.ids), self.max_new_tokens))
    prompt, answer = ((n - 1).bit_length() for n in sizes)
    return len(self.squares), prompt, answer


class Engine:
  """Runs batches on a model; for one thread.

  Args:
    vlm: the model.
    cache_bytes: most bytes of features that are kept.
  """

  def __init__(self, vlm: Vlm, *, cache_bytes: int):
    self._vlm, self._room = vlm, cache_bytes
    self._features: dict[bytes, np.ndarray] = {}  # By digest, what was used last at the end.
    self._sizes: dict[tuple, set[int]] = {}  # Rows of the programs that are there, by their rest.

  def run(self, asks: Sequence[Ask]) -> list[Completion | Exception]:
    """Returns one outcome per request.

    A batch that fails is halved until the failure is of one request alone.
    """
    try:
      return list(self._complete(asks))
    except Exception as error:  # Whatever it is, its clients wait for an answer.
      if len(asks) == 1:
        return [error]
      _LOG.warning("a batch of %d is halved after %s", len(asks), type(error).__name__)
      half = (len(asks) + 1) // 2
      return self.run(asks[:half]) + self.run(asks[half:])

  def _complete(self, asks: Sequence[Ask]) -> list[Completion]:
    squares = {square.digest: square for ask in asks for square in ask.squares}
    place = {digest: i for i, digest in enumerate(squares)}
    prompts = [
      Prompt(
        ask.ids,
        images=tuple(place[square.digest] for square in ask.squares),
        max_new_tokens=ask.max_new_tokens,
        temperature=ask.temperature,
        seed=ask.seed,
      )
      for ask in asks
    ]
    copies = [prompts[-1]] * (self._rows(asks) - len(asks))
    return self._vlm.complete(self._encode(squares), [*prompts, *copies])[: len(asks)]

  def _rows(self, asks: Sequence[Ask]) -> int:
    """Returns how many rows these requests and the copies are, which makes the program known."""
    rest = (
      max(len(ask.squares) for ask in asks),
      padded_length(max(len(ask.ids) for ask in asks)),
      max(ask.key[2] for ask in asks),
      any(ask.temperature for ask in asks),
    )
    least = 1 << (len(asks) - 1).bit_length()
    known = self._sizes.setdefault(rest, set())
    rows = min((n for n in known if least <= n <= _MOST_COPIES * least), default=least)
    known.add(rows)
    return rows

  def _encode(self, squares: dict[bytes, Square]) -> np.ndarray | None:
    """Returns the features [N,P,Dv] of the images, in their order; None of none."""
    if not squares:
      return None
    new = [digest for digest in squares if digest not in self._features]
    encoded = self._vlm.encode([squares[digest].pixels for digest in new]) if new else ()
    # Those that are used now move to the end.
    known = {digest: self._features.pop(digest) for digest in squares if digest not in new}
    known |= dict(zip(new, encoded))
    self._features |= known
    held = sum(x.nbytes for x in self._features.values())
    while held > self._room:
      held -= self._features.pop(next(iter(self._features))).nbytes
    return np.stack([known[digest] for digest in squares])
