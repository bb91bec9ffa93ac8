# SPDX-License-Identifier: Apache-2.0
"""The repair by GRPO: its data are those of the repaired target, its model is saved beside it."""

import types

import numpy as np

from auditdm_jax.audit.judge import Judge
from auditdm_jax.core import tree
from auditdm_jax.core.wandb_log import WandbConfig
from auditdm_jax.models import multimodal
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rectify.recipes import Recipe
from auditdm_jax.rl.answering import AnsweringConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.stages import loop, rectify
from auditdm_jax.stages.examples import Chosen
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.sections import REWARDED, RectifyConfig
from auditdm_jax.vlm import load_vlm
from tests.rl import fakes, tiny

RECIPE = Recipe(steps=1, batch_size=4, lr=1.0, replay=0.5)
CONFIG = AnsweringConfig(
  questions=4,
  max_new_tokens=2,
  grpo=GrpoConfig(group_size=4),
  optim=OptimConfig(steps=2, lr=1e-2, warmup=0.0),
)


def test_the_loop_trains_it_on_what_the_repaired_target_learns(monkeypatch):
  chosen = Chosen({"probes": []})
  monkeypatch.setattr(rectify, "to_learn", lambda ctx: chosen)
  monkeypatch.setattr(rectify, "controls", lambda ctx, repaired: {})
  space = types.SimpleNamespace
  for config, names in ((CONFIG, ["repaired", REWARDED]), (AnsweringConfig(), ["repaired"])):
    section = RectifyConfig(recipe=RECIPE, length=9, suffix=3, answering=config)
    arms = loop._arms(space(settings=space(rectify=section), round=space(is_first=True)))
    assert list(arms) == names and all(arm is chosen for arm in arms.values())


def test_the_model_is_saved_beside_the_repaired_one(tmp_path):
  space, target = types.SimpleNamespace, tiny.auditor()
  section = RectifyConfig(
    recipe=RECIPE,
    length=9,
    suffix=3,
    answering=CONFIG,
  )
  cache = space(features=lambda vlm, ids, load: fakes.features(ids))
  ctx = space(
    folder=RunFolder(tmp_path, config_hash="x"),
    images=None,
    judge=Judge(),
    models=space(weights=target, cache=cache, mesh=None, rollout_mesh=None),
    settings=space(
      rectify=section, seed=0, mesh={"data": -1}, rules=((".*", ()),), wandb=WandbConfig()
    ),
  )
  examples = [
    TrainingExample(image_id=f"i{k}", question="what color is the circle ?", label=label)
    for k, label in enumerate(["red", "blue", "circle", "square"])
  ]
  rectify.repair_by_reward(ctx, REWARDED, examples, examples[:2])
  saved = load_vlm(ctx.folder.repaired(REWARDED))
  assert saved.extras["examples"] == 4 and saved.stop_ids == target.stop_ids
  before, after = tree.flatten(target.params), tree.flatten(saved.params)
  tower = {f"img/{path}" for path in tree.flatten(multimodal.tower(target.params))}
  moved = {path for path in before if not np.array_equal(before[path], after[path])}
  assert moved and not moved & tower
  # A run that is started again trains nothing more.
  again = rectify.repair_by_reward(ctx, REWARDED, examples, examples[:2])
  same = tree.flatten(again.params)
  assert all(np.array_equal(same[path], after[path]) for path in after)
