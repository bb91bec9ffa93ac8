# SPDX-License-Identifier: Apache-2.0
"""Values as people type them."""

import dataclasses
from typing import Any, Literal

import pytest

from auditdm_jax.core import values
from auditdm_jax.core.config import UserError


@dataclasses.dataclass(frozen=True)
class Section:
  a: int = 0


@pytest.mark.parametrize(
  ("hint", "text", "want"),
  [
    (float, "3", 3.0),
    (float, "-1e-3", -1e-3),
    (int, "1_000", 1000),
    (int, "1e6", 1_000_000),
    (int, "-1", -1),
    (bool, "true", True),
    (bool, "False", False),
    (bool, "0", False),
    (str, "", ""),
    (str, "123", "123"),
    (str, "true", "true"),
    (str, "x=y, 'z'", "x=y, 'z'"),
    (str, "'a b'", "a b"),
    (str, "it's", "it's"),
    (Literal["a", "b"], "b", "b"),
    (Literal[1, 2], "2", 2),
    (int | None, "none", None),
    (int | None, "4", 4),
    (str | None, "None", None),
    (str | Section, "plain", "plain"),
    (str | Section, "{'a': 2}", {"a": 2}),
    (tuple[str, ...], "a, b/c-d,", ("a", "b/c-d")),
    (tuple[str, ...], "1,2", ("1", "2")),
    (tuple[str, ...], "('a,b',)", ("a,b",)),
    (tuple[str, ...], "'a','b'", ("a", "b")),
    (tuple[str, ...], '["a", "b"]', ("a", "b")),
    (tuple[str, ...], "", ()),
    (tuple[str, ...], "()", ()),
    (tuple[int, ...], "3", (3,)),
    (tuple[float, float], "0.5,1", (0.5, 1.0)),
    (tuple[tuple[str, float], ...], "(('a', 2),)", (("a", 2),)),
    (tuple, "1,x", (1, "x")),
    (dict[str, int], '{"a": 1}', {"a": 1}),
    (Section, '{"a": true, "b": null}', {"a": True, "b": None}),
    (Any, "[1, 2]", [1, 2]),
    (Any, "some words", "some words"),
  ],
)
def test_a_text_has_the_type_of_its_key(hint, text, want):
  got = values.parse(hint, text, "--config.x")
  assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
  ("hint", "text", "message"),
  [
    (int, "2.5", "--config.x=2.5: expected a whole number"),
    (int, "inf", "expected a whole number"),
    (float, "fast", "--config.x=fast: expected a number"),
    (bool, "maybe", "expected true or false"),
    (Literal["grpo", "dr_grpo"], "grppo", "did you mean 'grpo'"),
    (tuple[float, float], "1", "expected 2 values"),
    (tuple[int, ...], "1,b", "expected a whole number"),
    (Section, "5", "a section with keys; give --config.x.KEY="),
    (int | None, "x", "expected a whole number"),
  ],
)
def test_a_text_of_another_type_is_refused(hint, text, message):
  with pytest.raises(UserError, match=message):
    values.parse(hint, text, "--config.x")


def test_hostile_nesting_is_a_text():
  assert values.literal("(" * 100_000) == "(" * 100_000
