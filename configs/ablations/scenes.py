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

from ml_collections import ConfigDict

from configs import scenes

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


def get_config(arg: str = "") -> ConfigDict:
  args = {"arm": "base", "seed": "0", "target": "easy"}
  if wrong := [a for a in arg.split(",") if a and "=" not in a]:
    raise ValueError(
      f"configs/ablations/scenes.py: {wrong[0]!r}: args are written name=value: {', '.join(args)}"
    )
  given = dict(a.split("=", 1) for a in arg.split(",") if a)
  if unknown := sorted(set(given) - set(args)):
    raise ValueError(f"unknown arg {unknown[0]!r}; args: {', '.join(args)}")
  args |= given
  if args["arm"] not in ARMS:
    raise ValueError(f"arm={args['arm']!r}: must be one of {', '.join(ARMS)}")
  c = scenes.get_config(f"target={args['target']},seed={args['seed']},reward=plain")
  c.optim.steps = 80  # as many completions as the quickstart has in 160
  c.update_from_flattened_dict(ARMS[args["arm"]])
  scale = COMPLETIONS // c.grpo.group_size // sum(SHARES.values())
  c.rollout.prompts = {strategy: share * scale for strategy, share in SHARES.items()}
  return c
