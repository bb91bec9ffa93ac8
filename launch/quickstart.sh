#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Audits and repairs a small vision-language model, end to end, on a machine without accelerator.
#
#   ./launch/quickstart.sh                        results in runs/quickstart; run again to continue
#   WORKDIR=runs/mine ./launch/quickstart.sh --config=configs/scenes.py:target=rare
#
# The first run makes .venv in the repository and installs requirements.txt into it.
set -euo pipefail
invoked_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
ensure_venv requirements.txt

config=(--config=configs/scenes.py)
for arg in "$@"; do
  case $arg in --config=*) config=() ;; esac
done
workdir=${WORKDIR:-$PWD/runs/quickstart}
case $workdir in /*) ;; *) workdir=$invoked_from/$workdir ;; esac

command=(.venv/bin/python -m auditdm_jax loop "${config[@]}" --workdir="$workdir" "$@")
echo "+ ${command[*]}"
exec "${command[@]}" </dev/null
