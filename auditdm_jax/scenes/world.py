# SPDX-License-Identifier: Apache-2.0
"""Symbolic scenes: a grid of cells that hold objects, a dial and a gauge on a background.

A scene is the truth about an image. Everything else in this package maps to it or from it: the
renderer (scene <-> pixels), the questions (program x scene -> answer) and the language (caption
or edit instruction <-> scene). A `Language` says what there can be: `SCENES` is the shipped world
and `needle.NEEDLE` a larger one.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import json
from typing import Any, TypeVar

import numpy as np

from auditdm_jax.core import streams

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
NEIGHBOURS = {"north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}


@dataclasses.dataclass(frozen=True)
class Lexicon:
  """Words that stand for three attributes at once and cannot be guessed from them.

  Each combination has two syllables of its own, dealt out at random: who has not seen it named
  cannot compose its name, whatever else is known about its parts.

  Attributes:
    name: what it is called in questions.
    fields: the three attributes, of an object or of the whole scene.
    values: their words.
    syllables: what names are made of.
    forms: two questions for the name, of which "X" is the object; without it they are about the
      scene.
  """

  name: str
  fields: tuple[str, str, str]
  values: tuple[tuple[str, ...], ...]
  syllables: tuple[str, ...]
  forms: tuple[str, str]

  @functools.cached_property
  def names(self) -> dict[tuple[str, ...], str]:
    """Combination -> its name, each another."""
    things = list(itertools.product(*self.values))
    pairs = list(itertools.product(self.syllables, repeat=2))
    order = streams.rng(0, "lexicon", self.name).permutation(len(pairs))
    return {t: " ".join(pairs[int(i)]) for t, i in zip(things, order[: len(things)], strict=True)}

  @functools.cached_property
  def things(self) -> dict[str, tuple[str, ...]]:
    """Name -> what it stands for."""
    return {name: thing for thing, name in self.names.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Language:
  """What there can be in a world's scenes.

  Attributes:
    name: of the world.
    grid: cells in a row and in a column.
    shapes: of objects.
    colors: of objects.
    textures: of objects; () = they have none.
    walls: whether a wall may hide an object's lower part.
    least: fewest objects.
    most: most objects.
    beside: chance of an object to be beside another one on purpose.
    instruments: chance of a dial, and of a gauge.
    scarce: words that a pool's images hardly show.
    lexicons: names that must be learned by heart.
    caption_words: longest caption that an auditor learns to write.
  """

  name: str
  grid: int
  shapes: tuple[str, ...]
  colors: tuple[str, ...]
  textures: tuple[str, ...] = ()
  walls: bool = False
  least: int = MIN_OBJECTS
  most: int = MAX_OBJECTS
  beside: float = 0.0
  instruments: float = 0.6
  scarce: tuple[str, ...] = ()
  lexicons: tuple[Lexicon, ...] = ()
  caption_words: int = 22

  @property
  def cells(self) -> int:
    return self.grid**2

  @property
  def ordinals(self) -> tuple[str, ...]:
    """Words of rows and columns."""
    return DIGITS[1 : self.grid + 1]

  def row(self, cell: int) -> str:
    return self.ordinals[cell // self.grid]

  def column(self, cell: int) -> str:
    return self.ordinals[cell % self.grid]

  def cell_of(self, row: str, column: str) -> int:
    """Returns the cell of a row's and a column's word."""
    return self.ordinals.index(row) * self.grid + self.ordinals.index(column)

  def step(self, cell: int, direction: str) -> int | None:
    """Returns the next cell in a direction; None behind the edge."""
    row, column = divmod(cell, self.grid)
    down, right = NEIGHBOURS[direction]
    row, column = row + down, column + right
    return row * self.grid + column if {row, column} <= set(range(self.grid)) else None


SCENES = Language("scenes", GRID, SHAPES, COLORS)


@dataclasses.dataclass(frozen=True, order=True)
class Obj:
  """One object. All fields are words; `digit` is None for a bare object.

  Attributes:
    texture: None in a world without textures.
    walled: whether its lower part is behind a wall.
  """

  cell: int
  shape: str
  color: str
  size: str
  digit: str | None = None
  texture: str | None = None
  walled: bool = False

  def to_dict(self) -> dict[str, Any]:
    """Returns its fields, without those that its world does not have."""
    fields = dataclasses.asdict(self)
    if self.texture is None:
      del fields["texture"], fields["walled"]
    return fields


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
  language: Language = dataclasses.field(default=SCENES, compare=False, repr=False)

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
    things = {
      "objects": [o.to_dict() for o in self.objects],
      "dial": dataclasses.asdict(self.dial) if self.dial else None,
      "gauge": dataclasses.asdict(self.gauge) if self.gauge else None,
      "background": self.background,
    }
    return json.dumps(things, sort_keys=True)

  @classmethod
  def from_json(cls, text: str, language: Language = SCENES) -> "Scene":
    d = json.loads(text)
    return cls(
      objects=tuple(Obj(**o) for o in d["objects"]),
      dial=Instrument(**d["dial"]) if d["dial"] else None,
      gauge=Instrument(**d["gauge"]) if d["gauge"] else None,
      background=d["background"],
      language=language,
    )


def sample_scene(
  rng: np.random.Generator, language: Language = SCENES, *, pool: bool = False, least: int = 0
) -> Scene:
  """Draws a scene. Half of them use two colours, half two shapes, so that counts and ties occur.

  Args:
    rng: what is drawn from.
    language: what there can be.
    pool: whether it is one of a pool's images, which show scarce words in one scene of 400.
    least: fewest objects, 0 = as a pool's images; whoever has one made may ask for a single one.
  """
  scarce = language.scarce
  if not pool or scarce and rng.random() < 1 / 400:
    scarce = ()

  def common(words):
    return [w for w in words if w not in scarce]

  n = int(rng.integers(least or language.least, language.most + 1))
  cells = [int(c) for c in rng.permutation(language.cells)]
  if language.beside:
    cells = _beside(rng, language, cells, n + 2)
  colors, shapes = _palette(rng, common(language.colors)), _palette(rng, common(language.shapes))
  textures, digits = common(language.textures), common(DIGITS)
  objects = []
  for cell in cells[:n]:
    thing = Obj(
      cell=cell,
      digit=pick(rng, digits) if rng.random() < 0.5 else None,
      shape=pick(rng, shapes),
      color=pick(rng, colors),
      size=pick(rng, SIZES),
    )
    if textures:
      walled = language.walls and bool(rng.random() < 0.25)
      thing = dataclasses.replace(thing, texture=pick(rng, textures), walled=walled)
    objects.append(thing)
  dial, gauge = (
    Instrument(cell, pick(rng, common(words))) if rng.random() < language.instruments else None
    for cell, words in ((cells[n], READINGS), (cells[n + 1], LEVELS))
  )
  return Scene(tuple(objects), dial, gauge, pick(rng, BACKGROUNDS), language)


def _beside(rng: np.random.Generator, language: Language, cells: list[int], n: int) -> list[int]:
  """Returns `n` of the cells in such an order that some are beside one before them."""
  out, free = cells[:1], cells[1:]
  while len(out) < n:
    near = [
      cell
      for direction in NEIGHBOURS
      if (cell := language.step(pick(rng, out), direction)) is not None and cell in free
    ]
    cell = pick(rng, near) if near and rng.random() < language.beside else free[0]
    out.append(cell)
    free.remove(cell)
  return out


def _palette(rng, words):
  """Returns two of the words half of the time, else all of them."""
  if rng.random() < 0.5:
    return [words[int(i)] for i in rng.choice(len(words), 2, replace=False)]
  return words


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
  """Returns one of the options, all equally likely."""
  return options[int(rng.integers(len(options)))]
