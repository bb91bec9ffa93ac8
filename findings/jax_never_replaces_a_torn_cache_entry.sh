#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2: an entry of the persistent compilation cache that was torn stays torn for good.
#
# Expected: entries are written whole or not at all (to another name, then renamed), or one that cannot
#   be read is written again once the program has been compiled.
# Seen: entries are written in place. One whose writer was killed half-way cannot be decompressed; that
#   is a warning, and the program is compiled. The new one is not kept, since a file of that name is
#   there: the next process warns and compiles again, and so does every other.
# Why it matters: preempted machines with a cache on a shared disk. The program that was being written,
#   often the largest, costs its compile time at every start from then on. Deleting the file mends it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 numpy==2.4.4
cat >"$folder/run.py" <<'PY'
import collections
import sys
import warnings

import jax
import jax.numpy as jnp

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))


def program(x):
  return jnp.sin(x) @ x.T + 7


with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  x = jax.device_put(jnp.arange(64.0).reshape(8, 8))
  events.clear()
  jax.jit(program)(x).block_until_ready()
torn = sum("compilation cache entry" in str(w.message) for w in caught)
print(f"{events['cache_hits']} {events['cache_misses']} {torn}")
PY
run() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py" "$folder/cache"; }
first=$(run)
second=$(run)
entry=$(echo "$folder"/cache/jit_program-*-cache)
truncate -s $(($(stat -c %s "$entry") / 2)) "$entry"
half=$(stat -c %s "$entry")
third=$(run)
fourth=$(run)
left=$(stat -c %s "$entry")
echo "hits, misses, warnings: first '$first', second '$second'; torn to $half bytes: '$third', then '$fourth', $left bytes"
[[ "$first" == "0 1 0" && "$second" == "1 0 0" ]]
[[ "$third" == "0 1 1" && "$fourth" == "0 1 1" && "$left" == "$half" ]]
