# SPDX-License-Identifier: Apache-2.0
"""Symbolic scenes: a 4x4 grid of cells that hold objects, a dial and a gauge on a background.

A scene is the truth about an image. Everything else in this package maps to it or from it: the
renderer (scene <-> pixels), the questions (program x scene -> answer) and the language (caption
or edit instruction <-> scene).
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import TypeVar

import numpy as np

T = TypeVar("T")

GRID = 4
CELLS = GRID * GRID

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan")
SIZES = ("small", "big")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
READINGS = (
  "north",
  "northeast",
  "east",
  "southeast",
  "south",
  "southwest",
  "west",
  "northwest",
)
LEVELS = ("empty", "low", "half", "high", "full")
BACKGROUNDS = ("white", "gray", "black", "brown")
ORDINALS = DIGITS[1 : GRID + 1]

MIN_OBJECTS, MAX_OBJECTS = 2, 6


@dataclasses.dataclass(frozen=True, order=True)
class Obj:
  """One object. All fields are words of the tuples above; `digit` is None for a bare object."""

  cell: int
  shape: str
  color: str
  size: str
  digit: str | None = None

  @property
  def row(self) -> str:
    return ORDINALS[self.cell // GRID]

  @property
  def column(self) -> str:
    return ORDINALS[self.cell % GRID]


@dataclasses.dataclass(frozen=True)
class Instrument:
  """The dial (`value` in READINGS) or the gauge (`value` in LEVELS)."""

  cell: int
  value: str


@dataclasses.dataclass(frozen=True)
class Scene:
  """Objects (sorted by cell), an optional dial and gauge, and the background's colour."""

  objects: tuple[Obj, ...]
  dial: Instrument | None
  gauge: Instrument | None
  background: str

  def __post_init__(self):
    cells = self.occupied()
    if len(cells) != len(set(cells)):
      raise ValueError(f"two things share a cell: {sorted(cells)}")
    object.__setattr__(self, "objects", tuple(sorted(self.objects)))

  def occupied(self) -> list[int]:
    """Cells that hold something, in no particular order."""
    instruments = [x.cell for x in (self.dial, self.gauge) if x]
    return [o.cell for o in self.objects] + instruments

  def at(self, cell: int) -> Obj | None:
    """Returns the object in `cell`, or None."""
    return next((o for o in self.objects if o.cell == cell), None)

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text: str) -> "Scene":
    d = json.loads(text)
    return cls(
      objects=tuple(Obj(**o) for o in d["objects"]),
      dial=Instrument(**d["dial"]) if d["dial"] else None,
      gauge=Instrument(**d["gauge"]) if d["gauge"] else None,
      background=d["background"],
    )


def cell_of(row: str, column: str) -> int:
  """Cell index of a (row word, column word) pair, both "one" to "four"."""
  return ORDINALS.index(row) * GRID + ORDINALS.index(column)


def sample_scene(rng: np.random.Generator) -> Scene:
  """Draws a scene. Half of them use two colours, half two shapes, so that counts and ties occur."""
  n = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
  cells = [int(c) for c in rng.permutation(CELLS)]
  colors = _palette(rng, COLORS)
  shapes = _palette(rng, SHAPES)
  objects = []
  for cell in cells[:n]:
    digit = DIGITS[int(rng.integers(10))] if rng.random() < 0.5 else None
    objects.append(
      Obj(
        cell=cell,
        shape=pick(rng, shapes),
        color=pick(rng, colors),
        size=pick(rng, SIZES),
        digit=digit,
      )
    )
  dial = Instrument(cells[n], pick(rng, READINGS)) if rng.random() < 0.6 else None
  gauge = Instrument(cells[n + 1], pick(rng, LEVELS)) if rng.random() < 0.6 else None
  return Scene(tuple(objects), dial, gauge, pick(rng, BACKGROUNDS))


def _palette(rng, words):
  """Returns two of the words half of the time, else all of them."""
  if rng.random() < 0.5:
    return [words[int(i)] for i in rng.choice(len(words), 2, replace=False)]
  return words


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
  """Returns one of the options, all equally likely."""
  return options[int(rng.integers(len(options)))]
