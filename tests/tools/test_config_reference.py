# SPDX-License-Identifier: Apache-2.0
"""docs/config.md says what the dataclasses say."""

import dataclasses

from tools import config_reference


def test_the_page_is_up_to_date():
  written = config_reference.PAGE.read_text(encoding="utf-8")
  assert written == config_reference.page(), "run python -m tools.config_reference"


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

  assert config_reference.attributes(Derived) == {"first": "what it means.", "second": "its own."}
