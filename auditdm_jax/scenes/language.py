# SPDX-License-Identifier: Apache-2.0
"""Captions and edit instructions, in both directions: text <-> scene.

A full caption (`caption`) says everything about a scene and reads back to the same scene. A caption
may leave out sizes, places, the dial, the gauge and the background; `read_caption` fills in what is
left open from a seed, as a generator would. An edit instruction changes one thing.

  caption   a small red circle with seven at row two column three and the dial reads north at row
            one column four and the gauge is half and a gray background
  edit      make the red circle green | make the blue star big | turn the red circle into a ring |
            write five on the red circle | remove the red circle | move the red circle to row one
            column two | add a big blue ring with two at row one column one | turn the dial to
            north | set the gauge to full | paint the background brown

Where objects have textures, and walls before them:

  caption   a small striped red circle with seven behind a wall at row two column three
  edit      make the red circle dotted | hide the red circle | show the red circle
"""

import dataclasses
import functools

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.scenes import world
from auditdm_jax.scenes.world import SCENES, Instrument, Language, Obj, Scene


class LanguageError(ValueError):
  """The text does not say what to draw or what to change."""


class _Words:
  """A text's words with a reading position."""

  def __init__(self, text: str, language: Language):
    self.language = language
    self.text, self.words, self.i = text, text.lower().split(), 0

  def at_end(self) -> bool:
    return self.i >= len(self.words)

  def take(self, *options: str) -> str | None:
    """Returns the next word if it is one of the options."""
    if not self.at_end() and self.words[self.i] in options:
      self.i += 1
      return self.words[self.i - 1]
    return None

  def need(self, *options: str) -> str:
    word = self.take(*options)
    if word is None:
      got = "the end" if self.at_end() else repr(self.words[self.i])
      raise LanguageError(f"expected {' | '.join(options[:8])}, got {got} in {self.text[:200]!r}")
    return word

  def phrase(self, text: str) -> bool:
    """Takes a fixed phrase if all of it comes next."""
    words = text.split()
    if self.words[self.i : self.i + len(words)] == words:
      self.i += len(words)
      return True
    return False


def place(cell: int, language: Language = SCENES) -> str:
  return f"row {language.row(cell)} column {language.column(cell)}"


def describe(o: Obj, language: Language = SCENES, *, size: bool = True, cell: bool = True) -> str:
  """Returns an object's noun phrase without its article."""
  digit = f" with {o.digit}" if o.digit else ""
  return (
    (f"{o.size} " if size else "")
    + (f"{o.texture} " if o.texture else "")
    + f"{o.color} {o.shape}{digit}"
    + (" behind a wall" if o.walled else "")
    + (f" at {place(o.cell, language)}" if cell else "")
  )


def caption(scene: Scene) -> str:
  """Returns the full caption: `read_caption(caption(scene), seed) == scene` for every seed."""
  language = scene.language
  parts = [f"a {describe(o, language)}" for o in scene.objects]
  if scene.dial:
    parts.append(f"the dial reads {scene.dial.value} at {place(scene.dial.cell, language)}")
  if scene.gauge:
    parts.append(f"the gauge is {scene.gauge.value} at {place(scene.gauge.cell, language)}")
  return " and ".join([*parts, f"a {scene.background} background"])


def read_caption(text: str, seed: int, language: Language = SCENES) -> Scene:
  """Returns the scene a caption asks for; what it leaves open is drawn from `seed`.

  Raises:
    LanguageError: the text is no caption, or names more than fits.
  """
  rng = streams.rng(seed, "caption")
  objects, found = _read_parts(text, language)
  things = [*objects, *(found[k] for k in ("dial", "gauge") if k in found)]
  _place_all(things, rng, language)
  for o in objects:
    for field, options in _fields(language):
      o[field] = o[field] or world.pick(rng, options)
  background = found.get("background", {}).get("value")
  return Scene(
    objects=tuple(Obj(**o) for o in objects),
    dial=Instrument(**found["dial"]) if "dial" in found else None,
    gauge=Instrument(**found["gauge"]) if "gauge" in found else None,
    background=background or world.pick(rng, world.BACKGROUNDS),
    language=language,
  )


def _fields(language: Language) -> list[tuple[str, tuple[str, ...]]]:
  """Returns the attributes that each object has, and their words."""
  fields = [("shape", language.shapes), ("color", language.colors), ("size", world.SIZES)]
  return [*fields, ("texture", language.textures)] if language.textures else fields


def shows(text: str, scene: Scene) -> bool:
  """Returns whether a scene is one that the caption allows: what it says and nothing else.

  What the caption leaves open may be anything.

  Raises:
    LanguageError: the text is no caption.
  """
  objects, found = _read_parts(text, scene.language)
  for name, thing in (("dial", scene.dial), ("gauge", scene.gauge)):
    if (name in found) != (thing is not None):
      return False
    if thing and not _fits(found[name], dataclasses.asdict(thing)):
      return False
  background = found.get("background", {}).get("value", scene.background)
  things = [dataclasses.asdict(o) for o in scene.objects]
  return background == scene.background and _pair_up(objects, things)


def _fits(said: dict, thing: dict) -> bool:
  # No digit said is no digit: it is an attribute that a caption names if there is one.
  return all(value is None and field != "digit" or value == thing[field]
             for field, value in said.items())  # fmt: skip


def _pair_up(said: list[dict], things: list[dict]) -> bool:
  """Returns whether each thing said is one of the things, each another, and none is left."""
  if not said or not things:
    return not said and not things
  return any(
    _fits(said[0], thing) and _pair_up(said[1:], things[:i] + things[i + 1 :])
    for i, thing in enumerate(things)
  )


def _read_parts(text: str, language: Language) -> tuple[list[dict], dict[str, dict]]:
  """Returns the objects of a caption, and its dial, gauge and background if it has them."""
  words = _Words(text, language)
  objects: list[dict] = []
  found: dict[str, dict] = {}
  while True:
    _read_part(words, objects, found)
    if words.at_end():
      break
    words.need("and")
  if not 1 <= len(objects) <= language.most:
    raise LanguageError(f"a scene has 1 to {language.most} objects, not {len(objects)}")
  return objects, found


def _read_part(words, objects, found):
  """One item of a caption: an object, the dial, the gauge or the background."""
  if words.phrase("the dial reads"):
    name, part = "dial", {"value": words.need(*world.READINGS), "cell": _read_place(words)}
  elif words.phrase("the gauge is"):
    name, part = "gauge", {"value": words.need(*world.LEVELS), "cell": _read_place(words)}
  else:
    words.need("a")
    background = words.take(*world.BACKGROUNDS)
    if not background:
      objects.append(_read_object(words))
      return
    words.need("background")
    name, part = "background", {"value": background}
  if name in found:
    raise LanguageError(f"the {name} is described twice in {words.text[:200]!r}")
  found[name] = part


def _read_object(words) -> dict:
  """[size] [texture] [colour] shape-or-"object" [with digit] [behind a wall] [at row …]."""
  language = words.language
  size, texture = words.take(*world.SIZES), words.take(*language.textures)
  color, shape = words.take(*language.colors), words.need(*language.shapes, "object")
  digit = words.need(*world.DIGITS) if words.take("with") else None
  walled = language.walls and words.phrase("behind a wall")
  return {
    "cell": _read_place(words), "shape": None if shape == "object" else shape,
    "color": color, "size": size, "digit": digit, "texture": texture, "walled": walled,
  }  # fmt: skip


def _read_place(words) -> int | None:
  return _need_place(words) if words.take("at") else None


def _need_place(words) -> int:
  language = words.language
  words.need("row")
  row = words.need(*language.ordinals)
  words.need("column")
  return language.cell_of(row, words.need(*language.ordinals))


def _place_all(things, rng, language):
  """Puts things without a place into free cells."""
  taken = [t["cell"] for t in things if t["cell"] is not None]
  if len(taken) != len(set(taken)):
    raise LanguageError("two things are put into the same cell")
  free = [int(c) for c in rng.permutation(language.cells) if c not in taken]
  for thing in things:
    if thing["cell"] is None:
      thing["cell"] = free.pop()


def read_edit(text: str, scene: Scene) -> Scene:
  """Returns the scene after an edit instruction.

  Raises:
    LanguageError: the text is no instruction, names nothing or several things of the scene, or asks
      for what cannot be (an occupied cell, a seventh object, the last object removed).
  """
  words = _Words(text, scene.language)
  verbs = {
    "make": _make, "turn": _turn, "write": _write, "remove": _remove, "move": _move,
    "add": _add, "set": _set_gauge, "paint": _paint,
  }  # fmt: skip
  if scene.language.walls:
    verbs |= {"hide": _hide, "show": _show}
  after = verbs[words.need(*verbs)](words, scene)
  if not words.at_end():
    raise LanguageError(f"words are left over in {text[:200]!r}")
  if after == scene:
    raise LanguageError(f"nothing changes: {text[:200]!r}")
  return after


def _referent(words, scene) -> Obj:
  """Returns the only object a noun phrase "the [size] [texture] [colour] shape|object" fits."""
  words.need("the")
  language = words.language
  want = {"size": words.take(*world.SIZES), "texture": words.take(*language.textures)}
  want["color"] = words.take(*language.colors)
  shape = words.need(*language.shapes, "object")
  want["shape"] = None if shape == "object" else shape
  have = [o for o in scene.objects if all(v in (None, vars(o)[k]) for k, v in want.items())]
  if len(have) != 1:
    name = " ".join(v for v in want.values() if v)
    raise LanguageError(f"{len(have)} objects are a {name or 'thing'!r}; exactly one must be")
  return have[0]


def _replace(scene, old: Obj, new: Obj | None) -> Scene:
  rest = [o for o in scene.objects if o != old]
  return dataclasses.replace(scene, objects=tuple(rest + ([new] if new else [])))


def _make(words, scene):
  o = _referent(words, scene)
  language = words.language
  word = words.need(*language.colors, *world.SIZES, *language.textures)
  field = "color" if word in language.colors else "size" if word in world.SIZES else "texture"
  return _replace(scene, o, dataclasses.replace(o, **{field: word}))


def _turn(words, scene):
  if words.phrase("the dial to"):
    if not scene.dial:
      raise LanguageError("there is no dial")
    reading = words.need(*world.READINGS)
    return dataclasses.replace(scene, dial=Instrument(scene.dial.cell, reading))
  o = _referent(words, scene)
  words.need("into")
  words.need("a")
  return _replace(scene, o, dataclasses.replace(o, shape=words.need(*words.language.shapes)))


def _hide(words, scene):
  o = _referent(words, scene)
  return _replace(scene, o, dataclasses.replace(o, walled=True))


def _show(words, scene):
  o = _referent(words, scene)
  return _replace(scene, o, dataclasses.replace(o, walled=False))


def _write(words, scene):
  digit = words.need(*world.DIGITS)
  words.need("on")
  o = _referent(words, scene)
  return _replace(scene, o, dataclasses.replace(o, digit=digit))


def _remove(words, scene):
  o = _referent(words, scene)
  if len(scene.objects) == 1:
    raise LanguageError("the last object cannot be removed")
  return _replace(scene, o, None)


def _move(words, scene):
  o = _referent(words, scene)
  words.need("to")
  return _replace(scene, o, dataclasses.replace(o, cell=_free(_need_place(words), scene)))


def _add(words, scene):
  words.need("a")
  new = _read_object(words)
  most = scene.language.most
  if len(scene.objects) >= most:
    raise LanguageError(f"a scene has at most {most} objects")
  needed = ("cell", *(field for field, _ in _fields(scene.language)))
  missing = [k for k in needed if new[k] is None]
  if missing:
    raise LanguageError(f"the new object needs its {', '.join(missing)}")
  new["cell"] = _free(new["cell"], scene)
  return dataclasses.replace(scene, objects=(*scene.objects, Obj(**new)))


def _free(cell: int, scene: Scene) -> int:
  if cell in scene.occupied():
    raise LanguageError(f"{place(cell, scene.language)} is taken")
  return cell


def _set_gauge(words, scene):
  if not words.phrase("the gauge to"):
    raise LanguageError(f"only the gauge can be set: {words.text[:200]!r}")
  if not scene.gauge:
    raise LanguageError("there is no gauge")
  return dataclasses.replace(scene, gauge=Instrument(scene.gauge.cell, words.need(*world.LEVELS)))


def _paint(words, scene):
  if not words.phrase("the background"):
    raise LanguageError(f"only the background can be painted: {words.text[:200]!r}")
  return dataclasses.replace(scene, background=words.need(*world.BACKGROUNDS))


def describe_edit(before: Scene, after: Scene) -> str:
  """Returns the instruction that turns `before` into `after`, which differ in one thing.

  Raises:
    LanguageError: no single instruction says the difference.
  """
  options = []
  if before.background != after.background:
    options.append(f"paint the background {after.background}")
  if before.dial and after.dial and before.dial != after.dial:
    options.append(f"turn the dial to {after.dial.value}")
  if before.gauge and after.gauge and before.gauge != after.gauge:
    options.append(f"set the gauge to {after.gauge.value}")
  gone = [o for o in before.objects if o not in after.objects]
  come = [o for o in after.objects if o not in before.objects]
  if come and not gone:
    options.append(f"add a {describe(come[0], before.language)}")
  for o in gone:
    options.extend(_object_edits(o, come[0] if come else None, before.language))
  for text in options:
    try:
      if read_edit(text, before) == after:
        return text
    except LanguageError:
      continue
  raise LanguageError("no single instruction says the difference")


def _object_edits(old: Obj, new: Obj | None, language: Language) -> list[str]:
  """Returns the instructions that may turn object `old` into `new`, shortest reference first."""
  names = [f"{old.color} {old.shape}", f"{old.size} {old.color} {old.shape}"]
  if old.texture:
    names += [f"{old.texture} {names[0]}", f"{old.size} {old.texture} {names[0]}"]
  if new is None:
    return [f"remove the {n}" for n in names]
  return [
    text
    for n in names
    for text in (
      f"make the {n} {new.color}", f"make the {n} {new.size}", f"turn the {n} into a {new.shape}",
      f"write {new.digit} on the {n}", f"move the {n} to {place(new.cell, language)}",
      f"make the {n} {new.texture}", f"hide the {n}", f"show the {n}",
    )
  ]  # fmt: skip


def sample_caption(rng: np.random.Generator, language: Language = SCENES) -> str:
  """Returns a partial caption of one to three objects, as an untrained captioner writes them."""
  scene = world.sample_scene(rng, language)
  parts = []
  for o in scene.objects[: int(rng.integers(1, 4))]:
    parts.append(f"a {describe(o, language, size=rng.random() < 0.5, cell=rng.random() < 0.4)}")
  if scene.dial and rng.random() < 0.5:
    parts.append(f"the dial reads {scene.dial.value}")
  if scene.gauge and rng.random() < 0.5:
    parts.append(f"the gauge is {scene.gauge.value}")
  if rng.random() < 0.3:
    parts.append(f"a {scene.background} background")
  return " and ".join(parts)


def sample_edit(rng: np.random.Generator, scene: Scene) -> str:
  """Returns a random instruction that can be carried out on `scene`."""
  while True:
    try:
      text = _draw_edit(rng, scene)
      read_edit(text, scene)
      return text
    except LanguageError:
      continue


def _draw_edit(rng, scene) -> str:
  pick, language = functools.partial(world.pick, rng), scene.language
  o = pick(scene.objects)
  name = pick([f"{o.color} {o.shape}", f"{o.size} {o.color} {o.shape}", o.shape])
  cell = int(rng.integers(language.cells))
  new = Obj(
    cell,
    pick(language.shapes),
    pick(language.colors),
    pick(world.SIZES),
    pick([None, *world.DIGITS]),
  )
  special = []
  if language.textures:
    new = dataclasses.replace(new, texture=pick(language.textures))
    special = [f"make the {name} {pick(language.textures)}"] * 2
  if language.walls:
    special += [f"hide the {name}", f"show the {name}"]
  return pick([
    f"make the {name} {new.color}", f"make the {name} {new.size}",
    f"turn the {name} into a {new.shape}", f"write {pick(world.DIGITS)} on the {name}",
    f"remove the {name}", f"move the {name} to {place(cell, language)}",
    f"add a {describe(new, language)}",
    f"turn the dial to {pick(world.READINGS)}", f"set the gauge to {pick(world.LEVELS)}",
    f"paint the background {pick(world.BACKGROUNDS)}", *special,
  ])  # fmt: skip


def words(language: Language = SCENES) -> list[str]:
  """Returns all words of captions and instructions, sorted."""
  text = """a and at row column with the dial reads gauge is background object make turn into write
    on remove move to add set paint"""
  if language.walls:
    text += " behind wall hide show"
  tables = (
    language.shapes,
    language.colors,
    language.textures,
    world.SIZES,
    world.DIGITS,
    world.READINGS,
    world.LEVELS,
    world.BACKGROUNDS,
  )
  return sorted(set(text.split()).union(*tables))
