# SPDX-License-Identifier: Apache-2.0
"""The paper's second half: a Gemma 3 auditor of 4B against Gemma 3 4B itself, or against the 12B.

COMMAND
  python -m auditdm_jax plan --config=configs/gemma3.py:on=v5e-16 --topology=v5e:4x4
  python -m auditdm_jax train --config=configs/gemma3.py:on=v5e-16 --workdir=runs/gemma3

ARGS, as configs/gemma3.py:on=v6e-8,references=27b
  target      4b | 12b: the Gemma 3 that is audited and repaired, by the recipe gemma3-4b or -12b
  references  12b: Gemma 3 12B and PaliGemma 2 10B | 27b: and Gemma 3 27B. The 12B is no reference
              of its own: with target=12b they are PaliGemma 2 10B and Gemma 3 27B
  on, prompts, chips: as in configs/paligemma2.py, whose audit this is but for models and repair

The paper repairs this target from images without labels: several auditors ask, the references'
consensus answers. Its images are those of `pool.dataset`; questions of the data set are not needed.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

_HERE = pathlib.Path(__file__)
parse = runpy.run_path(str(_HERE.with_name("common.py")))["parse"]
paligemma2 = runpy.run_path(str(_HERE.with_name("paligemma2.py")))
ARGS = {**paligemma2["COMMON"], "references": ("12b", "27b"), "target": ("4b", "12b")}
_IMAGE_TOKENS = 256


def get_config(arg: str = "") -> ConfigDict:
  file = "configs/gemma3.py"
  args = parse(file, arg, ARGS)
  target = args.pop("target")
  largest = args["references"] == "27b" or target == "12b"
  c = paligemma2["audit"](file, **args)
  c.models.target = f"models/gemma-3-{target}-it"
  c.models.references = ("models/paligemma2-10b-mix-448",)
  if target == "4b":
    c.models.references = ("models/gemma-3-12b-it", *c.models.references)
  if largest:
    c.models.references += ("models/gemma-3-27b-it",)
    c.plan.architectures["models/gemma-3-27b-it"] = "gemma3_27b"
  c.models.int8 = largest
  c.rectify.recipe = dict(name=f"gemma3-{target}")
  # An image is fewer tokens than in PaliGemma 2; the turns' markers and the question follow it.
  c.rectify.length = _IMAGE_TOKENS + 128
  return c
