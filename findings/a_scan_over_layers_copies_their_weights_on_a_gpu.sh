#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2, jax-cuda12-pjrt 0.10.2: a scan over stacked layers copies the weights before each product.
#
# Expected: jax.lax.scan over weights [L, D, F], the usual way to write a deep network, reads each layer
#   once where it lies. A token of a decoder then costs one pass over the weights.
# Seen: compiled for a Hopper GPU, each layer is first cut out of the stack into a buffer of its own, by
#   a kernel that does nothing else, and the product reads the buffer: the weights are read twice and
#   written once, three times the traffic of the same layers in a list. With few rows, as in decoding,
#   that is what takes the time. The flag that is there against it,
#   xla_gpu_enable_dynamic_slice_fusion, changes nothing here. No GPU is needed: the compiler runs on
#   the host.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
cat >"$folder/seen.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LAYERS, WIDTH, HIDDEN, ROWS = 26, 2304, 9216, 8
HOPPER = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 150000000000
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


def layer(x, w):
  return x + jax.nn.gelu(x @ w[0]) @ w[1]


def stacked(x, up, down):
  return jax.lax.scan(lambda x, w: (layer(x, w), None), x, (up, down))[0]


def listed(x, ups, downs):
  for w in zip(ups, downs):
    x = layer(x, w)
  return x


def copies(function, shapes, **flags):
  """How many kernels copy a layer's matrix into a buffer of its own, and do nothing else."""
  devices = topologies.get_topology_desc(
    platform="cuda", target_config=HOPPER, topology="1x1x1"
  ).devices
  where = NamedSharding(Mesh(devices, ("x",)), PartitionSpec())
  args = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=where),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x),
  )
  lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
  text = lowered.compile(compiler_options=flags).as_text()
  matrix = rf"bf16\[1,(?:{WIDTH},{HIDDEN}|{HIDDEN},{WIDTH})\]"
  return len(re.findall(rf"ROOT \S+ = {matrix}\S* copy\(%dynamic_slice", text))


jax.config.update("jax_platforms", "cpu")
up, down = (WIDTH, HIDDEN), (HIDDEN, WIDTH)
of_stack = copies(stacked, ((ROWS, WIDTH), (LAYERS, *up), (LAYERS, *down)))
with_flag = copies(
  stacked,
  ((ROWS, WIDTH), (LAYERS, *up), (LAYERS, *down)),
  xla_gpu_enable_dynamic_slice_fusion=True,
)
of_list = copies(listed, ((ROWS, WIDTH), [up] * LAYERS, [down] * LAYERS))
print(
  f"matrices copied in a layer's turn: {of_stack} of 2 stacked, {with_flag} with the flag,"
  f" {of_list} in a list"
)
assert (of_stack, with_flag, of_list) == (2, 2, 0)
PY
JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 "$folder/venv/bin/python" "$folder/seen.py" 2>"$folder/log" ||
  { cat "$folder/log"; exit 1; }
