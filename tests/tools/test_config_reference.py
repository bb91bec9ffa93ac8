# SPDX-License-Identifier: Apache-2.0
"""docs/config.md says what the dataclasses say."""

from tools import config_reference


def test_the_page_is_up_to_date():
  written = config_reference.PAGE.read_text(encoding="utf-8")
  assert written == config_reference.page(), "run python -m tools.config_reference"
