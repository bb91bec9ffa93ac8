# SPDX-License-Identifier: Apache-2.0
"""A config's numbers are checked when it is read: one line that names the key and what is right."""

import importlib
import math

import pytest

from auditdm_jax.core.config import UserError, build
from auditdm_jax.stages import sections

NAN, INF = math.nan, math.inf
WRONG = {
  "seed": (-1, 2**32),
  "rollout.seed": (-1, 2**32),
  "optim.steps": (-3,),
  "optim.lr": (0.0, -1e-3, NAN, INF),
  "optim.final_lr": (-1e-3, NAN, INF),
  "optim.warmup": (-0.1, 1.5, NAN),
  "optim.b1": (-0.1, 1.0, NAN),
  "optim.b2": (1.0, NAN),
  "optim.eps": (0.0, NAN),
  "optim.weight_decay": (-0.1, NAN),
  "optim.clip_norm": (0.0, -1.0, NAN),
  "optim.micro_rows": (-8,),
  "optim.head_chunk": (-1,),
  "optim.frozen": ("(",),
  "checkpoints.checkpoint_every": (0, -1),
  "checkpoints.keep": (0,),
  "checkpoints.harvest": ((10, 0),),
  "checkpoints.peak_tflops": (-1.0, NAN),
  "grpo.std_eps": (-1.0, NAN),
  "grpo.dual_clip": (NAN, INF, 0.5),
  "grpo.tis_cap": (-1.0, NAN),
  "grpo.kl_coef": (-0.1, NAN, INF),
  "grpo.entropy_coef": (-0.1, NAN),
  "grpo.clip_low": (NAN, 1.0),
  "grpo.clip_high": (NAN, -0.1, INF),
  "grpo.temperature": (0.0, NAN, INF),
  "reward.novelty_power": (-1.0, NAN),
  "reward.repetition": (-1.0, NAN),
  "reward.length": (-1.0, INF),
  "reward.length_limit": (0,),
  "reward.answerability": (NAN,),
  "rollout.max_new_tokens.question": (0, -1),
  "rollout.max_chars": (0,),
  "rollout.surrogate.prompts": (0, -1),
  "rollout.surrogate.near": (0.0, -1.0, NAN),
  "rollout.max_invalid": (NAN,),
  "rollout.deadline_s": (0.0, NAN),
  "bank.max_new_tokens": (0,),
  "bank.batch_size": (0,),
  "bank.feature_bytes": (0,),
  "bank.agree": (0.5, 1.01, NAN),
  "discover.proposals": (-1,),
  "discover.ranking.per_image": (0,),
  "discover.ranking.likely": (-0.1, 1.1, NAN),
  "discover.ranking.unsure": (1.1, NAN),
  "discover.ranking.lot": (-0.1, NAN),
  "discover.ranking.new": (-0.1, 1.1, NAN),
  "rectify.recipe.lr": (0.0, NAN, INF),
  "rectify.recipe.batch_size": (0, -64),
  "rectify.recipe.epochs": (-1.0, NAN, INF),
  "rectify.recipe.warmup": (-0.1, 2.0, NAN),
  "rectify.recipe.clip": (0.0, NAN),
  "rectify.recipe.wd": (-1.0, NAN),
  "rectify.recipe.label_smoothing": (1.0, -0.1, NAN),
  "rectify.recipe.llm_dropout": (1.0, NAN),
  "rectify.recipe.micro_rows": (-8,),
  "rectify.recipe.replay": (NAN,),
  "rectify.length": (0,),
  "rounds.count": (0, -1),
  "rounds.steps": (-1,),
  "rounds.probes": (-1,),
  "discover.probes": (-1,),
  "plan.task_tokens": (0,),
}


def config(**changes):
  made = importlib.import_module("configs.scenes").get_config()
  made.plan = {}
  made.discover.ranking = {}
  with made.unlocked():
    for key, value in changes.items():
      section = made
      *path, last = key.split(".")
      for name in path:
        section = section[name]
      section[last] = value
  return made


@pytest.mark.parametrize(
  ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_number_that_is_out_of_range(key, value):
  with pytest.raises(UserError) as error:
    build(sections.AuditConfig, config(**{key: value}), name="config")
  said = str(error.value)
  assert key.split(".")[-1] in said and len(said.splitlines()) == 1
  assert str(value[-1] if isinstance(value, tuple) else value) in said


@pytest.mark.parametrize(
  "changes",
  [
    {"optim.final_lr": 0.0, "optim.warmup": 1.0, "optim.b1": 0.0, "optim.weight_decay": 0.0},
    {"grpo.std_eps": 0.0, "reward.novelty_power": 0.0, "reward.novelty_high": INF},
    {"discover.ranking.unsure": 0.0, "discover.ranking.lot": 1.0, "rectify.recipe.warmup": 0.0},
    {"rounds.steps": 0, "rounds.count": 1},
    {"rounds.steps": 0, "rounds.probes": 1},
  ],
)
def test_what_is_at_the_edge_is_right(changes):
  build(sections.AuditConfig, config(**changes), name="config")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"models.references": ()}, "config.models.references is empty"),
    ({"models.references": ("a", "")}, "config.models.references: a name is empty"),
    ({"models.references": ("a", "a")}, "config.models: a is named twice"),
    ({"rectify.labelled": {"split": "heldout"}}, "repairs are measured on 'heldout'"),
    ({"rectify.unlabelled": {"split": "rounds"}}, "repairs are measured on 'rounds'"),
    ({"discover.ranking.new": 0.2}, "the net does not tell what is unlike"),
    *(
      ({"pool.shares": shares}, "must not be negative, and add up to 1")
      for shares in ((0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (NAN, 0.5, 0.5), (INF, 0.0, 0.0))
    ),
  ],
)
def test_what_cannot_be_audited_is_refused_at_the_start(changes, message):
  with pytest.raises(UserError, match=message):
    build(sections.AuditConfig, config(**changes), name="config")


def test_splits_of_one_name_share():
  pool = build(sections.AuditConfig, config(**{"pool.fresh": "pool"}), name="config").pool
  assert pool.split_shares().of == {"pool": pytest.approx(0.9), "heldout": 0.1}


def test_a_weight_is_of_a_reference():
  with pytest.raises(
    UserError, match="config.bank.weights: no reference 'ref_gemma'.*did you mean"
  ):
    build(sections.AuditConfig, config(**{"bank.weights": (("ref_gemma", 1.0),)}), name="config")
