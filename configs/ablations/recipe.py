# SPDX-License-Identifier: Apache-2.0
"""The repair's recipe: which parts of the target learn.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/recipe.py --workdir=runs/recipe \\
    --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py; runs repair by default. The preset's recipe trains all of
PaliGemma 2, as its transfers do, and leaves the tower of Gemma 3 and of scenes alone.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
TOWER, IMAGE_PART = "img/(?!head/).*", "img/.*"


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"]("configs/ablations/recipe.py", arg, repair=True)[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  key = "rectify.recipe.parts"
  add("recipe")
  add("everything", **{key: ((".*", 1.0),)})
  add("tower-frozen", **{key: ((TOWER, None), (".*", 1.0))})
  add("tower-slow", **{key: ((TOWER, 0.1), (".*", 1.0))})
  add("decoder-alone", **{key: ((IMAGE_PART, None), (".*", 1.0))})
