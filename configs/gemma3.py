# SPDX-License-Identifier: Apache-2.0
"""The paper's second half: a Gemma 3 auditor of 4B against Gemma 3 4B itself.

COMMAND
  python -m auditdm_jax plan --config=configs/gemma3.py:on=v5e-16 --topology=v5e:4x4
  python -m auditdm_jax train --config=configs/gemma3.py:on=v5e-16 --workdir=runs/gemma3

ARGS, as configs/gemma3.py:on=v6e-8,references=27b
  references  12b: Gemma 3 12B and PaliGemma 2 10B | 27b: and Gemma 3 27B
  on, prompts, chips: as in configs/paligemma2.py, whose recipe this is but for models and repair

The paper repairs this target from images without labels: several auditors ask, the references'
consensus answers. Its images are those of `pool.dataset`; questions of the data set are not needed.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

_HERE = pathlib.Path(__file__)
parse = runpy.run_path(str(_HERE.with_name("common.py")))["parse"]
paligemma2 = runpy.run_path(str(_HERE.with_name("paligemma2.py")))
ARGS = {**paligemma2["ARGS"], "references": ("12b", "27b")}
_IMAGE_TOKENS = 256


def get_config(arg: str = "") -> ConfigDict:
  file = "configs/gemma3.py"
  args = parse(file, arg, ARGS)
  largest = args["references"] == "27b"
  c = paligemma2["recipe"](file, **args)
  c.models.target = "models/gemma-3-4b-it"
  c.models.references = ("models/gemma-3-12b-it", "models/paligemma2-10b-mix-448")
  if largest:
    c.models.references += ("models/gemma-3-27b-it",)
    c.plan.architectures["models/gemma-3-27b-it"] = "gemma3_27b"
  c.models.int8 = largest
  # An image is fewer tokens than in PaliGemma 2; the turns' markers and the question follow it.
  c.rectify.length = _IMAGE_TOKENS + 128
  return c
