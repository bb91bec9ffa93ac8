# SPDX-License-Identifier: Apache-2.0
"""Auditors: the last one alone against several checkpoints of its training.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/checkpoints.py \\
    --workdir=runs/checkpoints --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py. The sweep after training has as many probes in any case. The
paper repairs Gemma 3 from the finds of several auditors about unlabelled images: for that give
repair=yes and --config.rectify.strategy="{'bootstrapped': 1.0, 'probes': 0.0}".
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"]("configs/ablations/checkpoints.py", arg)[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  add("several")
  add("last", **{"checkpoints.harvest": (), "rectify.unlabelled.auditors": 1})
