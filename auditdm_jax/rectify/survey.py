# SPDX-License-Identifier: Apache-2.0
"""One look at all examples before training: which are held back, how long rows are, which images.

Every row is read and tokenised here, so that an invalid one ends the run at its start and not in
the middle. Pictures are opened later.
"""

import array
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.rectify import rows
from auditdm_jax.rectify.examples import Examples, tokens_of

_MULTIPLE = 4  # What the length of rows is rounded up to.


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
  """What one source has.

  Attributes:
    source: the examples.
    image: i32[N], by example the number of its picture.
    first: i64[U], by picture an example that has it.
    origin: u32[N], by example a draw that is the same for all examples of one origin.
    longest: tokens of the longest row.
    suffix: tokens of the longest answer.
    digest: a hash of all questions, answers and names of pictures.
  """

  source: Examples
  image: np.ndarray
  first: np.ndarray
  origin: np.ndarray
  longest: int
  suffix: int
  digest: str


def survey(source: Examples, layout: rows.RowLayout, *, seed: int) -> Survey:
  """Reads all examples of a source.

  Raises:
    UserError: one is invalid, or does not fit into a row.
  """
  numbers: dict[bytes, int] = {}
  image, first, origin = array.array("i"), array.array("q"), array.array("I")
  longest = suffix = 0
  digest = hashlib.sha256()
  for i in range(len(source)):
    example = source[i]
    for answer in example.answers:
      columns = tokens_of(layout, example, answer)
      longest = max(longest, int(columns["valid"].sum()))
      suffix = max(suffix, int(columns["mask"].sum()))
    name = hashlib.blake2b(example.image.encode("utf-8", "replace"), digest_size=16).digest()
    if name not in numbers:
      numbers[name] = len(numbers)
      first.append(i)
    image.append(numbers[name])
    origin.append(streams.word(seed, "validation", example.origin))
    digest.update(repr((example.question, example.answers, example.image)).encode("utf-8"))
  return Survey(
    source,
    np.array(image, np.int32),
    np.array(first, np.int64),
    np.array(origin, np.uint32),
    longest,
    suffix,
    digest.hexdigest(),
  )


def fitted(layout: rows.RowLayout, surveys: Sequence[Survey]) -> rows.RowLayout:
  """Returns the layout without the padding that no row needs."""
  longest = max(s.longest for s in surveys)
  length = min(layout.length, -(-longest // _MULTIPLE) * _MULTIPLE)
  return dataclasses.replace(layout, length=length, suffix=max(s.suffix for s in surveys))


def held_back(surveys: Sequence[Survey], share: float) -> list[np.ndarray]:
  """Returns for each source bool[N]: which examples are for validation.

  Those of one origin go together, in all sources. `share` counts origins of the first source, of
  which at least one is trained on; of few origins at least one is held back.
  """
  drawn = np.unique(surveys[0].origin)
  count = min(max(1, round(share * len(drawn))), len(drawn) - 1) if share else 0
  if not count:
    return [np.zeros(len(s.origin), bool) for s in surveys]
  return [s.origin <= drawn[count - 1] for s in surveys]
