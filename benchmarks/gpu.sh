#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a GRPO step of the paper's models takes on a single H100 or H200, beside its plan: sampling by
# the 4B auditor, answers of the 3B target and the 10B reference, one update; random weights.
#
#   ./benchmarks/gpu.sh [--times=3] [--json=FILE]
#   PYTHON=/path/to/python ./benchmarks/gpu.sh          one that has jax for CUDA; default: python3
#
# What else is needed is installed into .venv-gpu, on top of that Python's own packages. See
# benchmarks/planned.py for the columns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0)
case $name in
  *H100*) kind=h100 ;;
  *H200*) kind=h200 ;;
  *)
    echo "an H100 or H200 is needed, not $name" >&2
    exit 2
    ;;
esac
base=${PYTHON:-python3} python=.venv-gpu/bin/python
"$base" -c 'import jax' || {
  echo "$base has no jax: pip install -r launch/gpu/requirements.txt, or set PYTHON" >&2
  exit 2
}
if ! $python -c 'import flax, orbax.checkpoint, ml_collections, openai' 2>/dev/null; then
  "$base" -m venv .venv-gpu
  # Not --system-site-packages: of a Python that is itself in a virtual environment those are others.
  "$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
  grep -v '^jax==' requirements.txt >.venv-gpu/requirements.txt
  $python -m pip install --quiet --disable-pip-version-check --no-input \
    -r .venv-gpu/requirements.txt
fi
# One reference, and what a question takes: all of it would not be done in ten minutes.
exec $python -m benchmarks.planned --config=configs/paligemma2.py:on=h200 \
  "--config.models.references=('models/paligemma2-10b-mix-448',)" \
  --topology="gpu:${kind}x1" --only="sample question,answer,train" --times=3 "$@"
