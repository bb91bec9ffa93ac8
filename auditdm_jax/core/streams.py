# SPDX-License-Identifier: Apache-2.0
"""Random streams, each with a name: the one place where a seed becomes random numbers.

A stream is named by the seed of the run, what is decided and what it is decided for, as in
`rng(seed, "control", round)`. The name is hashed, so two streams whose names differ anywhere are
independent. Nobody adds to a seed or multiplies it.
"""

import hashlib
import json
import operator

import numpy as np


def rng(seed: int, name: str, *of: int | str) -> np.random.Generator:
  """Returns the generator of a stream.

  Args:
    seed: the seed of the run, any whole number.
    name: what is decided.
    *of: what it is decided for: a step, a round, an arm.

  Raises:
    TypeError: a part of the name is neither a whole number nor a text.
  """
  return np.random.default_rng(np.random.SeedSequence(_words("rng", seed, name, of, count=8)))


def word(seed: int, name: str, *of: int | str) -> int:
  """Returns a 32-bit seed for what takes a number, such as a request for an image."""
  return _words("word", seed, name, of, count=1)[0]


def key_data(seed: int, name: str, *of: int | str) -> np.ndarray:
  """Returns u32[2] for `jax.random.wrap_key_data`."""
  return np.array(_words("key", seed, name, of, count=2), np.uint32)


def _words(kind: str, seed: int, name: str, of: tuple[int | str, ...], *, count: int) -> list[int]:
  """The first 32-bit words of a hash; JSON keeps 1 and "1" apart, and ("a", "b") and ("ab",)."""
  parts = [x if isinstance(x, str) else operator.index(x) for x in (kind, seed, name, *of)]
  digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=4 * count).digest()
  return [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(count)]
