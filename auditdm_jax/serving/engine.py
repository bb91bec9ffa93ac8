# SPDX-License-Identifier: Apache-2.0
"""What the model's thread does with a batch: features of images not seen lately, completions.

One image is often asked about several times in a row, and its features cost more than an answer:
the last ones are kept. A batch is cut twice, as `Vlm.answer` cuts: by the features of its images,
and into calls. A call is filled up with copies of its last request where a program of that size is
there and one of its own would have to be compiled first.
"""

from collections.abc import Sequence
import dataclasses
import logging

import numpy as np

from auditdm_jax import vlm_batching as batching
from auditdm_jax.serving.pictures import Square
from auditdm_jax.vlm import Completion, Prompt, Vlm

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

    What fails is halved until the failure is of one request alone.
    """
    outcomes: list[Completion | Exception] = []
    counts = [len(ask.squares) for ask in asks]
    for rows in batching.windows(counts, self._vlm.config.vision):
      outcomes += self._outcomes([asks[i] for i in rows])
    return outcomes

  def _outcomes(self, asks: Sequence[Ask]) -> list[Completion | Exception]:
    """As `run`, for requests the features of whose images are held at once."""
    try:
      return list(self._complete(asks))
    except Exception as error:  # Whatever it is, its clients wait for an answer.
      if len(asks) == 1:
        return [error]
      _LOG.warning("a batch of %d is halved after %s", len(asks), type(error).__name__)
      half = (len(asks) + 1) // 2
      return self._outcomes(asks[:half]) + self._outcomes(asks[half:])

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
    features, fit = self._encode(squares), self._fit(asks)
    done: dict[int, Completion] = {}
    # Long rows go together, and each piece is one call.
    for rows in batching.cut(np.argsort([len(ask.ids) for ask in asks], kind="stable"), fit):
      padded = batching.pad_rows(rows, self._rows([asks[i] for i in rows], fit))
      said = self._vlm.complete(features, [prompts[i] for i in padded])
      done |= zip(rows.tolist(), said)
    return [done[i] for i in range(len(asks))]

  def _fit(self, asks: Sequence[Ask]) -> int:
    """Returns how many of these requests `Vlm.complete` answers in one call."""
    devices = self._vlm.mesh.size if self._vlm.mesh else 1
    return batching.rows_per_call(
      self._vlm.config,
      batching.padded_length(max(len(ask.ids) for ask in asks)),
      new=1 << max(ask.key[2] for ask in asks),
      images=max(len(ask.squares) for ask in asks),
      devices=devices,
      most=batching.largest_call(devices),
    )

  def _rows(self, asks: Sequence[Ask], fit: int) -> int:
    """Returns how many rows, up to `fit`, the requests of a call and their copies are."""
    rest = (
      max(len(ask.squares) for ask in asks),
      batching.padded_length(max(len(ask.ids) for ask in asks)),
      max(ask.key[2] for ask in asks),
      any(ask.temperature for ask in asks),
    )
    least = min(1 << (len(asks) - 1).bit_length(), fit)
    most = min(_MOST_COPIES * least, fit)
    known = self._sizes.setdefault(rest, set())
    rows = min((n for n in known if least <= n <= most), default=least)
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
    for digest in self._features.keys() & set(new):
      # A view would keep the features of all images that were encoded with this one.
      self._features[digest] = self._features[digest].copy()
    return np.stack([known[digest] for digest in squares])
