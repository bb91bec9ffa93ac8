# SPDX-License-Identifier: Apache-2.0
"""Does an endpoint see? A server that drops the picture answers 200 all the same.

Two made pictures, one red with one white square, one blue with three, and the same questions about
both, put as chat models, PaliGemma's mixes and neither want them. In order of their strength:

  "right"      a colour or a number is right for both pictures
  "different"  the answers to one question differ between the pictures
  "tokens"     the prompt has more tokens with a picture than without, and as many with either

Answers must repeat, or a server that samples would seem to see. The token count alone is enough,
since a model with random weights may say the same of every picture; a server that takes the data
URL for text is found out by it, as one of the pictures is much longer in bytes.
"""

from collections.abc import Sequence
import dataclasses
import logging
import re
from typing import Literal

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import BlindEndpoint, one_line
from auditdm_jax.endpoints.replies import Reply

Evidence = Literal["right", "different", "tokens"]

_MAX_TOKENS = 16
_SIDE = 224  # Of the pictures, where the config names no size.
# The question, and a pattern of the right answer to the red picture and to the blue one.
_FORMS = (
  ("What color is the background? Answer with one word.", r"\bred\b", r"\bblue\b"),
  ("answer en what color is the background?", r"\bred\b", r"\bblue\b"),
  ("How many white squares are there? Answer with a number.", r"\b(1|one)\b", r"\b(3|three)\b"),
)
# A picture is some tokens and perhaps a few around it; a "[image]" put into the text is fewer.
_MIN_TOKENS = 4


@dataclasses.dataclass(frozen=True)
class SightCheck:
  """How it is known that an endpoint sees.

  Attributes:
    evidence: the strongest there is.
    answers: to the first question, about the red and about the blue picture.
    picture_tokens: tokens of the prompt that are the picture's; None if they are not told.
  """

  evidence: Evidence
  answers: tuple[str, str]
  picture_tokens: int | None


def prove_sight(endpoint: Endpoint) -> SightCheck:
  """Asks an endpoint about two made pictures.

  Raises:
    BlindEndpoint: it does not see them, or nothing shows that it does.
    EndpointDown, EndpointRefused, BudgetSpent: as `Endpoint.answer`.
  """
  red, blue = pictures(endpoint.config.pictures.size or _SIDE)
  forms = [form for form, _, _ in _FORMS]
  first = _ask(endpoint, (red, blue), forms)
  second = _ask(endpoint, (red, blue), forms)
  (bare,) = endpoint.answer([None], forms[:1], max_new_tokens=_MAX_TOKENS, fresh=True)
  failed = [reply for pair in first for reply in pair if reply.text is None]
  if len(failed) == 2 * len(forms):
    assert failed[0].failure is not None
    raise BlindEndpoint(
      f"{endpoint.name} answers no question about a picture: {failed[0].failure.value} "
      f"({failed[0].detail})"
    )
  tokens = _picture_tokens(first[0], bare)
  said = (_shown(first[0][0]), _shown(first[0][1]))
  evidence = _evidence(first, second)
  if evidence == "different" and _is_read_as_text(first[0]):
    evidence = None
  if evidence is None and tokens is not None and tokens >= _MIN_TOKENS:
    logging.warning(
      "%s: says %r of a red picture and %r of a blue one; that it sees them is known from %d"
      " tokens only",
      endpoint.name,
      *said,
      tokens,
    )
    evidence = "tokens"
  if evidence is None:
    counts = [bare.usage.prompt, *(reply.usage.prompt for reply in first[0])]
    without, with_red, with_blue = ("?" if n is None else n for n in counts)
    raise BlindEndpoint(
      f"{endpoint.name} does not see pictures: it says {said[0]!r} of a red one and {said[1]!r} of "
      f"a blue one; tokens of the prompt without a picture {without}, with the red {with_red}, "
      f"with the blue {with_blue}"
    )
  return SightCheck(evidence, said, tokens)


def pictures(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the red and the blue picture, u8[size,size,3].

  The blue one has a fine pattern, which makes its file many times as long as the red one's.
  """
  red = np.zeros((size, size, 3), np.uint8)
  red[...] = (230, 20, 20)
  blue = np.zeros((size, size, 3), np.uint8)
  blue[...] = (20, 20, 225)
  blue += streams.rng(0, "sight").integers(0, 25, blue.shape, np.uint8)
  side = max(size // 6, 1)
  for picture, columns in ((red, (2,)), (blue, (0, 2, 4))):
    for column in columns:
      left, top = column * side + side // 2, 2 * side + side // 2
      picture[top : top + side, left : left + side] = 255
  return red, blue


def _ask(
  endpoint: Endpoint, pair: tuple[np.ndarray, np.ndarray], forms: Sequence[str]
) -> list[tuple[Reply, Reply]]:
  """Returns the replies per form, about the red and about the blue picture."""
  replies = endpoint.answer(
    [picture for _ in forms for picture in pair],
    [form for form in forms for _ in pair],
    max_new_tokens=_MAX_TOKENS,
    fresh=True,
  )
  return list(zip(replies[::2], replies[1::2]))


def _evidence(
  first: Sequence[tuple[Reply, Reply]], second: Sequence[tuple[Reply, Reply]]
) -> Evidence | None:
  rounds = list(zip(first, second))
  for asked, (_, red, blue) in zip(rounds, _FORMS):
    if all(_is_right(pair, red, blue) for pair in asked):
      return "right"
  for one, two in rounds:
    texts = [(a.text, b.text) for a, b in (one, two)]
    if texts[0] == texts[1] and None not in texts[0] and texts[0][0] != texts[0][1]:
      return "different"
  return None


def _is_right(pair: tuple[Reply, Reply], red: str, blue: str) -> bool:
  """Whether both answers have what is right of their picture and not what is of the other."""
  of_red, of_blue = ((reply.text or "").lower() for reply in pair)
  found = [bool(re.search(p, text)) for text in (of_red, of_blue) for p in (red, blue)]
  return found == [True, False, False, True]


def _picture_tokens(pair: tuple[Reply, Reply], bare: Reply) -> int | None:
  """Returns what a picture adds to the prompt; None if that is unknown or is not the same."""
  of_red, of_blue, without = (reply.usage.prompt for reply in (*pair, bare))
  if of_red is None or without is None or of_blue != of_red:
    return None
  return of_red - without


def _is_read_as_text(pair: tuple[Reply, Reply]) -> bool:
  """Returns whether the pictures, which have one size but files of two, are not counted alike."""
  of_red, of_blue = (reply.usage.prompt for reply in pair)
  return of_red is not None and of_blue is not None and of_red != of_blue


def _shown(reply: Reply) -> str:
  return one_line(reply.text if reply.text is not None else f"({reply.detail})", 60)
