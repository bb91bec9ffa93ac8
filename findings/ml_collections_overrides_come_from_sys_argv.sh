#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ml_collections 1.1.0: overrides of a config are looked for in sys.argv, whatever argv is parsed.
#
# Expected: FlagValues()(argv) reads argv, as it does for every other flag of absl.
# Seen: --config itself comes from the argv that is given, but --config.lr=2.0 in it is an
#   UnrecognizedFlagError unless sys.argv holds the same text; and an override that stands in sys.argv
#   alone registers a flag. A test or a notebook that parses flags of its own cannot override.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_collections==1.1.0 absl-py==2.5.0
cat >"$folder/config.py" <<'PY'
from ml_collections import ConfigDict


def get_config():
  return ConfigDict({"lr": 1.0})
PY
cat >"$folder/seen.py" <<'PY'
import importlib.metadata
import sys

from absl import flags
from ml_collections import config_flags


def parsed(argv):
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
  try:
    values(argv)
  except flags.UnrecognizedFlagError as e:
    return type(e).__name__
  return config.value.lr


given = ["prog", f"--config={sys.argv[1]}", "--config.lr=2.0"]
sys.argv = ["prog"]
alone = parsed(given)
sys.argv = list(given)
both = parsed(given)
version = importlib.metadata.version("ml_collections")
print(f"ml_collections {version}: not in sys.argv {alone}, in sys.argv {both}")
assert alone == "UnrecognizedFlagError" and both == 2.0
PY
"$folder/venv/bin/python" "$folder/seen.py" "$folder/config.py"
