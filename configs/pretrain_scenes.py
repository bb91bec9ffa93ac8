# SPDX-License-Identifier: Apache-2.0
"""Makes every tiny model of a drawn world: vision tower, targets, references, sibling, auditor.

  python -m auditdm_jax pretrain --config=configs/pretrain_scenes.py --workdir=runs/pretrain
  python -m auditdm_jax pretrain --config=configs/pretrain_scenes.py:only=ref_gemma3 --workdir=…

  python -m auditdm_jax pretrain --config=configs/pretrain_scenes.py:world=needle --workdir=…

ARGS
  world  scenes | needle, a larger one (see configs/needle.py)
  only   one model, after the vision tower and what it starts from
  gaps   makes another target, named "target", with these gaps: seed:N, which draws some that
         nobody tuned to, or in scenes easy, rare or half; seed= is its seed
  made   folder of models that are there: tower and what others start from are taken from it
  steps  the same number of steps for all models, without drill

Each model is trained from scratch, from its own seed, on its own questions and scenes. A target's
gaps are planted by leaving their questions out. In needle it starts from "base", which never heard
any of the names that seeds draw gaps from, and learns the others. About 5 minutes of one core per
5,000 steps, and in needle 19 on a loaded core.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

parse = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))["parse"]
ARGS = {
  "world": ("scenes", "needle"),
  "only": "",
  "gaps": "",
  "seed": 201,
  "made": "",
  "steps": int,
}


def get_config(arg: str = "") -> ConfigDict:
  args = parse("configs/pretrain_scenes.py", arg, ARGS)
  c = ConfigDict()
  c.world = args["world"]
  c.only = args["only"]  # one model's name, else all in order
  c.output = ""  # folder of model folders; "" = <workdir>/models
  c.made = args["made"]

  c.vision = ConfigDict(
    dict(
      model=dict(width=96, depth=2, mlp_dim=192, num_heads=4, patch_size=16, image_size=64),
      seed=11,
      scenes=20_000,
      batch=128,
      steps=2_000,
      lr=2e-3,
    )
  )

  c.mix = dict(scenes=24_000, images=16, per_image=4, lookups=700, searches=1800)
  c.optim = dict(
    lr=2.5e-3,
    muon_lr=1e-2,
    warmup=100,
    decay=0.35,
    b2=0.98,
    weight_decay=0.02,
    clip=1.0,
    micro_rows=8,
  )
  c.heldout = dict(seed=900_001, scenes=1_000, questions=6_000)

  c.checkpoint_every = 500

  pg = dict(
    kind="paligemma", width=96, depth=4, mlp_dim=192, num_heads=4, num_kv_heads=2, head_dim=24
  )
  g3 = dict(kind="gemma3", width=96, depth=4, mlp_dim=192, num_heads=4, num_kv_heads=2, head_dim=24)
  c.models = dict(
    ref_paligemma2=dict(seed=101, gaps="", steps=(6000, 3500), **pg),
    ref_gemma3=dict(seed=103, gaps="", steps=(6000, 3500, 6000), drill=(4000, 4000), **g3),
    target_easy=dict(seed=104, gaps="easy", steps=(5000,), **pg),
    target_rare=dict(seed=102, gaps="rare", steps=(5000,), **pg),
    # A third more parameters, and half of all gaps: what scale and more data would buy.
    sibling=dict(
      seed=105, gaps="half", steps=(4500,), **(pg | dict(width=112, head_dim=28, mlp_dim=224))
    ),
    auditor=dict(
      seed=106,
      gaps="",
      steps=(1500,),
      tasks=dict(ask=0.7, edit=0.18, describe=0.12),
      **(g3 | dict(depth=3)),
    ),
  )
  made = dict(steps=(5_000,))
  if args["world"] == "needle":
    made = _needle(c, pg)
  if args["gaps"]:
    c.models.target = dict(seed=args["seed"], gaps=args["gaps"], **made, **pg)
  if args["steps"] is not None:
    for model in c.models.values():
      model.update(steps=(args["steps"],), drill=())
  return c


def _needle(c: ConfigDict, pg: dict) -> dict:
  """Sets what the larger world takes; returns how a target is made."""
  c.vision.model.image_size = 96
  # With 12,000 scenes digits are .997 right on them and .965 on others. 27 KB of memory a scene.
  c.vision.update(scenes=36_000, steps=4_000)
  c.mix.update(scenes=16_000, lookups=1_500, searches=5_000)
  c.heldout.update(scenes=2_500, questions=30_000)
  long = dict(steps=(16_000,), drill=(6_000,))
  # On scenes of its own, with fewer objects too: so are those that an auditor may have made.
  polish = dict(rate=0.3, steps=(), least=1)
  target = dict(start="base", drill=(3_000,), **polish)
  auditor = c.models.auditor.to_dict()
  c.models = dict(
    base=dict(seed=102, gaps="reserve", **long, **pg),
    early_paligemma2=dict(seed=101, gaps="", **long, **pg),
    early_other=dict(seed=103, gaps="", **long, **pg),
    ref_paligemma2=dict(
      seed=111, gaps="", start="early_paligemma2", drill=(5_000,), **polish, **pg
    ),
    ref_other=dict(seed=113, gaps="", start="early_other", drill=(5_000,), **polish, **pg),
    # Of the targets' own kin, who knows all names: where base errs, it errs as they do.
    ref_base=dict(seed=115, gaps="", start="base", drill=(5_000,), **polish, **pg),
    target=dict(seed=104, gaps="seed:0", **target, **pg),
    auditor=auditor | dict(steps=(3_000,)),
  )
  return target
