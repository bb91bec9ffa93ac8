# SPDX-License-Identifier: Apache-2.0
"""Prints the table of the fault campaign as Markdown."""

import argparse
import pathlib
import sys
import tempfile

from tests.faults import campaign
from tests.faults.seen import Seen


def main(every: bool) -> int:
  """Prints a row for each fault; returns how many did not end as they should."""
  print("| fault | outcome | evidence |\n|---|---|---|")
  failed = 0
  for fault in campaign.FAULTS:
    if fault.dear and not every:
      continue
    with tempfile.TemporaryDirectory() as root:
      try:
        seen = fault.bring(pathlib.Path(root))
      except Exception as e:  # The table says it, and the exit code.
        failed += 1
        said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        seen = Seen("**not as it should be**", said)
    cells = (fault.name, seen.outcome, seen.evidence)
    print("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |", flush=True)
  return failed


if __name__ == "__main__":
  parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
  parser.add_argument("--all", action="store_true", help="also the faults that take minutes")
  sys.exit(main(parser.parse_args().all))
