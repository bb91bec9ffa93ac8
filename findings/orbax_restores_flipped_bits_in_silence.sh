#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# orbax-checkpoint 0.12.8, tensorstore 0.1.86, jax 0.10.2: a bit of an array that flips on disk is not noticed.
#
# Expected: a checkpoint says so when it is not what was written.
# Seen: with one bit flipped in the middle of a checkpoint's largest file, restore raises nothing, and the
#   arrays that come back are others: one value of 100,000 in float32, a few in bfloat16, and up to 12,477
#   where the bit lies nearer to the beginning, since the blocks are compressed. The blocks of arrays have
#   no checksum. A run that goes on from such a checkpoint trains another model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8 tensorstore==0.1.86
cat >"$folder/seen.py" <<'PY'
import importlib.metadata
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

print(*(f"{n} {importlib.metadata.version(n)}" for n in ("orbax-checkpoint", "tensorstore", "jax")))
changed = {}
for dtype in ("float32", "bfloat16"):
  array = jax.random.normal(jax.random.key(0), (100_000,), jnp.dtype(dtype))
  folder = pathlib.Path(sys.argv[1]) / dtype
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, {"w": array})
  files = [path for path in folder.rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 4
  largest.write_bytes(data)
  with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(folder, {"w": array})["w"]
  changed[dtype] = int(np.sum(np.asarray(restored) != np.asarray(array)))
  print(f"{dtype}: restored without an error, {changed[dtype]:,} of {array.size:,} values are others")
raise SystemExit(not all(changed.values()))
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/seen.py" "$folder/checkpoints" 2>/dev/null
