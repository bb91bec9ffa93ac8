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
from auditdm_jax.scenes.needle import NEEDLE
from auditdm_jax.scenes.world import SCENES, Language


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


def gap_set(name: str, world: Language = SCENES) -> tuple[gaps_lib.Gap, ...]:
  """Returns planted gaps: none for "", or drawn ones for seed:N; in scenes others have names.

  These are easy, rare, and half, which is every second gap of both. In a world with names,
  reserve is all of which seeds draw.
  """
  if name.startswith("seed:") and name[5:].isdigit():
    seed = int(name[5:])
    return gaps_lib.draw_names(seed, world) if world.lexicons else gaps_lib.draw_gaps(seed)
  known: dict[str, tuple[gaps_lib.Gap, ...]] = {"": ()}
  if world is SCENES:
    known["easy"], known["rare"] = gaps_lib.EASY, gaps_lib.RARE
    known["half"] = gaps_lib.EASY[::2] + gaps_lib.RARE[::2]
  if world.lexicons:
    known["reserve"] = gaps_lib.reserve(world)
  if name not in known:
    names = ", ".join([*filter(None, known), "seed:N"])
    raise UserError(f"unknown gap set {name!r}; known: {names}")
  return known[name]


def open_world(name: str, gaps: str) -> World:
  """The hooks of "scenes", "needle", of a world of one's own, or none for ""."""
  if not name:
    return World()
  if ":" in name:
    if gaps:
      raise UserError(f"config.world.gaps={gaps!r}: a world of your own names its gaps itself")
    return load_object(name, World, where="config.world.name")
  for drawn in (SCENES, NEEDLE):
    if name == drawn.name:
      return _drawn(drawn, gap_set(gaps, drawn))
  raise UserError(
    f"config.world.name: unknown world {name!r}; known: scenes, needle, '' for none, or one of your"
    " own, written package.module:NAME"
  )


def _drawn(world: Language, planted: tuple[gaps_lib.Gap, ...]) -> World:
  """Returns the hooks of a drawn world whose target has the planted gaps."""

  def gap_of(question: str, answer: str) -> str | None:
    program = questions.parse_question(question, world)
    return gaps_lib.match(planted, program, answer) if program else None

  def mode_of(question: str, answer: str) -> str | None:
    program = questions.parse_question(question, world)
    return gaps_lib.mode_of(program, answer, world) if program else None

  def well_formed(question: str) -> bool:
    return questions.parse_question(question, world) is not None

  def paraphrase(question: str, k: int) -> str | None:
    return questions.paraphrase(question, k, world) if well_formed(question) else None

  def faithful(source: np.ndarray | None, text: str, image: np.ndarray) -> bool | None:
    # What a caption leaves open is the image maker's to choose.
    shown = scenes.seen(image, world)
    try:
      if source is None:
        return language.shows(text, shown)
      return shown == language.read_edit(text, scenes.seen(source, world))
    except language.LanguageError:
      return None

  return World(
    oracle=lambda image, question: scenes.oracle(image, question, world),
    paraphrase=paraphrase,
    well_formed=well_formed,
    gap_of=gap_of,
    mode_of=mode_of,
    faithful=faithful,
    gaps=tuple(g.name for g in planted),
  )
