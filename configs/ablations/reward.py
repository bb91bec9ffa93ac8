# SPDX-License-Identifier: Apache-2.0
"""Reward terms: what novelty, answerability and penalties add to the paper's binary signal.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/reward.py --workdir=runs/reward \\
    --seeds=0,1,2,3,4
  python -m auditdm_jax sweep --config=configs/ablations/reward.py:preset=paligemma2,on=v5e-16 \\
    --workdir=gs://BUCKET/reward --seeds=0,1,2 --print=tpu --launch="--zone=us-west4-a"

ARGS: see configs/ablations/common.py.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]


def get_config(arg: str = "") -> ConfigDict:
  c, _ = common["ablated"]("configs/ablations/reward.py", arg)
  c.reward = dict(novelty="off")
  return c


def sweep(add: Callable[..., None], arg: str) -> None:
  add("plain")  # The paper's: 1 for a find, 0 for anything else.
  add("novelty", **{"reward.novelty": "archive", "reward.novelty_power": 0.4})
  add("novelty-ema", **{"reward.novelty": "ema", "reward.novelty_power": 0.4})
  add("novelty-text", **{"reward.novelty": "text"})
  add("answerability", **{"reward.answerability": 0.5})
  add("repetition", **{"reward.repetition": 0.2})
