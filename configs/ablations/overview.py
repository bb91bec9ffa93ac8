# SPDX-License-Identifier: Apache-2.0
"""One change at a time: probes, references, reward, groups and auditors against one control.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/overview.py:gaps=drawn \\
    --workdir=runs/overview --seeds=101,102,103,104,105

ARGS: see configs/ablations/common.py; the budget is brief by default. And
  use     all | question | generate | edit: which probes, at as many prompts a step
  group   completions of a prompt, at as many completions a step

The control is the preset, with questions, edits and generated images in 12, 2 and 2 of 16 prompts,
a reward with novelty, groups of 8, and all stored auditors in the sweep after training. Every other
cell changes one of these. So one table says roughly what the files beside this one ask more
closely, and at a larger budget.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

HERE = pathlib.Path(__file__).parent
common = runpy.run_path(str(HERE / "common.py"))
references = runpy.run_path(str(HERE / "references.py"))
target = common["target"]
FILE = "configs/ablations/overview.py"
PROMPTS = {"question": 12, "edit": 2, "generate": 2}  # Groups twice as large take half of each.
ARGS = {"use": ("all", *PROMPTS), "group": ("8", "4", "16")}


def get_config(arg: str = "") -> ConfigDict:
  common["preset_of"](FILE, arg, among=references["PRESETS"])
  c, args = common["ablated"](FILE, arg, ARGS, budget="brief")
  shares = PROMPTS if args["use"] == "all" else {args["use"]: sum(PROMPTS.values())}
  times = sum(c.rollout.prompts.values()) // sum(PROMPTS.values())
  group = c.grpo.group_size = int(args["group"])
  c.rollout.prompts = {name: n * times * 8 // group for name, n in shares.items()}
  c.reward.novelty = "archive"
  c.models.sibling = ""  # Nothing is repaired that it could be compared with.
  return c


def sweep(add: Callable[..., None], arg: str) -> None:
  add("control")
  for use in PROMPTS:
    add(f"{use}-only", f"use={use}")
  kinds: list[tuple[tuple, dict]] = []
  references["sweep"](lambda *cell, **changes: kinds.append((cell, changes)), arg)
  for cell, changes in kinds[1:]:  # The first one is the control.
    add(*cell, **changes)
  add("plain", **{"reward.novelty": "off"})  # The paper's: 1 for a find, 0 for anything else.
  add("answerability", **{"reward.answerability": 0.5})
  add("repetition", **{"reward.repetition": 0.2})
  add("group-4", "group=4")
  add("group-16", "group=16")
  add("last-auditor", **{"checkpoints.harvest": ()})
