#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2: a sharding constraint on a product's rows makes the partitioner gather the weight.
#
# Expected: y[32,2048] = x @ w with w[4096,2048] split over both mesh axes, and y constrained to be split by
#   its rows: every device multiplies with its part of w, and what travels is parts of y, which are small.
#   This is how a decoder with few rows is laid out (Pope et al., arXiv:2211.05102).
# Seen: the constraint decides the layout of the product itself, and w is gathered for it: 16 MiB on a
#   device for 64 KiB of partial sums. If the same value is first constrained to be split by its columns, as
#   w is, and only then by its rows, nothing of w moves. The two programs compute the same, and no
#   message says which of them one has. The compiler for TPUs does likewise (libtpu 0.0.42.1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/seen.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def array(shape, spec):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


def gathered(*specs):
  """Shapes that all-gathers make, with these constraints on the product one after the other."""

  def product(x, w):
    y = x @ w
    for spec in specs:
      y = jax.lax.with_sharding_constraint(y, NamedSharding(mesh, spec))
    return y

  x, w = array((32, 4096), P(None, "b")), array((4096, 2048), P("b", "a"))
  text = jax.jit(product).lower(x, w).compile().as_text()
  return re.findall(r"= (\w+\[[\d,]*\])\S* all-gather\(", text)


print(f"jax {jax.__version__}")
rows, both = gathered(P("a")), gathered(P(None, "a"), P("a"))
print(f"constrained to rows: gathers {rows}; to columns, then to rows: gathers {both}")
raise SystemExit(rows != ["f32[2048,2048]"] or both != [])
PY
XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/seen.py"
