# SPDX-License-Identifier: Apache-2.0
"""What questions of a world are made of: programs, slots, and how an object is found.

Answers are one or two words. `NONE` answers a question about a thing that is not there;
`UNANSWERABLE` one whose referent is ambiguous.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from auditdm_jax.scenes import world
from auditdm_jax.scenes.world import Language, Obj, Scene, pick

NONE, UNANSWERABLE, YES, NO = "none", "unanswerable", "yes", "no"
ATTRIBUTES = ("color", "shape", "size", "digit", "texture")
EXTREMES = ("leftmost", "rightmost", "highest", "lowest")
SUPERLATIVES = ("biggest", "smallest")

# Letters of the slots of forms.
LETTERS = "CSZDRKEMTPQ"


@functools.cache
def slots_of(language: Language) -> dict[str, tuple[str, tuple[str, ...]]]:
  """Slot name in a form -> (slot name in a program, its words)."""
  named = (
    ("color", language.colors),
    ("shape", language.shapes),
    ("size", world.SIZES),
    ("digit", world.DIGITS),
    ("row", language.ordinals),
    ("column", language.ordinals),
    ("extreme", EXTREMES),
    ("superlative", SUPERLATIVES),
    ("texture", language.textures),
    ("step", tuple(world.NEIGHBOURS) if language.textures else ()),
    ("second step", tuple(world.NEIGHBOURS) if language.textures else ()),
  )
  return {letter: slot for letter, slot in zip(LETTERS, named, strict=True) if slot[1]}


@dataclasses.dataclass(frozen=True)
class Program:
  """A skill and its slots, sorted (name, word) pairs."""

  skill: str
  slots: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class QuestionKind:
  """One kind of question. What it tests is said in data/scenes/skills.yaml.

  Attributes:
    forms: two texts with slots in capitals.
    run: (scene, slots) -> answer.
    propose: (rng, scene, key object or None) -> slots.
    keyed: whether `propose` takes an object that the question refers to.
  """

  name: str
  forms: tuple[str, str]
  run: Callable[[Scene, dict[str, str]], str]
  propose: Callable[[np.random.Generator, Scene, Obj | None], dict[str, str]]
  keyed: bool = True


def one(found: list[Obj], read: Callable[[Obj], str | None]) -> str:
  """Returns the only match's attribute; `NONE` without a match, `UNANSWERABLE` with several."""
  if not found:
    return NONE
  return (read(found[0]) or NONE) if len(found) == 1 else UNANSWERABLE


def matches(scene: Scene, slots: dict[str, str]) -> list[Obj]:
  """Returns the objects whose attributes equal the slots."""
  named = [(k, v) for k, v in slots.items() if k in ATTRIBUTES]
  return [o for o in scene.objects if all(vars(o)[k] == v for k, v in named)]


def propose_from(language: Language, *names: str):
  """Returns the slots `names` copied from the key object, or drawn at random where it has none."""
  words_of = dict(slots_of(language).values())

  def propose(rng, scene, key):
    out = {}
    for name in names:
      value = None
      if key:
        place = {"row": language.row(key.cell), "column": language.column(key.cell)}
        value = (vars(key) | place).get(name)
      out[name] = value or pick(rng, words_of[name])
    return out

  return propose
