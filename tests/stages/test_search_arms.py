# SPDX-License-Identifier: Apache-2.0
"""The arms of configs/ablations/search.py: equal queries, and each is what it is called."""

import dataclasses

import pytest

from auditdm_jax.core import overrides
from auditdm_jax.core.config import build
from auditdm_jax.rl import reward
from auditdm_jax.stages.cells import plan, read_cells
from auditdm_jax.stages.sections import AuditConfig

CONFIG = "configs/ablations/search.py"
PRESETS = {"scenes": "", "rare": "target=rare", "paligemma2": "preset=paligemma2"}
PRESETS["needle"] = "preset=needle"


AS_PRESET = {"default", "no-images"}


def _settings(arm, *args):
  spec = f"{CONFIG}:" + ",".join(filter(None, (*args, f"arm={arm}")))
  return build(AuditConfig, overrides.read(spec, (), AuditConfig), name="config")


@pytest.fixture(scope="module", params=PRESETS.values(), ids=PRESETS)
def arms(request):
  return {cell.name: _settings(cell.name, request.param) for cell in read_cells(CONFIG)}


def _queries(settings):
  prompts = sum(settings.rollout.counts().values())
  return settings.optim.steps * prompts * settings.grpo.group_size + settings.discover.probes


def test_all_arms_have_equal_queries_and_the_same_models_and_checks(arms):
  assert len({_queries(s) for s in arms.values()}) == 1
  assert len({repr((s.models, s.verify, s.taxonomy, s.bank, s.pool)) for s in arms.values()}) == 1


def test_a_tiny_budget_keeps_them_equal():
  queries = {_queries(_settings(cell.name, "budget=tiny")) for cell in read_cells(CONFIG)}
  assert len(queries) == 1 and queries.pop() == 6 * 128 + 480


def test_in_needle_too_each_seed_may_draw_its_gaps():
  found = plan(f"{CONFIG}:preset=needle,gaps=drawn", (), seeds=(7,), root="/r", only=("random",))
  (run,) = found.runs
  assert run.target.partition("pretrain_scenes.py:")[2] == (
    "world=needle,only=target,gaps=seed:7,seed=7,made=data/scenes/needle"
  )
  spec, given = overrides.given_in(run.args[1:])
  config = overrides.read(spec, given, AuditConfig)
  assert config.world.gaps == "seed:7" and config.models.target == "/r/_targets/7/models/target"


@pytest.mark.parametrize("budget", ["full", "tiny"])
def test_plain_grpo_trains_for_half_of_the_queries_where_the_preset_trains_for_fewer(budget):
  default, grpo = _settings("default"), _settings("grpo")
  assert grpo.optim.steps == default.optim.steps == 150 and grpo.checkpoints == default.checkpoints
  args = f"preset=needle,budget={budget}"
  default, grpo, questioner = (_settings(a, args) for a in ("default", "grpo", "questioner"))
  step = 8 * sum(grpo.rollout.prompts.values())
  assert default.optim.steps * step < 0.2 * _queries(default) < _queries(grpo) == _queries(default)
  assert abs(grpo.optim.steps * step - _queries(grpo) / 2) <= step
  assert questioner.optim.steps == grpo.optim.steps and questioner.checkpoints == grpo.checkpoints
  # Where next to nothing is a find, a training with nothing to learn from stops; these go on.
  assert grpo.stop.least_live == questioner.stop.least_live == 0 < default.stop.least_live


def test_in_needle_only_those_whose_questions_are_picked_have_a_reader():
  read = {}
  for cell in read_cells(CONFIG):
    made = _settings(cell.name, "preset=needle")
    read[cell.name] = made.rollout.surrogate.reader, made.discover.ranking.new
  reads = ("data/scenes/needle/base", 0.25)
  assert {arm for arm, own in read.items() if own == reads} == {*AS_PRESET, "best-of"}
  assert {own for arm, own in read.items() if own != reads} == {("", 0.0)}


def test_who_trains_who_proposes_and_who_picks(arms):
  trains = {name for name, s in arms.items() if s.optim.steps}
  assert trains - AS_PRESET == {"grpo", "questioner"}, "the default does as the preset"
  assert {n for n, s in arms.items() if s.discover.proposals} == {*AS_PRESET, "best-of"}
  sources = {name: s.discover.sources for name, s in arms.items()}
  assert sources["random"] == ("random",) and sources["grpo"] == ("trained",)
  mutate = {name for name, own in sources.items() if "mutated" in own}
  assert mutate - AS_PRESET == {"evolution"}, "the default's sources are the preset's"
  assert {n for n, s in arms.items() if s.discover.shots} == {"few-shot"}
  needle = {n: _settings(n, "preset=needle").discover.drafts for n in arms}
  assert {n for n, drafts in needle.items() if drafts > 1} == {*AS_PRESET, "best-of"}
  assert all(not s.rollout.surrogate.proposals for n, s in arms.items() if n not in AS_PRESET)


@pytest.mark.parametrize("args", ["target=rare", "preset=needle"])
def test_opponents_are_asked_once_and_learn_from_their_own_samples(args):
  made = {cell.name: _settings(cell.name, args) for cell in read_cells(CONFIG)}
  again = {name for name, s in made.items() if s.discover.again}
  assert again == (AS_PRESET if "needle" in args else set())
  older = {name for name, s in made.items() if s.rollout.surrogate.untrained or s.grpo.tis_cap}
  assert older == (AS_PRESET if "rare" in args else set())


def test_without_images_is_the_default_in_all_else(arms):
  prompts = arms["no-images"].rollout.counts()
  assert prompts == {"question": sum(arms["default"].rollout.counts().values())}
  as_default = dataclasses.replace(
    arms["no-images"].rollout, prompts=arms["default"].rollout.prompts
  )
  assert dataclasses.replace(arms["no-images"], rollout=as_default) == arms["default"]


def test_the_rewards(arms):
  def terms(name):
    return {t.name: t.weight for t in reward.terms_of(arms[name].reward) if t.weight}

  assert terms("grpo") == {"disagreement": 1.0} and arms["grpo"].reward.novelty == "off"
  assert terms("questioner") == {"disagreement": 1.0, "validity": 0.2}
  assert arms["questioner"].reward.novelty == "text"
