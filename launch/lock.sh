#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the lock files again: every package of an environment with its version and hashes, for
# Python 3.11 and newer and any platform; and from each of them its bill of materials (CycloneDX),
# sbom.cdx.json beside it. Needs uv (pip install uv).
#
#   ./launch/lock.sh                                      writes locks and bills
#   ./launch/lock.sh sbom                                 the bills alone, of the locks as they are
#   pip install --require-hashes -r requirements.lock     installs what is locked, and nothing else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() {
  local out=$1
  shift
  uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
    --custom-compile-command ./launch/lock.sh --output-file "$out" "$@"
}

# The same lock gives the same bill: no serial number and no time are in it.
sbom() {
  local bill
  bill=$(dirname "$1")/sbom.cdx.json
  ${CYCLONEDX:-uvx --from cyclonedx-bom==7.* cyclonedx-py} requirements --output-reproducible \
    --spec-version 1.6 --output-format JSON --output-file "$bill" "$1"
}

if [[ ${1:-} != sbom ]]; then
  lock requirements.lock requirements.txt
  lock launch/tpu/requirements.lock requirements.txt launch/tpu/requirements.txt
  lock launch/image_server/requirements.lock launch/image_server/requirements.txt
fi
sbom requirements.lock
sbom launch/tpu/requirements.lock
sbom launch/image_server/requirements.lock
