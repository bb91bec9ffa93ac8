# SPDX-License-Identifier: Apache-2.0
"""AuditDM where random questions find next to nothing: the world needle.

Images are larger, questions take up to three hops, and the target's gaps are 8 to 12 names, each of
three attributes, that it never heard (auditdm_jax/scenes/needle.py).

COMMAND
  python -m auditdm_jax loop --config=configs/needle.py --workdir=runs/needle

ARGS, as configs/needle.py:gaps=3,seed=1
  gaps    seed of the target's gaps: the shipped one has those of 0; pretrain makes any other N,
          which is MODELS/target_N, or what --config.models.target names
  models  folder of the models
  seed, error_rate, rounds, strategy, reward   as in configs/scenes.py

Everything else is an override: --config.optim.steps=60 trains an auditor first.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

HERE = pathlib.Path(__file__).parent
parse = runpy.run_path(str(HERE / "common.py"))["parse"]
SHARED = ("seed", "error_rate", "rounds", "strategy", "reward")
scenes = runpy.run_path(str(HERE / "scenes.py"))
ARGS = {name: scenes["ARGS"][name] for name in SHARED}
ARGS |= {"gaps": 0, "models": "data/scenes/needle"}


def get_config(arg: str = "") -> ConfigDict:
  args = parse("configs/needle.py", arg, ARGS)
  said = ",".join(f"{name}={args[name]}" for name in SHARED)
  c = scenes["get_config"](f"target=rare,{said}")
  models = args["models"]
  c.world.update(name="needle", gaps=f"seed:{args['gaps']}")
  # So that the shipped one is never taken for a target with other gaps than its own.
  target = "target" if args["gaps"] == 0 else f"target_{args['gaps']}"
  c.models = dict(
    auditor=f"{models}/auditor",
    target=f"{models}/{target}",
    references=tuple(f"{models}/ref_{name}" for name in ("paligemma2", "other", "base")),
  )
  c.bank.sure = 0.9  # References err together where they are not sure.
  c.pool.dataset = "scenes/needle/1.1.0"
  c.images.update(backend="needle", width=96, height=96)
  # The longest question has 14 words. Some gaps are shown by edited and generated images only.
  c.rollout.prompts = {"question": 8, "generate": 6, "edit": 2}
  c.rollout.max_new_tokens = dict(question=15, caption=30, instruction=18)
  # The tiny auditor only writes. Base, which never heard the names that gaps are, reads.
  c.rollout.surrogate = dict(proposals=32, random=4, reader=f"{models}/base")
  # A sweep finds more gaps with the queries than GRPO does (docs/search.md): it has them all.
  c.optim.steps, c.checkpoints.harvest = 0, ()
  # Of arms that train: the auditor asks about every image, and writes all proposals.
  c.grpo.update(entropy_coef=0.003, tis_cap=0.0)
  c.discover.update(probes=19_680, proposals=16, drafts=8, ranking=dict(new=0.25, per_kind=0.1))
  c.discover.again = True  # Without it one find in eight was ambiguous or about words.
  c.discover.sources = ("trained", "untrained", "random", "mutated")
  # A question has two wordings, so that there are four trials, of which one may fail.
  c.verify.stable_share = 0.75
  # What a mode is about is on one fresh image in fifty, and next to nothing fails outside modes.
  c.taxonomy = dict(skills="data/scenes/needle_skills.yaml", fresh=dict(asks=12_000, min_n=4))
  c.rectify.length = 56
  # Its facts are many, and soon forgotten.
  c.rectify.recipe.update(batch_size=64, lr=3e-4, label_smoothing=0.0, replay=0.8)
  return c
