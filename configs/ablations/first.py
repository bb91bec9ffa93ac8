# SPDX-License-Identifier: Apache-2.0
"""A first sweep: the paper's reward against one with novelty, in a few minutes of one core.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/first.py --workdir=runs/first --seeds=0,1

ARGS: see configs/ablations/common.py; the budget is tiny by default, and probes are questions. So
few steps of two runs show how a sweep works and nothing about rewards. configs/ablations/reward.py
asks the same in earnest.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]


def get_config(arg: str = "") -> ConfigDict:
  c, _ = common["ablated"]("configs/ablations/first.py", arg, budget="tiny")
  # What takes a newcomer's time: three more kinds of probes to compile, and one more model.
  c.rollout.prompts = {"question": sum(c.rollout.prompts.values())}
  c.models.sibling = ""
  return c


def sweep(add: Callable[..., None], arg: str) -> None:
  add("plain", **{"reward.novelty": "off"})
  add("novelty", **{"reward.novelty": "archive"})
