# SPDX-License-Identifier: Apache-2.0
"""What the ablations here share: which audit is ablated, by which seed, and how much of it is run.

ARGS of every ablation, as --config=configs/ablations/reward.py:preset=paligemma2,on=v6e-8
  preset   scenes | paligemma2 | gemma3 | needle: configs/PRESET.py, whose own args can be given too
  budget   full | small | brief | tiny: all of the preset's steps, probes and examples, or 40, 15 or
           4 in a hundred
  repair   no | yes: whether runs end with the repair of the target; one round in any case
  gaps     drawn: each seed has a target of its own, whose gaps it draws (scenes, needle)
  seed     of everything that is drawn; the stage sweep gives it
"""

from collections.abc import Mapping
import os
import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

CONFIGS = pathlib.Path(__file__).absolute().parents[1]
parse = runpy.run_path(str(CONFIGS / "common.py"))["parse"]
SCENES = "data/scenes/weights"
NEEDLE = "data/scenes/needle"
PRESETS = ("scenes", "paligemma2", "gemma3", "needle")
BUDGETS = {"full": 1.0, "small": 0.4, "brief": 0.15, "tiny": 0.04}


def ablated(
  file: str,
  arg: str,
  own: Mapping[str, Any] = {},
  *,
  repair: bool = False,
  **given: str,  # noqa: B006
) -> tuple[ConfigDict, dict[str, Any]]:
  """Returns the config of the preset, and the args of `own` and those above.

  Args:
    file: what errors call the config.
    arg: what get_config got.
    own: the ablation's args, as `parse` has them.
    repair: whether its runs repair by default.
    **given: args of the preset or those above that are other by default.
  """
  preset = preset_of(file, arg, **given)
  module = runpy.run_path(str(CONFIGS / f"{preset}.py"))
  yes_no = ("yes", "no") if repair else ("no", "yes")
  known = {**module["ARGS"], "preset": PRESETS, "budget": tuple(BUDGETS), "repair": yes_no, **own}
  known["seed"] = 0
  own_names = known.keys() - module["ARGS"].keys()
  said = dict(pair.partition("=")[::2] for pair in arg.split(",") if "=" in pair)
  said = {name: text for name, text in given.items() if name in known} | said
  if said.get("gaps") == "drawn" and preset in ("scenes", "needle"):
    seed = said.get("seed", 0)
    said["gaps"] = f"seed:{seed}" if preset == "scenes" else f"{seed}"
  bad = ",".join(pair for pair in arg.split(",") if "=" not in pair)
  args = parse(file, ",".join([*(f"{k}={v}" for k, v in said.items()), bad]), known)
  passed = ",".join(
    f"{name}={text}" for name, text in said.items() if name in module["ARGS"] and name not in own
  )
  c = module["get_config"](passed)
  c.seed = args["seed"]
  c.images.seed = args["seed"]
  # A second round would audit another target in each cell.
  c.rounds = dict(count=1, repair_last=args["repair"] == "yes")
  _scale(c, BUDGETS[args["budget"]])
  return c, {name: args[name] for name in own_names} | {"seed": args["seed"]}


def preset_of(file: str, arg: str, *, among: tuple[str, ...] = PRESETS, **given: str) -> str:
  """Returns the preset that args name; the first one of `among` if they name none."""
  named = [pair for pair in arg.split(",") if pair.startswith("preset=")]
  if "preset" in given and not named:
    return given["preset"]
  return parse(file, ",".join(named), {"preset": among})["preset"]


def target(arg: str) -> str:
  """Returns the config by which the target of a seed is made; "" where the preset has one."""
  pairs = dict(pair.partition("=")[::2] for pair in arg.split(",") if "=" in pair)
  preset, seed = pairs.get("preset", "scenes"), pairs.get("seed", "0")
  if pairs.get("gaps") != "drawn" or preset not in ("scenes", "needle"):
    return ""
  made = os.path.relpath(CONFIGS / "pretrain_scenes.py")  # Here or in a checkout elsewhere.
  if preset == "needle":
    models = pairs.get("models", NEEDLE)
    return f"{made}:world=needle,only=target,gaps=seed:{seed},seed={seed},made={models}"
  return f"{made}:only=target,gaps=seed:{seed},seed={seed},made={SCENES}"


def _scale(c: ConfigDict, share: float) -> None:
  """Takes a share of the steps, probes and examples of a config."""
  if share == 1:
    return
  c.optim.steps = _part(c.optim.steps, share)
  c.checkpoints.harvest = tuple(
    dict.fromkeys(step for s in c.checkpoints.harvest if (step := int(s * share)))
  )
  c.discover.probes = _part(c.discover.probes, share)
  c.discover.batch = min(c.discover.batch, c.discover.probes)
  c.discover.search_probes = _part(c.discover.search_probes, share)
  c.verify.limit = _part(c.verify.limit, share)
  c.verify.labelled = _part(2_000, share)
  c.taxonomy.fresh = dict(rest=_part(4_000, share), asks=_part(4_000, share))
  c.rectify.curate.size = _part(c.rectify.curate.size, share)
  if "steps" in c.rectify.recipe:
    c.rectify.recipe.steps = _part(c.rectify.recipe.steps, share)


def _part(n: int, share: float) -> int:
  return max(round(n * share), min(n, 1))
