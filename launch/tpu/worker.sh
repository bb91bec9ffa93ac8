#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On one machine of a TPU slice: makes the environment and runs a stage, as one process of several.
# Its arguments are those of `python -m auditdm_jax`. Used by pod.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# The machines' own Python is older than 3.11; uv brings one.
export PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
source launch/venv.sh
ensure_venv requirements.txt launch/tpu/requirements.txt

# What a broken connection has left behind would hold the chips.
pid_file=$HOME/auditdm_jax.pid
if [[ -f $pid_file ]] && kill -TERM "$(cat "$pid_file")" 2>/dev/null; then
  timeout 120 tail --pid="$(cat "$pid_file")" -f /dev/null || kill -KILL "$(cat "$pid_file")"
fi
echo $$ >"$pid_file"
exec .venv/bin/python -m auditdm_jax "$@" --distributed </dev/null
