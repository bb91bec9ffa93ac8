#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the lock files again: every package of an environment with its version and hashes, for
# Python 3.11 and newer and any platform. Needs uv (pip install uv).
#
#   ./launch/lock.sh                                      writes the three files below
#   pip install --require-hashes -r requirements.lock     installs what is locked, and nothing else
#
# The bill of materials (CycloneDX) of an environment that was installed, by cyclonedx-bom:
#   cyclonedx-py environment --pyproject pyproject.toml .venv/bin/python >sbom.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() {
  local out=$1
  shift
  uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
    --custom-compile-command ./launch/lock.sh --output-file "$out" "$@"
}

lock requirements.lock requirements.txt
lock launch/tpu/requirements.lock requirements.txt launch/tpu/requirements.txt
lock launch/image_server/requirements.lock launch/image_server/requirements.txt
