# SPDX-License-Identifier: Apache-2.0
"""Targets: 448 and 224 pixels, PaliGemma 2 and Gemma 3; in scenes easy and rare gaps.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/targets.py:preset=paligemma2,on=v5e-16 \\
    --workdir=gs://BUCKET/targets --seeds=0,1,2 --print=tpu --launch="--zone=us-west4-a"
  python -m auditdm_jax sweep --config=configs/ablations/targets.py:preset=gemma3,on=v5e-64 …

ARGS: see configs/ablations/common.py; runs repair by default, as in the paper.

A preset is one audit, with references and prompts that fit its family: PaliGemma 2 and Gemma 3 are
two sweeps. Targets are no settings of one thing: a difference between them is theirs.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
FILE = "configs/ablations/targets.py"
CELLS = {
  "scenes": {"easy": "target=easy", "rare": "target=rare"},
  "paligemma2": {"448-px": "pixels=448", "224-px": "pixels=224"},
  "gemma3": {"4b": "target=4b", "12b": "target=12b"},
}


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"](FILE, arg, repair=True)[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  for name, args in CELLS[common["preset_of"](FILE, arg, among=tuple(CELLS))].items():
    add(name, args)
