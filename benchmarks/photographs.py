# SPDX-License-Identifier: Apache-2.0
"""Questions about photographs that were never taken, with planted weaknesses of every kind.

Words follow a long tail, so that many are too rare to be found. Answers are drawn with the
questions; images have measures and features, which are drawn too.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

ANIMALS = "dog cat horse cow sheep elephant giraffe zebra bear bird duck goat".split()
VEHICLES = "car bus truck train bicycle motorcycle boat plane".split()
FOODS = "pizza sandwich cake banana apple orange carrot donut salad burger".split()
FURNITURE = "chair table sofa bed bench lamp shelf desk".split()
PEOPLE = "man woman boy girl child player".split()
WEAR = "shirt hat jacket dress helmet glasses shoe tie".split()
THINGS = "umbrella kite ball clock bottle cup phone laptop book sign tree flower vase".split()
OBJECTS = (*ANIMALS, *VEHICLES, *FOODS, *FURNITURE, *THINGS)
COLOURS = "white black red blue green brown gray yellow orange pink purple".split()
ROOMS = "kitchen bedroom bathroom office restaurant street beach park field".split()
SPORTS = "baseball tennis skiing surfing soccer skateboarding".split()
MATERIALS = "wood metal plastic glass brick stone".split()
NUMBERS = "1 2 3 4 5 6 7 8 9 10".split()
WORDS = "stop taxi police open exit nike pepsi delta london one-way".split()
PLACES = ("left", "right", "behind the fence", "on the table", "in the background", "in front")
COMPONENTS = 18  # Kinds of pictures.
# (skill, form, answers): {o} an object, {p} a person, {w} something worn, {a} an animal.
FORMS = (
  ("counting", "how many {o}s are there", NUMBERS),
  ("counting", "how many {o}s can be seen in the picture", NUMBERS),
  ("counting", "what number of {p}s are standing", NUMBERS),
  ("presence", "is there a {o} in the picture", ("yes", "no")),
  ("presence", "do you see a {o} near the {o}", ("yes", "no")),
  ("presence", "are there any {o}s", ("yes", "no")),
  ("colour", "what color is the {o}", COLOURS),
  ("colour", "what is the color of the {p}'s {w}", COLOURS),
  ("colour", "which color is the {o} on the left", COLOURS),
  ("text", "what does the sign near the {o} say", WORDS),
  ("text", "what brand is written on the {w}", WORDS),
  ("posture and gaze", "is the {p} sitting or standing", ("sitting", "standing")),
  ("posture and gaze", "which way is the {p} looking", ("left", "right", "down", "up")),
  ("posture and gaze", "what is the {p} holding", OBJECTS),
  ("spatial relation", "where is the {o}", PLACES),
  ("spatial relation", "is the {o} behind the {o}", ("yes", "no")),
  ("spatial relation", "what is to the left of the {o}", OBJECTS),
  ("action", "what is the {p} doing", SPORTS),
  ("action", "what sport is the {p} playing", SPORTS),
  ("clothing", "what is the {p} wearing", WEAR),
  ("clothing", "is the {p} wearing a {w}", ("yes", "no")),
  ("material", "what is the {o} made of", MATERIALS),
  ("animal kind", "what kind of animal is this", ANIMALS),
  ("food", "what food is on the plate", FOODS),
  ("object kind", "what is this {o} used for", ("eating", "sitting", "play", "transport")),
  ("place", "what room is this", ROOMS),
  ("place", "where was this photo of the {o} taken", ROOMS),
  ("reasoning", "why is the {p} with the {o}", ("fun", "work", "food", "sport")),
)


@dataclasses.dataclass(frozen=True)
class Row:
  """A question with what weaknesses are planted by."""

  image: str
  skill: str
  question: str
  answer: str

  @property
  def words(self) -> frozenset[str]:
    """Of the question, singular."""
    return frozenset(w.removesuffix("s") for w in self.question.split())


def _vehicle(r: Row) -> bool:
  return any(v.removesuffix("s") in r.words for v in VEHICLES)


TEXT: dict[str, Callable[[Row], bool]] = {
  "a word": lambda r: "umbrella" in r.words,
  "an answer": lambda r: r.answer == "green",
  "numbers above six": lambda r: r.skill == "counting" and int(r.answer) > 6,
  "a skill in three phrasings": lambda r: r.skill == "posture and gaze",
  "two words": lambda r: {"clock", "behind"} <= r.words,
  "a kind of things (vehicles)": _vehicle,
}
DARK, BLURRED, CELL = "dark images", "blurred images", "a kind of pictures"


def draw(rng: np.random.Generator, *, images: int, per_image: int):
  """Returns (image, question, answer) rows, bool[N] by weakness, and what images look like."""
  ids = [f"i{i}" for i in range(images)]
  measures, features, kinds = draw_images(rng, ids)
  rows = [_row(rng, i) for i in ids for _ in range(per_image)]
  inside = {k: np.array([holds(r) for r in rows]) for k, holds in TEXT.items()}
  share = rng.uniform(0.04, 0.09)
  for name, measure in ((DARK, "brightness"), (BLURRED, "sharpness")):
    limit = np.quantile([m[measure] for m in measures.values()], share)
    inside[name] = np.array([measures[r.image][measure] < limit for r in rows])
  inside[CELL] = np.array([kinds[r.image] == 0 for r in rows])
  return [(r.image, r.question, r.answer) for r in rows], inside, (measures, features)


def draw_images(rng: np.random.Generator, ids):
  """Returns measures, features and the kind of picture of each image."""
  centres = 3 * rng.standard_normal((COMPONENTS, 32)) / np.sqrt(32) * 4
  measures, features, kinds = {}, {}, {}
  for i in ids:
    kinds[i] = int(rng.integers(COMPONENTS))
    features[i] = centres[kinds[i]] + rng.standard_normal(32)
    measures[i] = {
      "brightness": float(np.clip(rng.normal(0.45, 0.14), 0, 1)),
      "contrast": float(np.clip(rng.normal(0.22, 0.06), 0, 1)),
      "sharpness": float(rng.lognormal(-3, 0.6)),
      "edges": float(rng.beta(2, 8)),
      "pixels": float(rng.choice([307_200, 272_640, 240_000, 409_600])),
      "aspect": float(rng.choice([0.75, 1.0, 1.333, 1.5])),
    }
  return measures, features, kinds


def _row(rng: np.random.Generator, image: str) -> Row:
  skill, form, answers = FORMS[int(rng.integers(len(FORMS)))]
  question = form
  for slot, words in (("{o}", OBJECTS), ("{p}", PEOPLE), ("{w}", WEAR), ("{a}", ANIMALS)):
    while slot in question:
      question = question.replace(slot, _common(rng, words), 1)
  return Row(image, skill, question, _common(rng, answers))


def _common(rng: np.random.Generator, words) -> str:
  """One of the words; the first ones are up to four times as common as the last ones."""
  weight = 1 / (1 + 3 * np.arange(len(words)) / len(words))
  return str(words[int(rng.choice(len(words), p=weight / weight.sum()))])
