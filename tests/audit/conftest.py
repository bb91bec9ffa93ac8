# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins: models that read an image's first pixel, and a synthetic question world."""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Seeds, Skill
from auditdm_jax.text.styles import PLAIN, RawReply, Style

COLOURS = "red green blue yellow purple orange cyan".split()
SHAPES = "circle square star cross ring heart".split()
PLACES = "one two three four".split()


@dataclasses.dataclass
class FakeVlm:
  """Answers `rule(question, pixel)`; features are the image's mean, so the tower sees pixels."""

  rule: Callable[[str, int], str]
  tower_id: str = "tower"
  style: Style = PLAIN
  takes: ClassVar[str] = "features"
  encoded: int = 0
  calls: int = 0
  logprob: Callable[[str, int], float] | None = None

  def encode(self, images):
    self.encoded += len(images)
    return np.stack([np.full((2, 3), image[0, 0, 0], np.float32) for image in images])

  def reply_features(self, features, prompts, *, max_new_tokens, which):
    assert len(which) == len(prompts) and max_new_tokens > 0
    self.calls += 1
    asked = [(q, int(f[0, 0])) for q, f in zip(prompts, features[np.ravel(which)])]
    return [
      RawReply(self.rule(*a), "stop", logprob=self.logprob and self.logprob(*a)) for a in asked
    ]


@pytest.fixture
def fake_vlm():
  return FakeVlm


def picture(value: int) -> np.ndarray:
  """u8[16,16,3] whose first pixel carries the value, with structure so that it is not blank."""
  image = np.random.default_rng(value).integers(0, 255, (16, 16, 3), dtype=np.uint8)
  image[:3, :3] = value
  return image


@pytest.fixture
def make_picture():
  return picture


def draw(rng: np.random.Generator) -> tuple[str, str, str]:
  """(skill, question, answer) of a synthetic world of nine skills."""
  c, c2, s = rng.choice(COLOURS), rng.choice(COLOURS), rng.choice(SHAPES)
  a, b = rng.choice(PLACES, 2)
  number = rng.choice("one two three four five".split())
  forms = [
    ("count_color", f"how many {c} objects are there", number),
    ("count_shape", f"how many {s}s are there", number),
    ("color_of", f"what color is the {s}", c2),
    ("shape_of", f"what shape is the {c} object", s),
    ("exist", f"is there a {c} {s}", rng.choice(["yes", "no"])),
    ("color_at", f"what color is in row {a} column {b}", c),
    ("shape_at", f"what shape is in row {a} column {b}", s),
    ("digit", f"what digit is on the {c} {s}", rng.choice("three four seven eight".split())),
    ("dial", "what does the dial read", rng.choice("north south east west".split())),
  ]
  skill, question, answer = forms[rng.integers(len(forms))]
  return skill, question, str(answer)


GAPS = {
  "dial": lambda k, q, a: k == "dial",
  "purple": lambda k, q, a: "purple" in q or a == "purple",
  "corner": lambda k, q, a: k == "color_at" and "row four column one" in q,
  "star counts": lambda k, q, a: k == "count_shape" and "star" in q,
  "digit seven": lambda k, q, a: k == "digit" and a == "seven",
  "count five": lambda k, q, a: k.startswith("count") and a == "five",
  "ring exists": lambda k, q, a: k == "exist" and "ring" in q,
  "column four": lambda k, q, a: k.endswith("_at") and "column four" in q,
  "dial east": lambda k, q, a: k == "dial" and a == "east",
}


def attempted(question, answer, failed):
  """An attempt whose consensus is `answer` (None: the references disagree)."""
  said = "something else" if failed else answer or ""
  verdict = Verdict(
    probe_id="",
    answers={"t": said, "a": answer or "", "b": answer or "?"},
    target="t",
    references=("a", "b"),
    consensus=answer,
    agree=answer is not None,
    disagreement=failed,
    reason="",
  )
  return Attempt(probe=Probe.make("i", question), verdict=verdict)


def synthetic(seed, n, gaps, *, noise=0.03, depth=0.95):
  """Attempts of the synthetic world, and the planted gaps each of them lies in."""
  rng = np.random.default_rng(seed)
  attempts, truth = [], []
  for _ in range(n):
    skill, question, answer = draw(rng)
    inside = [g for g in gaps if GAPS[g](skill, question, answer)]
    failed = bool(rng.random() < (depth if inside else noise))
    attempts.append(attempted(question, answer, failed))
    truth.append(inside)
  return attempts, truth


@pytest.fixture
def world():
  return synthetic


@pytest.fixture
def attempt():
  return attempted


@pytest.fixture
def gap_names():
  return tuple(GAPS)


@pytest.fixture
def seeds():
  rows = [
    ("count_color", "How many objects have a colour.", "how many red objects are there"),
    ("count_shape", "How many objects have a shape.", "how many circles are there"),
    ("color_of", "The colour of a named thing.", "what color is the circle"),
    ("shape_of", "The shape of a named thing.", "what shape is the red object"),
    ("exist", "Whether a thing is there.", "is there a red circle"),
    ("color_at", "The colour at a place.", "what color is in row one column two"),
    ("shape_at", "The shape at a place.", "what shape is in row one column two"),
    ("digit", "Reading a digit.", "what digit is on the red circle"),
    ("dial", "Reading the dial.", "what does the dial read"),
  ]
  skills = tuple(Skill(name, text, (example,)) for name, text, example in rows)
  return Seeds(skills, {"colour": tuple(COLOURS), "shape": tuple(SHAPES)})
