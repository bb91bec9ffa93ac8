#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2, libtpu 0.0.42.1: jax.make_mesh refuses on v6e and v5p the meshes that it makes on v5e.
#
# Expected: jax.make_mesh((8, 2), ("fsdp", "tensor")) of 16 chips means the same on slices of one shape.
#   v5e:4x4 and v6e:4x4 are both a grid of 4 x 4 chips.
# Seen: on v5e it makes the mesh, because there, and only there, it lets an axis of the mesh take a part
#   of an axis of the grid. On v6e:4x4 the same call ends in NotImplementedError, and so do 8 x 8 chips of
#   v5p:4x4x4. Its documentation does not say that kinds of devices differ, and it has no argument for it;
#   jax.experimental.mesh_utils.create_device_mesh has one (allow_split_physical_axes). A config that runs
#   on v5e stops at its first line on v6e. No TPU is needed to see it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax[tpu]==0.10.2 libtpu==0.0.42.1
cat >"$folder/seen.py" <<'PY'
import jax
from jax.experimental import mesh_utils, topologies

jax.config.update("jax_platforms", "cpu")
CASES = [
  ("v5e:4x4", (8, 2), True),
  ("v6e:4x4", (8, 2), False),
  ("v6e:4x4", (4, 4), True),
  ("v5p:4x4x4", (8, 8), False),
  ("v5p:4x4x4", (4, 16), True),
]


def is_made(slice_, shape):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=slice_).devices
  split = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  assert split.shape == shape
  try:
    jax.make_mesh(shape, ("fsdp", "tensor"), devices=devices)
  except NotImplementedError:
    return False
  return True


for slice_, shape, expected in CASES:
  made = is_made(slice_, shape)
  print(f"{slice_} as {shape}: {'made' if made else 'refused'}")
  assert made == expected
PY
TPU_SKIP_MDS_QUERY=1 "$folder/venv/bin/python" "$folder/seen.py" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
