# SPDX-License-Identifier: Apache-2.0
"""References that err: right answers of this world replaced by wrong ones, as often as is asked.

    what color is the circle    red   →   green     another answer to a question of this kind
    how many objects are there  four  →   six

An error depends on the seed, the speaker, and the image and question alone, so that the same
question about the same image is answered alike for ever. A share `phi` of the chances to err are
common to all speakers, which then err together and give the same wrong answer: `phi` is the
correlation of their errors.
"""

import dataclasses

from auditdm_jax.core import streams
from auditdm_jax.core.config import check
from auditdm_jax.scenes import questions, world

_WORDS = {
  "color": world.COLORS,
  "extreme_color": world.COLORS,
  "size_compare": world.COLORS,
  "shape": world.SHAPES,
  "extreme_shape": world.SHAPES,
  "size": world.SIZES,
  "digit": world.DIGITS,
  "count": world.DIGITS[: world.MAX_OBJECTS + 1],
  "row": world.ORDINALS,
  "column": world.ORDINALS,
  "dial": world.READINGS,
  "gauge": world.LEVELS,
  "background": world.BACKGROUNDS,
  "exist": (questions.YES, questions.NO),
  "name": tuple(f"{color} {shape}" for color in world.COLORS for shape in world.SHAPES),
}


@dataclasses.dataclass(frozen=True)
class Noise:
  """How often references are wrong on purpose.

  Attributes:
    accuracy: share of their own answers that they give; the others are replaced by wrong ones.
    phi: correlation of the errors of two references.
    lasting: an error depends on the question's meaning and the answer instead of on the pixels and
      the wording, so that other images and wordings of the same show it too.
    seed: seed of all that is drawn.
  """

  accuracy: float = 1.0
  phi: float = 0.0
  lasting: bool = False
  seed: int = 0

  def __post_init__(self):
    check(vars(self), "world.noise", "accuracy", "phi", least=0.0, most=1.0)

  @property
  def errs(self) -> bool:
    return self.accuracy < 1


def spoil(noise: Noise, speaker: str, image: str, question: str, answer: str) -> str:
  """Returns what a speaker says instead of an answer about an image, given by an id."""
  key = (image, question)
  if noise.lasting:
    program = questions.parse_question(question)
    key = (answer, question if program is None else questions.render_question(program))
  chance, common = streams.rng(noise.seed, "noise", *key).random(2)
  who = () if common < noise.phi else (speaker,)
  if who:
    chance = streams.rng(noise.seed, "noise of", speaker, *key).random()
  if chance >= 1 - noise.accuracy:
    return answer
  wrong = plausible(question)
  order = streams.rng(noise.seed, "wrong", *who, *key).permutation(len(wrong))
  return next((wrong[i] for i in order if wrong[i] != answer), answer)


def plausible(question: str) -> tuple[str, ...]:
  """Returns the answers that a question of its kind may have."""
  program = questions.parse_question(question)
  if program is None:
    return (questions.YES, questions.NO)
  skill = program.skill
  return _WORDS.get(skill) or _WORDS[skill.split("_")[0]]
