# SPDX-License-Identifier: Apache-2.0
"""What the choices of GRPO are worth in the scenes world: one arm, one seed, one training.

COMMAND
  python -m benchmarks.ablations --workdir=runs/ablations          # all arms, three seeds, a table
  python -m auditdm_jax train --config=configs/ablations/scenes.py:arm=std-none,seed=1 \
    --workdir=runs/std-none-1

ARGS, as configs/ablations/scenes.py:arm=std-none,seed=1,target=rare
  arm     see ARMS; each differs from `base` in one thing
  seed    of everything that is drawn
  target  easy | rare

Each arm takes 256 completions a step, as the paper does, in the same shares of strategies; metrics
are in the workdir, `oracle_success` and `reward` by step.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

CONFIGS = pathlib.Path(__file__).parents[1]
parse = runpy.run_path(str(CONFIGS / "common.py"))["parse"]
scenes = runpy.run_path(str(CONFIGS / "scenes.py"))["get_config"]

ARMS = {
  "base": {},  # the paper's binary reward, G = 8, advantages scaled by the group's std
  "std-none": {"grpo.std": "none"},  # Dr.GRPO
  "std-batch": {"grpo.std": "batch"},
  "group-4": {"grpo.group_size": 4},
  "group-16": {"grpo.group_size": 16},
  "novelty": {"reward.novelty": "archive", "reward.novelty_power": 0.4},
}
COMPLETIONS = 256
SHARES = {"question": 12, "edit": 2, "generate": 1, "edit-only": 1}
ARGS = {"arm": tuple(ARMS), "seed": 0, "target": ("easy", "rare")}


def get_config(arg: str = "") -> ConfigDict:
  args = parse("configs/ablations/scenes.py", arg, ARGS)
  c = scenes(f"target={args['target']},seed={args['seed']},reward=plain")
  c.optim.steps = 80  # as many completions as the quickstart has in 160
  c.update_from_flattened_dict(ARMS[args["arm"]])
  scale = COMPLETIONS // c.grpo.group_size // sum(SHARES.values())
  c.rollout.prompts = {strategy: share * scale for strategy, share in SHARES.items()}
  return c
