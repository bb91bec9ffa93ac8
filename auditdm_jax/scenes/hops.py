# SPDX-License-Identifier: Apache-2.0
"""Questions of larger worlds: textures, walls, neighbours over two and three hops, and names.

  hop 1   find the object: by its cell, or by colour and shape
  hop 2   go to the object in the next cell, to the north, east, south or west
  hop 3   go on from there; or look up the name of what is there

Of an ambiguous first object nothing can be said. Without an object at a step there is nothing.
"""

import functools

import numpy as np

from auditdm_jax.scenes.programs import (
  NO,
  NONE,
  UNANSWERABLE,
  YES,
  QuestionKind,
  matches,
  one,
  propose_from,
)
from auditdm_jax.scenes.world import DIGITS, NEIGHBOURS, Language, Lexicon, Obj, Scene, pick

_HERE = "the object at row R column K"
_KEY = "the C S"
_NEXT = "the object P of the C S"
_BEYOND = "the object Q of the object P of the C S"


def kinds(language: Language) -> list[QuestionKind]:
  """Returns the kinds of question of a world with textures."""
  place = propose_from(language, "row", "column")
  both = propose_from(language, "color", "shape")
  texture = propose_from(language, "texture")

  one_step, two_steps = (functools.partial(_propose_steps, both, hops) for hops in (1, 2))

  def reading(name, form, other, read):
    """An attribute of the neighbour of a named object, and of that one's neighbour."""
    return [
      _kind(f"{name}_next", form, other, _NEXT, read, one_step),
      _kind(f"{name}_beyond", form, other, _BEYOND, read, two_steps),
    ]

  found = [
    _kind("texture_at", "what texture is X", "X has what texture", _HERE, _texture, place),
    _kind("texture_of", "what texture is X", "X has what texture", _KEY, _texture, both),
    _kind("walled_at", "is X behind a wall", "X is behind a wall", _HERE, _walled, place),
    _kind("walled_of", "is X behind a wall", "X is behind a wall", _KEY, _walled, both),
    QuestionKind("color_textured", ("what color is the T object", "the T object is what color"),
          lambda s, a: one(matches(s, a), lambda o: o.color), texture),
    QuestionKind("count_texture", ("how many T objects are there", "there are how many T objects"),
          lambda s, a: DIGITS[len(matches(s, a))], texture),
    *reading("color", "what color is X", "X is what color", lambda o: o.color),
    *reading("shape", "what shape is X", "X is what shape", lambda o: o.shape),
    *reading("texture", "what texture is X", "X has what texture", _texture),
  ]  # fmt: skip
  for lexicon in language.lexicons:
    found += _named(lexicon, place, both)
  return found


def _named(lexicon: Lexicon, place, both) -> list[QuestionKind]:
  """Returns the questions for the names of a lexicon."""
  form, other = lexicon.forms
  if "X" not in form.split():
    run = functools.partial(_scene_name, lexicon)
    return [QuestionKind(lexicon.name, lexicon.forms, run, lambda *_: {}, keyed=False)]
  read = functools.partial(name_of, lexicon)
  steps = functools.partial(_propose_steps, both, 1)
  return [
    _kind(f"{lexicon.name}_at", form, other, _HERE, read, place),
    _kind(f"{lexicon.name}_of", form, other, _KEY, read, both),
    _kind(f"{lexicon.name}_next", form, other, _NEXT, read, steps),
  ]


def _kind(name, form, other, thing, read, propose) -> QuestionKind:
  first, second = (" ".join(thing if w == "X" else w for w in f.split()) for f in (form, other))
  return QuestionKind(name, (first, second), lambda s, a: _read(s, a, read), propose)


def _read(scene: Scene, slots: dict[str, str], read) -> str:
  """Finds the object, takes the steps, and reads what is there."""
  if "row" in slots:
    found = scene.at(scene.language.cell_of(slots["row"], slots["column"]))
    return (read(found) or NONE) if found else NONE
  keys = matches(scene, slots)
  if len(keys) > 1:
    return UNANSWERABLE
  found = keys[0] if keys else None
  for name in ("step", "second step"):
    if found and name in slots:
      cell = scene.language.step(found.cell, slots[name])
      found = None if cell is None else scene.at(cell)
  return (read(found) or NONE) if found else NONE


def _propose_steps(both, hops: int, rng: np.random.Generator, scene: Scene, key: Obj | None):
  """Draws steps from the key object, most of them to where there are objects."""
  slots = both(rng, scene, key)
  for name in ("step", "second step")[:hops]:
    ways = list(NEIGHBOURS)
    if key:
      there = {way: scene.language.step(key.cell, way) for way in ways}
      full = [way for way, cell in there.items() if cell is not None and scene.at(cell)]
      ways = full or ways
    slots[name] = pick(rng, ways)
    if key:
      cell = scene.language.step(key.cell, slots[name])
      key = None if cell is None else scene.at(cell)
  return slots


def _texture(o: Obj) -> str | None:
  return o.texture


def _walled(o: Obj) -> str:
  return YES if o.walled else NO


def name_of(lexicon: Lexicon, o: Obj) -> str | None:
  """Returns an object's name; None if it lacks an attribute that the name is about."""
  return lexicon.names.get(tuple(vars(o)[field] for field in lexicon.fields))


def _scene_name(lexicon: Lexicon, scene: Scene, slots: dict[str, str]) -> str:
  values = {
    "dial": scene.dial and scene.dial.value,
    "gauge": scene.gauge and scene.gauge.value,
    "background": scene.background,
  }
  return lexicon.names.get(tuple(values[field] or "" for field in lexicon.fields), NONE)
