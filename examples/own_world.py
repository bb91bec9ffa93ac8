# SPDX-License-Identifier: Apache-2.0
r"""A world of one's own: what is known of the images beside what the references say.

COMMAND
  python -m auditdm_jax loop --config=configs/ablations/first.py --workdir=runs/own_world \
    --config.world.name=examples.own_world:WORLD --config.world.gaps=

This one knows one thing, the colour of the background, and says nothing of anything else. Its
oracle checks and reports: it is in no reward and in no label.
"""

import re

import numpy as np

from auditdm_jax.stages.worlds import World

COLORS = {
  "white": (240, 240, 240),
  "gray": (135, 135, 135),
  "black": (25, 25, 25),
  "brown": (110, 75, 45),
}
WORDINGS = ("what color is the background ?", "the background is what color ?")


def _asks(question: str) -> bool:
  """Returns whether a question is one that this world knows, however it is spaced."""
  return re.sub(r"\s*\?$", " ?", question.strip()) in WORDINGS


def oracle(image: np.ndarray, question: str) -> str | None:
  """Returns the colour that is nearest to most of an image's border; None to other questions."""
  if not _asks(question):
    return None
  border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
  median = np.median(border.astype(float), axis=0)
  return min(COLORS, key=lambda name: float(np.abs(median - COLORS[name]).sum()))


def paraphrase(question: str, k: int) -> str | None:
  """Returns the other wording for an odd `k`, and the question's own for an even one."""
  return WORDINGS[(question.startswith("the") + k) % 2] if _asks(question) else None


def mode_of(question: str, answer: str) -> str | None:
  """Returns the mode of a failure, "skill: attribute"."""
  return f"background: {answer}" if _asks(question) else None


def gap_of(question: str, answer: str) -> str | None:
  """Returns the weakness that the target is known to have; here: dark backgrounds."""
  return "dark backgrounds" if _asks(question) and answer in ("black", "brown") else None


WORLD = World(
  oracle=oracle, paraphrase=paraphrase, mode_of=mode_of, gap_of=gap_of, gaps=("dark backgrounds",)
)
