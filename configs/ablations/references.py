# SPDX-License-Identifier: Apache-2.0
"""References: how many, and of which family.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/references.py --workdir=runs/references \\
    --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py.

One reference always agrees with itself, so that every answer of it is a consensus. In scenes the
third one is the sibling, which is right about 87 % of the questions and the others about 99.5 %.
Each query costs as many answers as there are references, and the target's: the table says so.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
FILE = "configs/ablations/references.py"
WEIGHTS = "data/scenes/weights"
PRESETS = ("scenes", "paligemma2", "gemma3")
PALIGEMMA = "models/paligemma2-10b-mix-448"
GEMMA, SMALL_GEMMA = "models/gemma-3-12b-it", "models/gemma-3-4b-it"


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"](FILE, arg)[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  def use(name: str, *folders: str, **more: object) -> None:
    add(name, **{"models.references": folders}, **more)

  preset = common["preset_of"](FILE, arg, among=PRESETS)
  if preset == "scenes":
    paligemma, gemma = f"{WEIGHTS}/ref_paligemma2", f"{WEIGHTS}/ref_gemma3"
    add("two")
    use("one-paligemma2", paligemma)
    use("one-gemma3", gemma)
    use("three-one-weak", paligemma, gemma, f"{WEIGHTS}/sibling", **{"models.sibling": ""})
  elif preset == "paligemma2":
    add("three")
    use("two-families", PALIGEMMA, GEMMA)
    use("two-gemma3", SMALL_GEMMA, GEMMA)
    use("one-paligemma2", PALIGEMMA)  # Of the target's own family: they may err alike.
    use("one-gemma3", GEMMA)
    add("four", "references=28b")
  else:
    add("two")
    use("one-paligemma2", PALIGEMMA)
    use("one-gemma3", GEMMA)
    add("three", "references=27b")
