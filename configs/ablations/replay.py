# SPDX-License-Identifier: Apache-2.0
"""Replay: how much of each batch of the repair is the target's own old answers.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/replay.py --workdir=runs/replay \\
    --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py; runs repair by default. A batch has as many examples in any
case, so that more replay is fewer passes over the failures. Look at the accuracy on the rest.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"]("configs/ablations/replay.py", arg, repair=True)[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  add("replay-50", **{"rectify.recipe.replay": 0.5})
  add("replay-0", **{"rectify.recipe.replay": 0.0})
  add("replay-25", **{"rectify.recipe.replay": 0.25})
  add("replay-75", **{"rectify.recipe.replay": 0.75})
