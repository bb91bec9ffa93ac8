#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2: jax.random.key keeps the low 32 bits of a Python integer and says nothing.
#
# Expected: a seed that does not fit is refused (numpy.random.default_rng takes all of its bits), or
#   seeds that differ give keys that differ.
# Seen: without jax_enable_x64 (the default), key(2**32) is key(0), key(2**40) is key(0), and key(-1)
#   is key(2**32 - 1). No error, no warning. With jax_enable_x64 the first two differ from key(0), so
#   one program with one seed gives other numbers under another flag.
# Why it matters: seeds made by hashing or by arithmetic (seed * 1000 + step, seed << 32 | shard) fall
#   together, and "independent" runs are the same run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 numpy==2.4.4
cat >"$folder/seen.py" <<'PY'
import warnings

import jax
import numpy as np


def data(seed):
  return tuple(jax.random.key_data(jax.random.key(seed)).tolist())


with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  falls = [data(2**32) == data(0), data(2**40) == data(0), data(-1) == data(2**32 - 1)]
jax.config.update("jax_enable_x64", True)
kept = [data(2**32) != data(0), data(2**40) != data(0)]
state = [np.random.default_rng(s).bit_generator.state["state"]["state"] for s in (0, 2**32)]
print(f"jax {jax.__version__}: equal keys {falls}, warnings {len(caught)}; with x64 apart {kept}")
assert falls == [True, True, True] and not caught and kept == [True, True]
assert state[0] != state[1], "numpy takes all bits"
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/seen.py"
