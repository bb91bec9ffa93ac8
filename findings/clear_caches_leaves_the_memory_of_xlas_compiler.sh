#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2, jaxlib 0.10.2, CPU, glibc: jax.clear_caches() returns no memory of what a program was compiled with.
#
# Expected: when a program is dropped, and jax.clear_caches() and the garbage collector have run, the
#   process is about as large as before it was compiled.
# Seen: it stays as large. The gradient of 48 small layers took 184 MB to compile, of which 1 went back;
#   glibc's malloc_trim(0) then gave 195 at once, the first compilation's among them. They had been free
#   all the time, between pieces in use, where glibc keeps them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/seen.py" <<'PY'
import ctypes
import gc
import resource

import jax
import jax.numpy as jnp

LAYERS = 48


def resident():
  with open("/proc/self/statm") as f:
    return int(f.read().split()[1]) * resource.getpagesize() / 2**20


def loss(weights, x):
  for a, b in weights:
    h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    h = jnp.tanh(h @ a) * jax.nn.sigmoid(h @ b)
    x = x + jax.nn.softmax(h @ x.T, -1) @ h
  return jnp.sum(x * x)


def compiled(layers):
  weights, x = jnp.full((layers, 2, 32, 32), 0.01), jnp.ones((16, 32))
  jax.block_until_ready(jax.jit(jax.grad(loss))(weights, x))


compiled(1)  # What the first compilation of a process loads stays anyway.
before = resident()
compiled(LAYERS)
after = resident()
jax.clear_caches()
gc.collect()
cleared = resident()
ctypes.CDLL(None).malloc_trim(0)
trimmed = resident()
took = after - before
print(f"compiling took {took:.0f} MB, clear_caches gave {after - cleared:.0f}, malloc_trim {cleared - trimmed:.0f}")
raise SystemExit(not (took > 100 and after - cleared < 0.1 * took and cleared - trimmed > 0.7 * took))
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/seen.py"
