#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2, libtpu 0.0.42.1: on a square slice a reduce-scatter is an all-reduce and a slice.
#
# Expected: jax.lax.psum_scatter over all chips sends each chip its shard of the sum, half the bytes of an
#   all-reduce; that is why FSDP scatters gradients.
# Seen: compiled for v5e:4x4, the entry computation sums the whole array by an all-reduce and every chip
#   then cuts out its sixteenth. The 2x4 slice of the same chip fuses both into one reduce-scatter. Shapes,
#   dtype and code are the same, and nothing says so; the links of the square slice carry about twice as
#   much. No TPU is needed: the compiler runs on the host.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax[tpu]==0.10.2 libtpu==0.0.42.1
cat >"$folder/seen.py" <<'PY'
import importlib.metadata
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

ROWS, WIDTH = 10240, 2560


def entry(topology):
  """The entry computation of a gradient that is scattered over all chips."""
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = Mesh(np.array(devices), ("x",))
  where = NamedSharding(mesh, P("x", None))
  x, y = (
    jax.ShapeDtypeStruct((8 * len(devices), n), jnp.bfloat16, sharding=where)
    for n in (ROWS, WIDTH)
  )

  def gradient(x, y):
    return jax.lax.psum_scatter(x.T @ y, "x", scatter_dimension=0, tiled=True)

  step = jax.shard_map(gradient, mesh=mesh, in_specs=(P("x", None),) * 2, out_specs=P("x", None))
  text = jax.jit(step).lower(x, y).compile().as_text()
  return text[text.index("\nENTRY ") :]


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")))
whole = re.compile(rf"bf16\[{ROWS},{WIDTH}\]\S* all-reduce(-start)?\(")
found = {topology: bool(whole.search(entry(topology))) for topology in ("v5e:4x4", "v5e:2x4")}
for topology, is_whole in found.items():
  print(f"{topology}: {'all-reduce of the whole, then a slice' if is_whole else 'reduce-scatter'}")
raise SystemExit(found != {"v5e:4x4": True, "v5e:2x4": False})
PY
TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-16 TPU_WORKER_HOSTNAMES=localhost \
  "$folder/venv/bin/python" "$folder/seen.py" 2>/dev/null
