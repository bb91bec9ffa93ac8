# SPDX-License-Identifier: Apache-2.0
"""What a data set can tell beside its images: an oracle, paraphrases, planted gaps.

A world without an oracle (every real data set) leaves these empty; the stages then report what the
references say and nothing about the truth. One of your own is a `World` value, which the config
names by its import path: `world.name="my_module:WORLD"`.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from auditdm_jax import scenes
from auditdm_jax.bench.specs import GAPS, REST
from auditdm_jax.core.config import UserError, load_object
from auditdm_jax.scenes import gaps as gaps_lib
from auditdm_jax.scenes import language, questions


@dataclasses.dataclass(frozen=True)
class World:
  """A world's hooks.

  Attributes:
    oracle: (image u8[H,W,3], question) -> the true answer or None. Checks only: never a reward,
      never a label.
    paraphrase: (question, k) -> another wording or None.
    well_formed: whether a text is a question at all (never whether it has an answer).
    gap_of: (question, true answer) -> name of the planted gap or None.
    mode_of: (question, true answer) -> nameable failure mode, written "skill: attribute".
    faithful: (source image or None, text, image) -> whether the image shows what the caption
      or the instruction says; None if the text says nothing that can be drawn.
    gaps: names of all planted gaps.
  """

  oracle: Callable[[np.ndarray, str], str | None] | None = None
  paraphrase: Callable[[str, int], str | None] | None = None
  well_formed: Callable[[str], bool] | None = None
  gap_of: Callable[[str, str], str | None] | None = None
  mode_of: Callable[[str, str], str | None] | None = None
  faithful: Callable[[np.ndarray | None, str, np.ndarray], bool | None] | None = None
  gaps: tuple[str, ...] = ()

  def groups(self, question: str, answer: str) -> list[str]:
    """Returns in which groups of the benchmark a question with a true answer is."""
    mode = self.mode_of(question, answer) if self.mode_of else None
    gap = self.gap_of(question, answer) if self.gap_of else None
    sides = [REST] if gap is None else [GAPS, f"gap: {gap}"]
    return [
      *([f"skill: {mode.partition(':')[0]}"] if mode else []),
      *(sides if self.gap_of else []),
    ]


def gap_set(name: str) -> tuple[gaps_lib.Gap, ...]:
  """ "" | easy | rare | half (every second gap of both) | seed:N (drawn)."""
  if name.startswith("seed:") and name[5:].isdigit():
    return gaps_lib.draw_gaps(int(name[5:]))
  known = {
    "": (),
    "easy": gaps_lib.EASY,
    "rare": gaps_lib.RARE,
    "half": gaps_lib.EASY[::2] + gaps_lib.RARE[::2],
  }
  if name not in known:
    raise UserError(f"unknown gap set {name!r}; known: {', '.join(k for k in known if k)}, seed:N")
  return known[name]


def open_world(name: str, gaps: str) -> World:
  """The hooks of "scenes", of a world of one's own, or none for ""."""
  if not name:
    return World()
  if ":" in name:
    if gaps:
      raise UserError(f"config.world.gaps={gaps!r}: a world of your own names its gaps itself")
    return load_object(name, World, where="config.world.name")
  if name != "scenes":
    raise UserError(
      f"config.world.name: unknown world {name!r}; known: scenes, '' for none, or one of your own,"
      " written package.module:NAME"
    )
  planted = gap_set(gaps)

  def gap_of(question: str, answer: str) -> str | None:
    program = questions.parse_question(question)
    return gaps_lib.match(planted, program, answer) if program else None

  def mode_of(question: str, answer: str) -> str | None:
    program = questions.parse_question(question)
    return gaps_lib.mode_of(program, answer) if program else None

  return World(
    oracle=scenes.oracle,
    paraphrase=_paraphrase,
    well_formed=lambda q: questions.parse_question(q) is not None,
    gap_of=gap_of,
    mode_of=mode_of,
    faithful=_faithful,
    gaps=tuple(g.name for g in planted),
  )


def _paraphrase(question: str, k: int) -> str | None:
  return questions.paraphrase(question, k) if questions.parse_question(question) else None


def _faithful(source: np.ndarray | None, text: str, image: np.ndarray) -> bool | None:
  """What a caption leaves open is the image maker's to choose."""
  shown = scenes.seen(image)
  try:
    if source is None:
      return language.shows(text, shown)
    return shown == language.read_edit(text, scenes.seen(source))
  except language.LanguageError:
    return None
