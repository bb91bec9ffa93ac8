# SPDX-License-Identifier: Apache-2.0
"""Training examples as a stream of batches, made ahead of the steps that train on them.

1. Each part, new and replay, is walked through in shuffled passes (grain's, which keep no list).
2. A batch has the same number of rows of each part at each step, new ones first.
3. An example with several answers goes through all of them, in an order of its own, before one
   comes again, as big_vision's `choice_no_replacement` has it; or draws one at each pass.
4. Threads read, decode and resize row by row; one more puts rows together to the next batch. Each
   process reads the rows of its own devices only.

The row k of step n is a pure function of (seed, n, k), whatever the number of processes, so that
there is no state to store but the step.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
from typing import Any, Literal

import grain
import jax
from jax.sharding import Mesh
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime, streams
from auditdm_jax.rectify import looks, rows, supervised
from auditdm_jax.rectify.examples import Examples, tokens_of


@dataclasses.dataclass(frozen=True)
class Part:
  """Some of a source's examples, of which each batch has `count` rows."""

  name: str
  source: Examples
  chosen: np.ndarray  # i64[N] which examples
  look: looks.Look
  count: int


@dataclasses.dataclass(frozen=True)
class Fed:
  """A batch on its devices, with what this process's rows say of all.

  Attributes:
    batch: the rows of all processes.
    tokens: how many tokens a row has on average, image slots included.
    targets: how many of them are supervised.
  """

  batch: supervised.Batch
  tokens: float
  targets: float


@dataclasses.dataclass(frozen=True)
class _Row:
  columns: dict[str, np.ndarray]  # [1,…] each, of `RowLayout.rows`
  image: np.ndarray


class _Walk:
  """An endless walk through shuffled passes over `size` examples."""

  def __init__(self, seed: int, part: str, size: int, *, any_answer: bool):
    self._seed, self._part, self._size, self._any = seed, part, size, any_answer
    numbers = grain.MapDataset.range(size).seed(streams.word(seed, "finetune", part))
    self._order: Any = numbers.shuffle().repeat()

  def example(self, place: int) -> int:
    """Returns which example has a place of the walk."""
    return int(self._order[place])

  def answer(self, place: int, options: int) -> int:
    """Returns which of its answers the example at this place teaches."""
    if options == 1:
      return 0
    lap, turn = divmod(place // self._size, 1 if self._any else options)
    drawn = streams.rng(self._seed, "answers", self._part, self.example(place), lap)
    return int(drawn.permutation(options)[turn])


class Stream:
  """The batches of a fine-tuning."""

  def __init__(
    self,
    layout: rows.RowLayout,
    parts: Sequence[Part],
    *,
    seed: int,
    answers: Literal["one", "cycle", "any"] = "cycle",
    mesh: Mesh | None = None,
  ):
    """Takes the parts in the order that they have in a batch; see `recipes.RowFormat.answers`."""
    self._layout, self._parts, self._mesh = layout, parts, mesh
    self._walks = [
      _Walk(seed, part.name, len(part.chosen), any_answer=answers == "any") for part in parts
    ]
    self._size = sum(part.count for part in parts)
    self._own = own_rows(mesh, self._size)

  @contextlib.contextmanager
  def batches(self, first: int, last: int) -> Iterator[Iterator[Fed]]:
    """Opens the batches of the steps from `first` up to `last`, without it.

    Raises:
      UserError: while they are taken: a row or its picture is invalid; the error says which.
    """
    n = len(self._own)
    places = grain.MapDataset.range(first * n, last * n).map(self._train_row)
    with contextlib.closing(iter(self._made(places, n))) as made:
      yield map(self._placed, made)

  @contextlib.contextmanager
  def in_order(self, part: Part) -> Iterator[Iterator[Fed]]:
    """Opens the examples of a part in batches, each example with its first answer.

    The last batch is filled up with the last example.
    """
    total = -(-len(part.chosen) // self._size)

    def row(place: int) -> _Row:
      step, k = divmod(place, len(self._own))
      number = min(step * self._size + int(self._own[k]), len(part.chosen) - 1)
      return self._row(part, int(part.chosen[number]), lambda options: 0)

    places = grain.MapDataset.range(total * len(self._own)).map(row)
    with contextlib.closing(iter(self._made(places, len(self._own)))) as made:
      yield map(self._placed, made)

  def _made(self, places: grain.MapDataset, size: int) -> grain.IterDataset:
    row_bytes = max(part.look.row_bytes for part in self._parts)
    made = looks.threaded(places, size=size, row_bytes=row_bytes).map(self._joined)
    return grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=1)

  def _train_row(self, place: int) -> _Row:
    """Returns a row of a step: the place counts the rows of this process."""
    step, k = divmod(place, len(self._own))
    row = int(self._own[k])
    for part, walk in zip(self._parts, self._walks, strict=True):
      if row < part.count:
        at = step * part.count + row
        number = int(part.chosen[walk.example(at)])
        return self._row(part, number, functools.partial(walk.answer, at))
      row -= part.count
    raise ValueError(f"no row {self._own[k]} among {self._size}")

  def _row(self, part: Part, number: int, which: Callable[[int], int]) -> _Row:
    example = part.source[number]
    columns = tokens_of(self._layout, example, example.answers[which(len(example.answers))])
    return _Row(columns, part.look.read(number, example))

  def _joined(self, made: Sequence[_Row]) -> supervised.Batch:
    """Returns this process's rows of a batch, one image each."""
    columns = {
      name: np.concatenate([row.columns[name] for row in made]) for name in made[0].columns
    }
    return supervised.Batch(
      images=self._parts[0].look.stack([row.image for row in made]),  # Alike in all parts.
      image=None,
      **columns,
    )

  def _placed(self, batch: supervised.Batch) -> Fed:
    tokens, targets = (float(x.sum(1).mean()) for x in (batch.valid, batch.mask))
    return Fed(placed(batch, self._mesh, own=self._own, size=self._size), tokens, targets)


def own_rows(mesh: Mesh | None, size: int) -> np.ndarray:
  """Returns i64[R], in order: the rows of a batch that this process's devices have."""
  every = np.arange(size)
  if mesh is None or runtime.count() == 1:
    return every
  where = mesh_lib.rows_sharding(mesh, size).addressable_devices_indices_map((size,))
  return np.unique(np.concatenate([every[index or ()].ravel() for index in where.values()]))


def placed(
  batch: supervised.Batch, mesh: Mesh | None, *, own: np.ndarray, size: int
) -> supervised.Batch:
  """Returns the batch of `size` rows on a mesh, of which this process has `own`."""
  if mesh is None:
    return batch
  where = mesh_lib.rows_sharding(mesh, size)

  def put(x: np.ndarray) -> jax.Array:
    def cut(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(size)
      first = int(np.searchsorted(own, start))
      return x[first : first + stop - start]

    return jax.make_array_from_callback((size, *x.shape[1:]), where, cut)

  return jax.tree.map(put, batch)
