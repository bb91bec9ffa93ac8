#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lints, types and tests, which two processes share. With arguments one process runs what they say:
# ./launch/test.sh -m slow, ./launch/test.sh tests/core
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv requirements.txt tests/requirements.txt

run() {
  echo "+ $*"
  "$@" </dev/null
}
run .venv/bin/ruff check .
run .venv/bin/ruff format --check .
run .venv/bin/shellcheck -x launch/*.sh launch/*/*.sh benchmarks/*.sh
run .venv/bin/python -m tools.typecheck
[[ $# -gt 0 ]] || set -- --numprocesses=2 --dist=loadfile
run .venv/bin/python -m pytest -m "not slow and not perf and not network" "$@"
