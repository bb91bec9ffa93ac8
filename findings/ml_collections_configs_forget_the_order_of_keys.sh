#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ml_collections 1.1.0: a ConfigDict hands out its keys sorted, so a dict's order is lost on the way.
#
# Expected: the order in which keys were given, as of any dict, where steps of a pipeline or models of
#   which later ones start from earlier ones are told by name.
# Seen: iteration, items(), ** and to_dict() are all in the order of the alphabet, of nested dicts
#   too. What must come first has to have the smaller name, or be in a tuple.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_collections==1.1.0 absl-py==2.5.0
cat >"$folder/seen.py" <<'PY'
import importlib.metadata

from ml_collections import ConfigDict

given = {"models": {"teacher": 1, "student": 2}}
models = ConfigDict(given).models
ways = {
  "iteration": list(models),
  "items()": [name for name, _ in models.items()],
  "**": list(dict(**models)),
  "to_dict()": list(ConfigDict(given).to_dict()["models"]),
}
version = importlib.metadata.version("ml_collections")
print(f"ml_collections {version}: given {list(given['models'])}, handed out {ways}")
assert all(names == ["student", "teacher"] for names in ways.values())
PY
"$folder/venv/bin/python" "$folder/seen.py"
