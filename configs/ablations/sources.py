# SPDX-License-Identifier: Apache-2.0
"""What a repair learns from: the audit's failures, labelled data, bootstrapped labels, or all.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/sources.py --workdir=runs/sources \\
    --seeds=0,1,2,3,4

ARGS: see configs/ablations/common.py; runs repair by default. The shares are ours, as the paper
gives none. Bootstrapping asks `rectify.unlabelled.probes` more questions, which the table counts.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]


def get_config(arg: str = "") -> ConfigDict:
  return common["ablated"]("configs/ablations/sources.py", arg, repair=True)[0]


def sweep(add: Callable[..., None], arg: str) -> None:
  key = "rectify.strategy"
  add("audit")
  add("labelled", **{key: {"labelled": 0.5, "probes": 0.5}})  # The paper's first.
  add("bootstrapped", **{key: {"bootstrapped": 1.0, "probes": 0.0}})  # The paper's second.
  add("both", **{key: {"labelled": 0.34, "bootstrapped": 0.33, "probes": 0.33}})
