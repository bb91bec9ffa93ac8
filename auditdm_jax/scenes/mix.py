# SPDX-License-Identifier: Apache-2.0
"""Training mixes of the scenes world: which questions (or captions, or edits) a model learns from.

Everything is a pure function of (seed, step), so that a resumed run sees the same examples.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.scenes import language as captions
from auditdm_jax.scenes import questions, render, world
from auditdm_jax.scenes.gaps import Gap, match
from auditdm_jax.scenes.world import SCENES, Language

# Of those that a language has.
LOOKUPS = (
  "color_at",
  "shape_at",
  "size_at",
  "digit_at",
  "exist_at",
  "dial",
  "gauge",
  "background",
  "texture_at",
  "walled_at",
)
SEARCHES = (
  "color_of",
  "shape_of",
  "size_of",
  "digit_of",
  "row_of",
  "column_of",
  "color_with",
  "shape_with",
  "exist",
  "texture_of",
  "walled_of",
)
NAMES = ("kind_at", "rank_at", "hour")

CHOICES = 4  # Questions drawn for each that is asked, when the hard ones are to be drilled.


@dataclasses.dataclass(frozen=True)
class MixBatch:
  """Examples of one step: image index, text, answer and skill per example."""

  image: np.ndarray  # i64[N]
  texts: list[str]
  answers: list[str]
  skills: list[str]


@dataclasses.dataclass(frozen=True)
class Mix:
  """Random questions about a fixed set of scenes, without those that lie in `gaps`.

  Attributes:
    seed: seed of the scenes, images and questions.
    scenes: how many scenes.
    images: images per step.
    per_image: questions per image.
    gaps: what is left out.
    language: of the scenes and questions.
    least: fewest objects of a scene, see `world.sample_scene`.
  """

  seed: int
  scenes: int
  images: int = 16
  per_image: int = 4
  gaps: tuple[Gap, ...] = ()
  language: Language = SCENES
  least: int = 0

  @functools.cached_property
  def all_scenes(self) -> list[world.Scene]:
    return [
      world.sample_scene(streams.rng(self.seed, "scene", i), self.language, least=self.least)
      for i in range(self.scenes)
    ]

  def pixels(self, start: int, stop: int) -> np.ndarray:
    """Returns u8[U,H,W,3] of scenes start to stop."""
    return np.stack(
      [
        render.render(s, streams.word(self.seed, "render", start + i))
        for i, s in enumerate(self.all_scenes[start:stop])
      ]
    )

  def draw(
    self,
    step: int,
    weights: dict[str, float] | None = None,
    *,
    hardness: Callable[[str, str], float] | None = None,
  ) -> MixBatch:
    """Questions of one step.

    Args:
      step: which.
      weights: over skills; None is uniform.
      hardness: weight by (skill, answer). With it, each question is picked from `CHOICES` drawn
        ones in proportion to their weights, so that rare answers get their share.
    """
    rng = streams.rng(self.seed, "questions", step)
    image = np.repeat(rng.integers(self.scenes, size=self.images), self.per_image)
    out = MixBatch(image, [], [], [])
    for index in image:
      scene = self.all_scenes[index]
      n = 1 if hardness is None else CHOICES
      drawn = [self._draw_outside_gaps(rng, scene, weights) for _ in range(n)]
      pick = 0
      if hardness is not None:
        p = np.array([hardness(program.skill, answer) for _, answer, program in drawn])
        pick = int(rng.choice(n, p=p / p.sum()))
      text, answer, program = drawn[pick]
      out.texts.append(text)
      out.answers.append(answer)
      out.skills.append(program.skill)
    return out

  def _draw_outside_gaps(self, rng, scene, weights):
    while True:
      text, answer, program = questions.sample_question(rng, scene, weights=weights)
      if match(self.gaps, program, answer) is None:
        return text, answer, program

  def draw_tasks(self, step: int, shares: dict[str, float]) -> MixBatch:
    """Returns an auditor's tasks: text "ask", "describe" or "edit", answer what it should write."""
    rng = streams.rng(self.seed, "tasks", step)
    image = np.repeat(rng.integers(self.scenes, size=self.images), self.per_image)
    names, p = list(shares), np.array(list(shares.values()))
    out = MixBatch(image, [], [], [])
    for index in image:
      task, scene = names[int(rng.choice(len(names), p=p / p.sum()))], self.all_scenes[index]
      out.texts.append(task)
      out.answers.append(_write(task, rng, scene))
      out.skills.append(task)
    return out


def _write(task, rng, scene) -> str:
  if task == "ask":
    return questions.sample_question(rng, scene, ambiguous=0.0)[0]
  if task == "describe":
    while True:
      text = captions.sample_caption(rng, scene.language)
      if len(text.split()) <= scene.language.caption_words:
        return text
  if task == "edit":
    return captions.sample_edit(rng, scene)
  raise ValueError(f"unknown auditor task {task!r}; known: ask, describe, edit")


def curriculum(
  step: int, language: Language = SCENES, *, lookups: int, searches: int
) -> dict[str, float] | None:
  """Returns skill weights: places first, then searches by attribute too, then (None) everything.

  Learning to bind a place to an attribute first saves about half of the examples. Names are many
  and have to be learned by heart, each by more than a hundred of its questions.
  """
  known = questions.skills(language)
  places = {name: 1.0 for name in LOOKUPS if name in known}
  if step < lookups:
    return places
  if step < searches:
    searched = dict.fromkeys(SEARCHES, 2.0) | dict.fromkeys(NAMES, 6.0)
    return places | {name: weight for name, weight in searched.items() if name in known}
  return None


def vocabulary(language: Language = SCENES) -> list[str]:
  """Returns all words of the world, sorted, with the auditor's task words."""
  said = {*questions.words(language), *captions.words(language)}
  return sorted(said | {"ask", "describe", "edit"})
