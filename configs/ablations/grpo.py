# SPDX-License-Identifier: Apache-2.0
"""GRPO: group size and what advantages are divided by, at equal completions.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/grpo.py --workdir=runs/grpo \\
    --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py, and
  group   completions of a prompt; the number of prompts follows, so that a step has as many
          completions in any case: the paper's 256

The reward is the paper's binary one, since novelty would hide what groups do. In scenes a step has
twice the preset's prompts and a run half its steps.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
ARGS = {"group": ("8", "4", "16")}


def get_config(arg: str = "") -> ConfigDict:
  c, args = common["ablated"]("configs/ablations/grpo.py", arg, ARGS)
  c.reward = dict(novelty="off")
  if args["preset"] == "scenes":
    c.rollout.prompts = {name: 2 * n for name, n in c.rollout.prompts.items()}
    c.optim.steps = max(c.optim.steps // 2, 1)
    c.checkpoints.harvest = tuple(s // 2 for s in c.checkpoints.harvest if s > 1)
  group = int(args["group"])
  c.rollout.prompts = {name: n * 8 // group for name, n in c.rollout.prompts.items()}
  c.grpo.group_size = group
  return c


def sweep(add: Callable[..., None], arg: str) -> None:
  add("base")  # The paper's: 8 completions a prompt, advantages over the group's std.
  add("std-none", **{"grpo.std": "none"})  # Dr. GRPO, arXiv:2503.20783
  add("std-batch", **{"grpo.std": "batch"})
  add("group-4", "group=4")
  add("group-16", "group=16")
