#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2, jaxlib 0.10.2: without its fusion emitters XLA for CPUs runs a scatter as a loop over rows.
#
# Expected: xla_cpu_use_fusion_emitters says who writes a kernel of the same program. False is worth
#   having: a program of many small kernels, as of a tiny model, compiles in two thirds of the time and
#   most run as fast.
# Seen: a scatter, such as the gradient of an embedding's lookup, is no kernel any more. It is taken
#   apart into a while loop with as many turns as there are rows, 4,096 here, and took four times as long
#   on the machine where this was written. The option can be given to one program of a process and not to
#   another: jax.jit(…, compiler_options={…}).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/seen.py" <<'PY'
import re

import jax
import jax.numpy as jnp

ROWS, VOCABULARY, WIDTH = 4096, 512, 96


def gradient(rows, tokens):
  return jnp.zeros((VOCABULARY, WIDTH)).at[tokens].add(rows)


rows = jax.random.normal(jax.random.key(0), (ROWS, WIDTH))
tokens = jax.random.randint(jax.random.key(1), (ROWS,), 0, VOCABULARY)
seen, sums = {}, {}
for emitters in (True, False):
  options = {"xla_cpu_use_fusion_emitters": emitters}
  program = jax.jit(gradient).lower(rows, tokens).compile(compiler_options=options)
  text = program.as_text()
  turns = [int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', text)]
  seen[emitters] = text.count(" scatter("), turns
  sums[emitters] = program(rows, tokens)
  print(f"fusion emitters {emitters}: {seen[emitters][0]} scatters, loops of {turns} turns")
print("largest difference of the sums:", float(abs(sums[True] - sums[False]).max()))
raise SystemExit(seen != {True: (1, []), False: (0, [ROWS])})
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/seen.py"
