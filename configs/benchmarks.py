# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of several models: predict, score and table, three commands with one config.

COMMAND
  for stage in predict score table; do
    python -m auditdm_jax $stage --workdir=runs/bench --config=configs/benchmarks.py:\
baseline=models/paligemma2-3b-mix-448,repaired=runs/audit/rectify/repaired,vqav2=data/vqa,gqa=data/gqa
  done

ARGS
  baseline, repaired, control, larger   folders of models; those that are not given are left out
  vqav2, gqa, okvqa, …   where the data of each lies, in any of its layouts (docs/benchmarks.md)
  run      the folder of a loop in the scenes world: its target, the repaired one, both controls and
           the sibling on the held-out scenes, one benchmark per skill; nothing else need be given
  target   easy | rare: the target of that loop
  limit    most questions of each benchmark, drawn by image; 0 = all
  seed     of that part and of the bootstrap

Everything else is an override. PaliGemma's transfers are one model per task, which a benchmark can
name for itself: --config.benchmarks.vqav2.models.baseline=models/paligemma2-3b-vqav2-448. One of
your own: --config.benchmarks.mine.path=data/mine --config.benchmarks.mine.spec=my_module:MINE
A model behind an endpoint: --config.endpoints.NAME.base_url=… (docs/endpoints.md), baseline=NAME.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

parse = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))["parse"]
WEIGHTS = "data/scenes/weights"
ROLES = ("baseline", "repaired", "control", "larger")
BENCHMARKS = (
  *("vqav2", "gqa", "okvqa", "ai2d", "docvqa", "chartqa", "refcoco", "refcoco-boxes", "cococap"),
  *("mmbench", "mmt", "seedbench", "mme", "mmmu", "mmstar", "realworldqa", "pope"),
)
SKILLS = (
  *("color_at", "shape_at", "size_at", "digit_at", "name_at", "color_of", "shape_of", "size_of"),
  *("digit_of", "row_of", "column_of", "color_of_sized", "shape_of_sized", "color_with"),
  *("shape_with", "extreme_color", "extreme_shape", "size_compare", "count_all", "count_color"),
  *("count_shape", "count_size", "exist", "exist_at", "dial", "gauge", "background"),
)
ARGS = {
  **dict.fromkeys(ROLES, ""), **dict.fromkeys(BENCHMARKS, ""), "run": "",
  "target": ("easy", "rare"), "limit": 0, "seed": 0,
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
  args = parse("configs/benchmarks.py", arg, ARGS)
  c = ConfigDict()
  models = {role: args[role] for role in ROLES if args[role]}
  benchmarks = {name: dict(path=args[name]) for name in BENCHMARKS if args[name]}
  if args["run"]:
    run, target = args["run"], args["target"]
    models = dict(
      baseline=f"{WEIGHTS}/target_{target}",
      **{arm: f"{run}/rectify/{arm}" for arm in ("repaired", "control_random", "control_mined")},
      sibling=f"{WEIGHTS}/sibling",
    )
    names = ("", f"-gaps-{target}", f"-rest-{target}", *(f"-{skill}" for skill in SKILLS))
    data = f"{run}/data/scenes/default/1.1.0"
    benchmarks = {f"scenes{name}": dict(path=data) for name in names}
  # A section that is left out can be given by overrides, key by key.
  if models:
    c.models = models
  if benchmarks:
    c.benchmarks = {name: entry | dict(limit=args["limit"]) for name, entry in benchmarks.items()}
  c.seed = args["seed"]
  c.mesh = dict(data=-1)
  c.logs = ("lmms-eval",)  # What `logs` writes; also inspect, with its library installed.
  return c
