# SPDX-License-Identifier: Apache-2.0
"""A surrogate without a net: a question is as likely a find as those that a model finds alike.

A vision-language model, the reader, is given the question and the image as if it were to answer.
Its last hidden state says what is asked and what is seen: questions of one answer lie close
together there, also where the reader never learned the answer. So one find tells which other
questions may fail as it did, and a few verdicts more tell chance from a gap. It is the posterior of
kernel regression with two widths, and learns as soon as it is told.

  rate(q)  = (sum of k(q, i) over finds i + prior(q)) / (sum of k(q, i) over all i + 1)
  prior(q) = the same with a wide kernel, around the share of finds
  k(q, i)  = exp((cosine of their standardised states - 1) / width)

Its verdicts are those of models, and no oracle is near it. Ours.

Axes: N questions, M verdicts, D width of the reader.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from auditdm_jax.rl.reading import Reader
from auditdm_jax.rl.surrogate import Look, Surrogate, SurrogateConfig

_WIDE = 6  # The prior's kernel is so many times as wide,
_PRIOR = 20.0  # and the share of finds counts for so many verdicts.
_ROWS = 1024  # Questions that are compared at a time.
_BLOCK = 16  # Unlike questions that are chosen at a time,
_TRIED = 8  # of so many times as many, by lot,
_APART = 0.8  # none of them with a larger cosine to another.
_AT_ONCE = 4  # Likely questions that are chosen at a time.
_LEAST = 256  # Verdicts are padded to powers of two from here on.


class Neighbours:
  """What became of questions, and which others are like them."""

  def __init__(self, config: SurrogateConfig, *, reader: Reader):
    """Takes who reads the questions."""
    self.config, self._reader = config, reader
    self._questions: list[str] = []
    self._images: list[str] = []
    self._found = np.zeros(0, bool)
    self._states = np.zeros((0, 0), np.float16)
    self._read: dict[tuple[str, str], np.ndarray] = {}  # Those of the last prediction.
    self._mean = self._scale = np.zeros(0, np.float32)
    self._known: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

  @property
  def ready(self) -> bool:
    """Whether it has seen enough to choose."""
    return self._known is not None and len(self._found) >= self.config.least

  def observe(self, questions: Sequence[str], images: Sequence[str], found: Sequence[bool]) -> None:
    """Remembers what became of questions about images, by id."""
    if not questions:
      return
    states, keep = self._see(questions, images), self.config.memory
    known = self._states if len(self._states) else states[:0]
    self._states = np.concatenate([known, states])[-keep:]
    self._questions = [*self._questions, *questions][-keep:]
    self._images = [*self._images, *images][-keep:]
    self._found = np.concatenate([self._found, np.asarray(found, bool)])[-keep:]

  def fit(self, *of: int | str) -> None:
    """Takes up what it was told; there is no chance in it, whatever `of` names."""
    del of
    if not len(self._found):
      return
    states = self._states.astype(np.float32)
    self._mean, self._scale = states.mean(0), states.std(0) + 1e-6
    size = max(_LEAST, 1 << (len(states) - 1).bit_length())
    units = np.zeros((size, states.shape[1]), np.float32)
    units[: len(states)] = self._units(states)
    there, found = np.zeros((2, size), np.float32)
    there[: len(states)], found[: len(states)] = 1, self._found
    self._known = units, there, found

  def predict(self, questions: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """Returns f32[N]: the probability that each question about an image is a find.

    It says the same of all, their share so far, until it has seen enough.
    """
    share = self._found.mean() if len(self._found) else 0.5
    if not self.ready or not questions:
      return np.full(len(questions), share, np.float32)
    near, likely = self._evidence(self._units(self._see(questions, images)))
    return (likely / (near + 1)).astype(np.float32)

  def survey(
    self,
    questions: Sequence[str],
    images: Sequence[str],
    *,
    size: int,
    new: int,
    rng: np.random.Generator,
  ) -> tuple[np.ndarray, list[int]]:
    """Returns what a batch is chosen by that is asked at once.

    Args:
      questions: N questions that could be asked.
      images: the ids of their images.
      size: of the batch.
      new: how many of it are wanted that are unlike all others.
      rng: draws among those that are.

    Returns:
      f32[N] as `predict`, where each of the `size` highest counts as no find for those below it (a
      constant liar, Ginsbourger et al., 2010): one find by chance has many neighbours and is
      refuted by a few of them, and a gap that is known well loses little. And the places of `new`
      questions that are the least like all verdicts and one another: where nobody has asked, nobody
      knows of finds.
    """
    if not self.ready or not questions:
      return self.predict(questions, images), []
    units = self._units(self._see(questions, images))
    near, likely = self._evidence(units)
    return self._apart(units, near, likely, size), self._unlike(units, near, new, rng)

  def flops(self, questions: int, *, fits: int) -> float:
    """Floating-point operations of reading and comparing questions; fits have next to none."""
    del fits
    compared = 2.0 * self._states.shape[1] * len(self._states)
    return questions * (self._reader.flops(self._questions[-_ROWS:]) + compared)

  # ------------------------------------------------------------------------------- checkpoints

  def state(self) -> dict[str, Any]:
    """For the checkpoint; survives JSON. What was read is read again."""
    found = [int(x) for x in self._found]
    return {"questions": self._questions, "images": self._images, "found": found}

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    self._questions, self._images, self._found = [], [], np.zeros(0, bool)
    self._states, self._known = np.zeros((0, 0), np.float16), None
    self.observe(state["questions"], state["images"], state["found"])
    self.fit()

  # ------------------------------------------------------------------------------------ inside

  def _see(self, questions: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """Returns f16[N,D], and keeps these for the next call, which is often about some of them."""
    pairs = list(zip(questions, images, strict=True))
    missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._read]
    if missing:
      read = self._reader([q for q, _ in missing], [i for _, i in missing]).astype(np.float16)
      known = {pair: self._read[pair] for pair in pairs if pair in self._read}
      self._read = known | dict(zip(missing, read, strict=True))
    return np.stack([self._read[pair] for pair in pairs])

  def _units(self, states: np.ndarray) -> np.ndarray:
    """Returns f32[N,D] of length 1, standardised by what is known."""
    centred = (states.astype(np.float32) - self._mean) / self._scale
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)

  def _apart(
    self, units: np.ndarray, near: np.ndarray, likely: np.ndarray, size: int
  ) -> np.ndarray:
    """The probabilities of `survey`."""
    out, left = np.zeros(len(units), np.float32), np.ones(len(units), bool)
    for _ in range(0, min(size, len(units) - _AT_ONCE), _AT_ONCE):
      rates = np.where(left, likely / (near + 1), -1)
      block = np.argpartition(-rates, _AT_ONCE)[:_AT_ONCE]
      out[block], left[block] = rates[block], False
      near = near + self._to(units, block)
    out[left] = (likely / (near + 1))[left]
    return out

  def _unlike(
    self, units: np.ndarray, near: np.ndarray, n: int, rng: np.random.Generator
  ) -> list[int]:
    """The places of `survey`."""
    chosen: list[int] = []
    while len(chosen) < min(n, len(units)):
      few = np.argsort(near, kind="stable")[: _TRIED * _BLOCK]
      block: list[int] = []
      for i in map(int, rng.permutation(few[np.isfinite(near[few])])):
        if len(block) < _BLOCK and (not block or (units[block] @ units[i]).max() < _APART):
          block.append(i)
      near = near + self._to(units, block)
      near[block] = np.inf
      chosen += block
    return chosen[:n]

  def _to(self, units: np.ndarray, block: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns f32[N]: the near kernel over some of the questions themselves."""
    return np.exp((units @ units[block].T - 1) / self.config.near).sum(1)

  def _evidence(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns f32[N] twice: how many verdicts are near, and how many of them are finds, with the
    prior.
    """
    near, finds, wide, wide_finds = self._sums(units)
    return near, finds + (wide_finds + _PRIOR * self._found.mean()) / (wide + _PRIOR)

  def _sums(self, units: np.ndarray) -> np.ndarray:
    """Returns f32[4,N]: the near and the wide kernel over all verdicts and over finds."""
    if self._known is None:
      raise ValueError("nothing was fitted yet")
    out = []
    for start in range(0, len(units), _ROWS):
      part = units[start : start + _ROWS]
      rows = np.resize(part, (_ROWS, units.shape[1]))  # One static shape.
      out.append(np.asarray(_kernels(rows, *self._known, near=self.config.near))[:, : len(part)])
    return np.concatenate(out, axis=1)


@functools.partial(jax.jit, static_argnames="near")
def _kernels(units: Array, known: Array, there: Array, found: Array, *, near: float) -> Array:
  """Returns f32[4,N] of `Neighbours._sums`; rows of `known` that are not there count nothing."""
  wide = jnp.exp((units @ known.T - 1) / (_WIDE * near))
  sums = jnp.stack([there, found], axis=1)
  return jnp.concatenate([wide**_WIDE @ sums, wide @ sums], axis=1).T


def make(
  config: SurrogateConfig, *, look: Look, reader: Reader | None, seed: int
) -> Surrogate | Neighbours:
  """Returns the surrogate of a run: neighbours in the states of its reader, or without one the net.

  Args:
    config: of the surrogate.
    look: what the net sees of images.
    reader: of the run.
    seed: of the run.
  """
  if reader is None:
    return Surrogate(config, look=look, seed=seed)
  return Neighbours(config, reader=reader)
