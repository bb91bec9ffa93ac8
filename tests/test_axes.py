# SPDX-License-Identifier: Apache-2.0
"""Shapes in docstrings and comments are written in the letters of one legend."""

import pathlib
import re

from auditdm_jax import models

PACKAGE = pathlib.Path(__file__).parent.parent / "auditdm_jax"
# Axes after a dtype, as in f32[B,C-1], or several without spaces, which no code has.
AXIS = r"\*?(?:[A-Z]v?|\d+|[a-z]+|\.\.\.)(?:[-+·](?:[A-Z]v?|\d+))*"
DTYPE = r"\b(?:f|i|bool|key|u8|f16|f32|f64|bf16|i32)"
SHAPE = re.compile(rf"(?:{DTYPE}\[({AXIS}(?:,{AXIS})*)\]|\[({AXIS}(?:,{AXIS})+)\])")
LETTER = re.compile(r"\b[A-Z]v?\b")


def legend() -> set[str]:
  letters = set(re.findall(r"^  ([A-Z])   ", models.__doc__, re.MULTILINE))
  return letters | set(re.findall(r"\b[A-Z]v\b", models.__doc__))


def shapes(text: str) -> list[str]:
  found = (match.group(1) or match.group(2) for match in SHAPE.finditer(text))
  return [axes for axes in found if LETTER.search(axes)]


def strangers(text: str, known: set[str]) -> list[str]:
  """Returns the shapes with a letter that is not in the legend; a picture is H,W."""
  return [s for s in shapes(text) if set(LETTER.findall(s.replace("H,W", ""))) - known]


def test_every_shape_is_in_the_letters_of_the_legend():
  known = legend()
  assert {"B", "T", "S", "P", "Dv"} <= known and "W" not in known
  seen = 0
  for path in sorted(PACKAGE.rglob("*.py")):
    text = path.read_text(encoding="utf-8")
    seen += len(shapes(text))
    assert not strangers(text, known), path
  assert seen > 150


def test_a_strange_letter_is_seen():
  assert strangers("f32[B,W] of u8[H,W,3], [Q,B] and i32[N]", {"B"}) == ["B,W", "Q,B", "N"]
  assert not strangers("dict[str, X], rows[i], f32[B,T-1,3]", {"B", "T"})
