# SPDX-License-Identifier: Apache-2.0
import itertools
import pathlib
import re

import jax
import numpy as np
import pytest

from auditdm_jax.core import streams

ROOT = pathlib.Path(__file__).parents[2]
# Neighbouring seeds, names that run into each other when joined, numbers as texts.
NAMES = [
  (seed, *name)
  for seed in (0, 1, 2, 10, 2**32, 2**64 + 1, -1)
  for name in [
    ("a",),
    ("b",),
    ("a", 0),
    ("a", 1),
    ("a", 10),
    ("a", 1, 0),
    ("a", "1"),
    ("a1",),
    ("a", "b"),
    ("ab",),
    ("a", "b", 101),
    ("a", "b", 1, 1),
  ]
]


@pytest.mark.parametrize(
  "start",
  [
    lambda name: streams.rng(*name).integers(2**63, size=2),
    lambda name: [streams.word(*name)],
    lambda name: streams.key_data(*name),
    lambda name: jax.random.bits(jax.random.wrap_key_data(streams.key_data(*name)), (2,)),
  ],
)
def test_no_two_names_share_a_stream_and_one_repeats_itself(start):
  first = {name: tuple(map(int, start(name))) for name in NAMES}
  assert len(set(first.values())) == len(NAMES)
  assert all(tuple(map(int, start(name))) == drawn for name, drawn in first.items())


def test_a_numpy_number_is_a_number():
  assert streams.word(np.int64(3), "a", np.int32(7)) == streams.word(3, "a", 7)


@pytest.mark.parametrize("bad", [(0.5, "a"), (0, "a", 1.0), (0, "a", None), (0, "a", ("b",))])
def test_a_name_is_made_of_numbers_and_texts(bad):
  with pytest.raises(TypeError):
    streams.rng(*bad)


def test_streams_are_uncorrelated():
  drawn = np.stack(
    [streams.rng(seed, "a", k).normal(size=400) for seed in range(8) for k in (0, 1)]
  )
  assert np.abs(np.corrcoef(drawn) - np.eye(16)).max() < 0.2  # 4 standard errors


def test_nobody_else_makes_generators_or_computes_with_seeds():
  """Shapes alone need a key too: `eval_shape(…, jax.random.key(0))` draws nothing."""
  made = re.compile(r"default_rng|SeedSequence|RandomState|random\.Random|PRNGKey|random\.key\(")
  arithmetic = re.compile(r"\bseeds?\b *[-+*%^] *\w|\w *[-+*%^] *\bseed\b")
  found = []
  sources = itertools.chain((ROOT / "auditdm_jax").rglob("*.py"), (ROOT / "configs").rglob("*.py"))
  for path in sources:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
      code = line.split("#")[0]
      if (made.search(code) and "eval_shape" not in code) or arithmetic.search(code):
        found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
  allowed = ("auditdm_jax/core/streams.py", "auditdm_jax/vlm")
  assert [x for x in found if not x.startswith(allowed)] == []
