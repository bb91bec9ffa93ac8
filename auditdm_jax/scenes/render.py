# SPDX-License-Identifier: Apache-2.0
"""Scene -> pixels, and pixels -> scene by exact template matching.

An image has cells of 16x16 pixels, so that one cell is one ViT patch: u8[64,64,3] in the shipped
world. Each sprite is jittered by up to one pixel and the image carries Gaussian noise (sd 6).
`parse` inverts `render`: it scores every sprite at every jitter against a cell's pixels, which
makes the oracle work on any image of a world, whoever made it.
"""

from collections.abc import Sequence
import functools
import itertools

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.scenes import world
from auditdm_jax.scenes.world import SCENES, Instrument, Language, Obj, Scene

CELL = 16
NOISE_SD = 6.0
WALL = 12  # First row of a cell that a wall hides; a digit ends above it.
JITTERS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))

_RGB = {
  "red": (225, 40, 40),
  "green": (40, 170, 60),
  "blue": (50, 80, 235),
  "yellow": (240, 220, 40),
  "purple": (160, 50, 190),
  "orange": (250, 140, 20),
  "cyan": (40, 210, 220),
  "maroon": (128, 20, 40),
}
_BACKGROUND_RGB = {
  "white": (240, 240, 240),
  "gray": (135, 135, 135),
  "black": (25, 25, 25),
  "brown": (110, 75, 45),
}
# Ink classes of a sprite's pixels: 0 background, 1 body colour, 2 lightened body, 3 black, 4 white.
_BACK, _BODY, _LIGHT, _BLACK, _WHITE = range(5)
_BLACK_RGB, _WHITE_RGB = (0, 0, 0), (255, 255, 255)

_GLYPHS = (
  "111101101101111",
  "010110010010111",
  "111001111100111",
  "111001111001111",
  "101101111001001",
  "111100111001111",
  "111100111101111",
  "111001010010010",
  "111101111101111",
  "111101111001111",
)


def pixels(language: Language) -> int:
  """Returns the width and height of a world's images."""
  return CELL * language.grid


SIZE = pixels(SCENES)


def _shape_ink(shape: str, size: str) -> np.ndarray:
  """Returns i8[16,16] ink of a bare shape in the middle of its cell."""
  r = 6.5 if size == "big" else 4.5
  y, x = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
  a = np.abs
  body = {
    "circle": x**2 + y**2 <= r**2,
    "square": (a(x) <= r - 1) & (a(y) <= r - 1),
    "triangle": (y <= r - 1) & (y >= -r) & (a(x) <= (y + r) * 0.6 + 0.5),
    "diamond": a(x) + a(y) <= r + 0.5,
    "cross": ((a(x) <= r / 2.6) | (a(y) <= r / 2.6)) & (a(x) <= r) & (a(y) <= r),
    "ring": x**2 + y**2 <= r**2,
    "wedge": (y >= 1 - r) & (y <= r) & (a(x) <= (r - y) * 0.6 + 0.5),
    "hourglass": (a(y) <= r) & (a(x) <= a(y) * 0.8 + 0.8),
    "pill": (a(y) <= r / 2) & (a(x) <= r),
    "cup": (a(x) <= r - 1) & (a(y) <= r - 1) & ((a(x) > r - 3) | (y > r - 3)),
    "ell": (a(x) <= r - 1) & (a(y) <= r - 1) & ((x <= -1) | (y >= 1)),
  }[shape]
  ink = np.where(body, _BODY, _BACK).astype(np.int8)
  if shape == "ring":
    ink[x**2 + y**2 <= (r - 2) ** 2] = _LIGHT
  return ink


def _textured(ink: np.ndarray, texture: str | None) -> np.ndarray:
  """Returns the ink with light lines, dots or checks on its body."""
  y, x = np.mgrid[0:CELL, 0:CELL]
  light = {
    "striped": y % 3 == 1,
    "barred": x % 3 == 1,
    "dotted": (x % 2 == 0) & (y % 2 == 0),
    "checkered": (x // 2 + y // 2) % 2 == 0,
  }.get(texture or "", np.zeros(ink.shape, bool))
  return np.where(light & (ink == _BODY), _LIGHT, ink).astype(np.int8)


def _behind_wall(ink: np.ndarray) -> np.ndarray:
  """Returns i8[16,16] ink of a cell whose lowest rows are bricks."""
  out = ink.copy()
  out[WALL:] = _WHITE
  out[WALL] = out[WALL + 1 :, ::4] = _BLACK
  return out


def _with_digit(ink: np.ndarray, digit: str | None) -> np.ndarray:
  if digit is None:
    return ink
  glyph = np.array([c == "1" for c in _GLYPHS[world.DIGITS.index(digit)]]).reshape(5, 3)
  out = ink.copy()
  out[6:11, 7:10][glyph] = _BLACK
  return out


def _dial_ink(reading: str) -> np.ndarray:
  y, x = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
  r = np.hypot(x, y)
  ink = np.where(r <= 6.6, _WHITE, _BACK).astype(np.int8)
  ink[(r <= 6.6) & (r > 5.4)] = _BLACK
  angle = world.READINGS.index(reading) * np.pi / 4
  along = x * np.sin(angle) - y * np.cos(angle)
  across = np.abs(x * np.cos(angle) + y * np.sin(angle))
  ink[(along >= -0.5) & (along <= 5) & (across <= 1.0)] = _BLACK
  return ink


def _gauge_ink(level: str) -> np.ndarray:
  ink = np.full((CELL, CELL), _BACK, np.int8)
  ink[2:14, 5:11] = _BLACK
  ink[3:13, 6:10] = _WHITE
  filled = round(10 * world.LEVELS.index(level) / 4)
  ink[13 - filled : 13, 7:9] = _BLACK
  return ink


@functools.cache
def _sprites(language: Language) -> tuple[list[tuple], np.ndarray]:
  """All (kind, …) sprite keys and their inks i8[N,16,16] at all jitters; the jitter is last."""
  keys, inks = [], []
  looks = itertools.product(
    language.shapes,
    world.SIZES,
    language.textures or (None,),
    (False, True) if language.walls else (False,),
  )
  for shape, size, texture, walled in looks:
    bare = _textured(_shape_ink(shape, size), texture)
    for digit in (None, *world.DIGITS):
      keys.append(("object", shape, size, digit, texture, walled))
      inks.append(_with_digit(bare, digit))
  for reading in world.READINGS:
    keys.append(("dial", reading))
    inks.append(_dial_ink(reading))
  for level in world.LEVELS:
    keys.append(("gauge", level))
    inks.append(_gauge_ink(level))
  all_keys = [(k, j) for k in keys for j in range(len(JITTERS))]
  moved = [(key, np.roll(i, j, (0, 1))) for key, i in zip(keys, inks, strict=True) for j in JITTERS]
  # A wall stands still.
  shown = [_behind_wall(i) if key[0] == "object" and key[5] else i for key, i in moved]
  return all_keys, np.stack(shown)


@functools.cache
def _ink_of(language: Language) -> dict[tuple, int]:
  return {key: i for i, key in enumerate(_sprites(language)[0])}


def _colors(color: str | None, background: str) -> np.ndarray:
  """Returns f32[5,3]: the RGB of each ink class."""
  body = np.array(_RGB[color] if color else _WHITE_RGB, np.float32)
  light = body * 0.4 + 255 * 0.6
  back = np.array(_BACKGROUND_RGB[background], np.float32)
  return np.stack([back, body, light, np.array(_BLACK_RGB), np.array(_WHITE_RGB)]).astype(
    np.float32
  )


def _window(cell: int, grid: int) -> tuple[slice, slice]:
  row, column = divmod(cell, grid)
  return slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


def contents(scene: Scene) -> dict[int, tuple[tuple, str | None]]:
  """cell -> (sprite key, colour) of everything in the scene."""
  out: dict[int, tuple[tuple, str | None]] = {
    o.cell: (("object", o.shape, o.size, o.digit, o.texture, o.walled), o.color)
    for o in scene.objects
  }
  if scene.dial:
    out[scene.dial.cell] = (("dial", scene.dial.value), None)
  if scene.gauge:
    out[scene.gauge.cell] = (("gauge", scene.gauge.value), None)
  return out


def render(scene: Scene, seed: int) -> np.ndarray:
  """Draws u8[H,W,3]; `seed` fixes jitter and noise."""
  size = pixels(scene.language)
  blank = np.zeros((size, size, 3), np.uint8)
  return _draw(blank, scene, range(scene.language.cells), seed)


def redraw(image: np.ndarray, before: Scene, after: Scene, seed: int) -> np.ndarray:
  """`image` of scene `before`, with only the cells that differ in `after` drawn anew."""
  if before.background != after.background:
    return render(after, seed)
  old, new = contents(before), contents(after)
  changed = [c for c in range(after.language.cells) if old.get(c) != new.get(c)]
  return _draw(image, after, changed, seed)


def _draw(image, scene, cells, seed):
  rng = streams.rng(seed, "pixels")
  language = scene.language
  jitters = rng.integers(len(JITTERS), size=language.cells)
  noise = rng.normal(0, NOISE_SD, image.shape).astype(np.float32)
  things, (_, inks), index = contents(scene), _sprites(language), _ink_of(language)
  out = image.copy()
  for cell in cells:
    window = _window(cell, language.grid)
    key, color = things.get(cell, (None, None))
    colors = _colors(color, scene.background)
    ink = inks[index[key, int(jitters[cell])]] if key else np.zeros((CELL, CELL), np.int8)
    out[window] = np.clip(colors[ink] + noise[window] + 0.5, 0, 255)
  return out


@functools.cache
def _candidates(language: Language) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns sprites without a digit at all jitters, and the sprites each may be with one.

  Returns:
    inks i8[K*J,256] of K keys at J jitters, the same as a matrix f64[5*256,K*J] that adds up the
    errors of the inks' pixels, and numbers i64[K*J,11] of the sprites with no digit or a digit at
    the same jitter (an instrument's own number, repeated).
  """
  keys, inks = _sprites(language)
  bare = [i for i, (key, _) in enumerate(keys) if key[0] != "object" or key[3] is None]
  numbers = [
    [
      _ink_of(language)[(*key[:3], digit, *key[4:]) if key[0] == "object" else key, jitter]
      for digit in (None, *world.DIGITS)
    ]
    for key, jitter in (keys[i] for i in bare)
  ]
  own = inks[bare].reshape(len(bare), -1)
  adds = (own[:, None] == np.arange(5)[:, None]).reshape(len(bare), -1).T
  return own, adds.astype(np.float64), np.array(numbers)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels that a digit is in by jitter i64[jitters,15], and the black ones f64[15,11].

  The first of the eleven is no digit.
  """
  pixels = np.arange(CELL * CELL).reshape(CELL, CELL)
  at = np.stack([np.roll(pixels, (-dy, -dx), (0, 1))[6:11, 7:10].ravel() for dy, dx in JITTERS])
  black = [[float(c) for c in glyph] for glyph in ("0" * 15, *_GLYPHS)]
  return at, np.array(black).T


def parse(image: np.ndarray, language: Language = SCENES) -> Scene:
  """Returns the scene that `image` u8[H,W,3] shows.

  Raises:
    ValueError: the image is not of this world's size.
  """
  size = pixels(language)
  if image.shape != (size, size, 3) or image.dtype != np.uint8:
    raise ValueError(f"expected u8[{size},{size},3], got {image.dtype}{list(image.shape)}")
  values, grid = image.astype(np.float32), language.grid
  background = _parse_background(values, grid)
  patches = values.reshape(grid, CELL, grid, CELL, 3).swapaxes(1, 2).reshape(-1, CELL * CELL, 3)
  off = np.abs(patches - np.array(_BACKGROUND_RGB[background], np.float32))
  # By hand: NumPy is slow where the last axis is this short.
  shown = np.maximum(np.maximum(off[..., 0], off[..., 1]), off[..., 2]) > 4.5 * NOISE_SD
  full = np.flatnonzero(shown.sum(axis=1) >= 12)
  colors = _colors_of(patches[full], shown[full], language.colors)
  keys = _match(patches[full], colors, background, language) if len(full) else []
  objects, dial, gauge = [], None, None
  for cell, key, color in zip(full.tolist(), keys, colors, strict=True):
    if key[0] == "object":
      _, shape, size, digit, texture, walled = key
      objects.append(Obj(cell, shape, color, size, digit, texture, walled))
    elif key[0] == "dial":
      dial = Instrument(cell, key[1])
    else:
      gauge = Instrument(cell, key[1])
  return Scene(tuple(objects), dial, gauge, background, language)


def _parse_background(image: np.ndarray, grid: int) -> str:
  """Returns the background whose colour most of the cells' corner pixels have."""
  corners = image.reshape(grid, CELL, grid, CELL, 3)[:, ::15, :, ::15].reshape(-1, 3)
  median = np.median(corners, axis=0)
  return min(_BACKGROUND_RGB, key=lambda b: np.abs(median - _BACKGROUND_RGB[b]).sum())


def _colors_of(patches: np.ndarray, shown: np.ndarray, names: Sequence[str]) -> list[str]:
  """Returns the colour that most of the pixels shown bool[N,256] of f32[N,256,3] are near to."""
  off = np.abs(patches[:, :, None] - np.array([_RGB[n] for n in names], np.float32))
  distance = off[..., 0] + off[..., 1] + off[..., 2]
  near = shown & (distance.min(axis=2) < 75)
  votes = (near[:, :, None] & (distance.argmin(axis=2)[:, :, None] == np.arange(len(names)))).sum(1)
  return [names[int(i)] for i in votes.argmax(axis=1)]


def _match(
  patches: np.ndarray, colors: Sequence[str], background: str, language: Language
) -> list[tuple]:
  """Returns for each cell f32[N,256,3] the sprite key with the least squared error.

  Of equal errors that of the first sprite counts. Colours are multiples of a fifth: five times a
  difference is whole, so that its squares add up exactly, in any order.
  """
  inked = np.rint(5 * np.stack([_colors(c, background) for c in colors]).astype(np.float64))
  off = (5.0 * patches[:, None] - inked[:, :, None]) ** 2
  errors = off[..., 0] + off[..., 1] + off[..., 2]  # f64[N,5,256]
  inks, adds, numbers = _candidates(language)
  at, black = _digits()
  cell = np.arange(len(errors))[:, None]
  scores = errors.reshape(len(errors), -1) @ adds
  by_jitter = scores.reshape(len(errors), -1, len(JITTERS))
  # First the likeliest jitters of each sprite, then the digits: they hide part of a shape.
  jitters = np.argsort(by_jitter, axis=2)[:, :, :3]
  first = len(JITTERS) * np.arange(by_jitter.shape[1])[:, None]
  rows = (first + jitters).reshape(len(errors), -1)  # i64[N,3K]
  pixels = at[rows % len(JITTERS)]
  places = cell[:, :, None]
  change = errors[places, _BLACK, pixels] - errors[places, inks[rows[:, :, None], pixels], pixels]
  options = numbers[rows]  # i64[N,3K,11]
  # An instrument has no digit: all its options are one sprite, the first of them.
  change = np.where(options[:, :, :1] == options[:, :, 1:2], 0.0, change)
  total = scores[cell, rows][:, :, None] + change @ black
  least = total == total.min(axis=(1, 2), keepdims=True)
  sprites = _sprites(language)[0]
  best = np.where(least, options, len(sprites)).min(axis=(1, 2))
  return [sprites[i][0] for i in best]
