#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# orbax-checkpoint 0.12.8: one NaN among the metrics, and a CheckpointManager deletes the best checkpoint.
#
# Expected: with best_fn and max_to_keep=2 the two checkpoints with the lowest loss are kept, as they
#   are without a NaN; one whose metric is NaN, of a step that overflowed say, is the worst or refused.
# Seen: checkpoints are sorted by their metrics, and NaN compares with nothing, so the order on either
#   side of it is left as it was. Of losses 2, 1, NaN, 3, 4 the last two are kept, the best one is
#   gone from the disk, and best_step() names a loss of 3. Nothing is logged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/seen.py" <<'PY'
import importlib.metadata
import tempfile

import numpy as np
import orbax.checkpoint as ocp


def kept(losses):
  """Saves a checkpoint for each loss; returns the losses of those that are left, and of the best."""
  options = ocp.CheckpointManagerOptions(
    max_to_keep=2, best_fn=lambda metrics: metrics["loss"], best_mode="min"
  )
  with ocp.CheckpointManager(tempfile.mkdtemp(), options=options) as manager:
    for step, loss in enumerate(losses):
      args = ocp.args.StandardSave({"w": np.ones(3)})
      manager.save(step, args=args, metrics={"loss": loss})
      manager.wait_until_finished()
    return [losses[step] for step in manager.all_steps()], losses[manager.best_step()]


print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))
seen = {}
for name, losses in (("finite", [2.0, 1.0, 5.0, 3.0, 4.0]), ("NaN", [2.0, 1.0, np.nan, 3.0, 4.0])):
  seen[name] = kept(losses)
  print(f"{name}: losses {losses}, kept {seen[name][0]}, best {seen[name][1]}")
assert seen == {"finite": ([2.0, 1.0], 1.0), "NaN": ([3.0, 4.0], 3.0)}
PY
"$folder/venv/bin/python" "$folder/seen.py" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
