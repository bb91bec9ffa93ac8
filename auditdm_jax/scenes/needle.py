# SPDX-License-Identifier: Apache-2.0
"""The language of the world `needle`, in which random questions find next to nothing.

Images are of 96x96 pixels: 6x6 cells with ten shapes, eight colours, five textures, digits and
walls. Questions take up to three hops: find an object, go to its neighbour (and on to the next),
read what is there. Beside what can be seen, a model must know names by heart:

  what kind is the striped red cup        a kind: shape, texture and colour      400 of them
  what rank has the small cup with two    a rank: shape, size and digit          200
  what hour is it                         an hour: dial, gauge and background    160

A name says nothing about its parts, nor its parts about it. A target that never saw one named
cannot compose it. This makes a conjunction of three attributes a gap: one that leaves out what is
known from other questions would be closed by them.
"""

from auditdm_jax.scenes import world
from auditdm_jax.scenes.world import Language, Lexicon

# No rings, whose middle a digit hides: with light lines on them they would be circles.
SHAPES = (*world.SHAPES[:5], "wedge", "hourglass", "pill", "cup", "ell")
COLORS = (*world.COLORS, "maroon")
TEXTURES = ("plain", "striped", "barred", "dotted", "checkered")
SYLLABLES = tuple("ba bo da du fa fi ga go ka ku la lo ma mu na nu pa po ra ru".split())

NEEDLE = Language(
  "needle",
  grid=6,
  shapes=SHAPES,
  colors=COLORS,
  textures=TEXTURES,
  walls=True,
  least=4,
  most=9,
  beside=0.6,
  instruments=0.8,
  scarce=("maroon", "checkered", "nine", "southwest"),
  lexicons=(
    Lexicon(
      "kind",
      ("shape", "texture", "color"),
      (SHAPES, TEXTURES, COLORS),
      SYLLABLES,
      ("what kind is X", "X is of what kind"),
    ),
    Lexicon(
      "rank",
      ("shape", "size", "digit"),
      (SHAPES, world.SIZES, world.DIGITS),
      SYLLABLES,
      ("what rank has X", "X has what rank"),
    ),
    Lexicon(
      "hour",
      ("dial", "gauge", "background"),
      (world.READINGS, world.LEVELS, world.BACKGROUNDS),
      SYLLABLES,
      ("what hour is it", "it is what hour"),
    ),
  ),
  caption_words=28,
)
