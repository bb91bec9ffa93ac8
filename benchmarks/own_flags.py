# SPDX-License-Identifier: Apache-2.0
"""Flags of one benchmark: several have flags of the same names, and a test imports all of them."""

from collections.abc import Callable

from absl import flags


def parser(own: flags.FlagValues) -> Callable[[list[str]], list[str]]:
  """Returns what reads a program's own flags, then absl's: `app.run(main, flags_parser=…)`."""
  return lambda argv: flags.FLAGS(own(argv, known_only=True))
