# SPDX-License-Identifier: Apache-2.0
"""The judge: which of its rules decide what a failure is.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/judge.py --workdir=runs/judge \\
    --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py. In scenes the models talk by default: sentences, synonyms,
option letters and refusals, without which no rule has anything to do.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
FILE = "configs/ablations/judge.py"


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"](FILE, arg, talk="all")[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  add("rules")
  add("no-plurals", **{"judge.plurals": False})
  add("no-units", **{"judge.units_optional": False})
  add("tolerance-5", **{"judge.relative_tolerance": 0.05})  # As ChartQA has it.
  if common["preset_of"](FILE, arg) == "scenes":
    add("no-synonyms", **{"judge.synonyms": ""})
  else:
    # Asked where the rules do not say "same"; of no role in the ensemble.
    add("model", **{"judge.model": "models/gemma-3-27b-it"})
