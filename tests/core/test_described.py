# SPDX-License-Identifier: Apache-2.0
"""Listings of sections, from their dataclasses."""

import dataclasses

import ml_collections
import pytest

from auditdm_jax.core import described
from auditdm_jax.core.config import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
  """Inside.

  Attributes:
    depth: how deep
      it is.
  """

  depth: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
  """Outside.

  Attributes:
    name: of it.
    sizes: in pixels.
  """

  name: str
  inner: Inner = Inner()
  maybe: Inner | None = None
  by_name: dict[str, Inner] = dataclasses.field(default_factory=dict)
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)


def listing(*keys, **values):
  return described.listing(Outer, keys, ml_collections.ConfigDict(values))


def test_a_section_is_listed_with_its_values_and_defaults():
  lines = listing(name="x" * 100).splitlines()
  assert lines[0] == "--config.KEY=…  Outside."
  assert lines[2].split()[:3] == ["name", "str", "="] and len(lines[2]) < 100
  assert lines[3].strip() == "of it."
  assert lines[4].strip() == "inner    section, see --config.inner=help"
  assert lines[5].strip() == "Inside."
  assert "required" in listing() and "sizes    dict[str, int]  default {}" in listing()
  for keys, path in ((["inner"], "inner"), (["maybe"], "maybe"), (["by_name"], "by_name.NAME")):
    said = listing(*keys)
    assert f"--config.{path}.KEY=…  Inside." in said and "default 3" in said
    assert "how deep it is." in said
  assert "depth  int  = 5" in listing("by-name", "x", by_name={"x": {"depth": 5}})
  assert listing("inner", "depth").split()[:4] == ["depth", "int", "default", "3"]


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    (["innr"], "config has no key 'innr' .did you mean 'inner'"),
    (["inner", "x"], "config.inner has no key 'x'; keys: depth"),
  ],
)
def test_a_path_to_nowhere_is_refused(keys, message):
  with pytest.raises(UserError, match=message):
    listing(*keys)


def test_a_field_is_explained_by_its_own_class_or_its_base():
  @dataclasses.dataclass
  class Base:
    """Base.

    Attributes:
      first: what it
        means.
      second: replaced.
    """

    first: int
    second: int

  @dataclasses.dataclass
  class Derived(Base):
    """Derived.

    Attributes:
      second: its own.
    """

    third: int = 0

  assert described.attributes(Derived) == {"first": "what it means.", "second": "its own."}
