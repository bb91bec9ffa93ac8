# SPDX-License-Identifier: Apache-2.0
"""Text of models, data sets and files as a page shows it: bounded, and nothing of it obeyed."""

import unicodedata

LONGEST = 2_000  # Characters of one text that a page shows.
LINES = 40
NAME = 160  # Characters of a name.
_JOINERS = "\u200c\u200d"
_BLANKS = (
  "\u115f\u1160\u3164\uffa0\u2800"  # They show nothing, though Unicode counts them as letters.
)
_MARKS = 4  # Combining marks on one letter.


def clip(text: str, limit: int = LONGEST) -> str:
  """Returns a text of at most `limit` characters and `LINES` lines, and how much is left out."""
  lines = text[:limit].split("\n", LINES)
  kept = "\n".join(lines[:LINES])
  left = len(text) - len(kept)
  return f"{kept} … ({left:,} more characters)" if left else text


def visible(text: str) -> str:
  """Shows control, direction, blank and unpaired surrogate characters as ⟨U+XXXX⟩.

  Of the marks over and under one letter the first few are shown.
  """
  if text.isascii() and text.isprintable():
    return text
  shown, marks = [], 0
  for char in text:
    kind = unicodedata.category(char)
    marks = marks + 1 if kind in ("Mn", "Me") else 0
    if marks > _MARKS:
      continue
    hidden = (kind in ("Cc", "Cf", "Cs") and char not in _JOINERS) or char in _BLANKS
    shown.append(f"⟨U+{ord(char):04X}⟩" if hidden and char not in "\n\t" else char)
  return "".join(shown)


def safe(text: str) -> str:
  """Returns a text as a page shows it."""
  return visible(clip(text))
