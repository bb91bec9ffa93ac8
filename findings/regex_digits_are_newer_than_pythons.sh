#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# regex 2026.11.19 under Python 3.11: what \d matches need not be a number to Python.
#
# Expected: a text that matches \d+ can be given to int() and Fraction(), as with the module re, whose
#   digits are those of the same interpreter.
# Seen: regex carries a Unicode table of its own, newer than the interpreter's (Unicode 14 in 3.11).
#   It matches digits of scripts that were added since, such as U+10D40 (Garay, Unicode 16), which
#   int() and Fraction() refuse with a ValueError, and which str.isdecimal() does not know either.
# Why it matters: a parser of model answers checks by pattern, converts, and ends its run on a text
#   that a property test finds and a person does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check regex==2026.11.19
cat >"$folder/seen.py" <<'PY'
import re
import sys
import unicodedata

import regex

digit = "\U00010d40"
try:
  int(digit)
  number = True
except ValueError:
  number = False
found = bool(regex.fullmatch(r"\d", digit)), bool(re.fullmatch(r"\d", digit)), number
print(f"regex {regex.__version__}, Python {sys.version.split()[0]}, Unicode {unicodedata.unidata_version}:")
print(f"regex matches {found[0]}, re matches {found[1]}, int() takes it {found[2]}")
assert found == (True, False, False)
PY
"$folder/venv/bin/python" "$folder/seen.py"
