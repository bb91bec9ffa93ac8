# SPDX-License-Identifier: Apache-2.0
"""The scenes world with models that talk: with their style it is the same world."""

import pathlib
import runpy

import numpy as np
import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.judge import Judge, JudgeConfig
from auditdm_jax.scenes import questions, render, talk, world
from auditdm_jax.stages.talking import Talking
from auditdm_jax.text import styles
from auditdm_jax.text.styles import RawReply
from auditdm_jax.vlm import load_vlm

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "data/scenes/weights"
VOICE = talk.Voice(sentences=0.6, letters=0.3)
BANK = BankConfig(max_new_tokens=3, abstentions=("unanswerable",))


def probes(scenes, each):
  rng = np.random.default_rng(3)
  images, texts, answers = [], [], []
  for seed in range(scenes):
    scene = world.sample_scene(rng)
    image = render.render(scene, seed)
    for _ in range(each):
      question, answer, _ = questions.sample_question(rng, scene)
      images, texts, answers = [*images, image], [*texts, question], [*answers, answer]
  return images, texts, answers


class Knowing:
  """A model that knows the world, but for one colour."""

  takes, style, config, tokenizer, tower_id = "features", styles.PLAIN, None, None, "tower"

  def __init__(self, name, known, blind=""):
    self.name, self._known, self._blind = name, known, blind

  def encode(self, images):
    return np.zeros((len(images), 1, 1), np.float32)

  def reply_features(self, features, prompts, *, max_new_tokens, which):
    answers = [self._known[p] for p in prompts]
    return [RawReply("white" if a == self._blind else a, "stop") for a in answers]


def outcomes(models, images, texts):
  bank = ModelBank(models, "t", [n for n in models if n != "t"], config=BANK)
  return [(v.agree, v.disagreement, v.reason) for v in bank.verdicts(images, texts)], bank


def talking(models, style):
  return {name: Talking(model, VOICE, style) for name, model in models.items()}


def test_talking_changes_no_verdict_if_the_style_says_so():
  images, texts, answers = probes(60, 4)
  known = dict(zip(texts, answers))  # The same question has one answer here, whatever the image.
  models = {"t": Knowing("t", known, "red"), "a": Knowing("a", known), "b": Knowing("b", known)}
  silent, _ = outcomes(models, images, texts)
  styled, bank = outcomes(talking(models, styles.BARE), images, texts)
  raw, _ = outcomes(talking(models, styles.PLAIN), images, texts)
  assert styled == silent and any(find for _, find, _ in silent)
  assert sum(agree for agree, _, _ in raw) < 0.6 * sum(agree for agree, _, _ in silent)
  assert set(bank.kinds["a"]) == {"answer", "abstention"}


def test_the_judge_of_the_talking_world_knows_its_synonyms():
  config = runpy.run_path(str(ROOT / "configs/scenes.py"))["get_config"]("talk=all")
  judge = Judge(JudgeConfig(synonyms=str(ROOT / config.judge.synonyms)))
  words = sorted({*talk.SYNONYMS, *talk.SYNONYMS.values()})
  for a in words:
    rows = [{word, other} for word, other in talk.SYNONYMS.items() if a in (word, other)]
    assert {b for b in words if judge.same(a, b)} == set().union(*rows)


@pytest.mark.slow
def test_the_shipped_models_may_talk():
  images, texts, _ = probes(100, 3)
  names = {"t": "target_easy", "a": "ref_paligemma2", "b": "ref_gemma3"}
  models = {name: load_vlm(WEIGHTS / folder) for name, folder in names.items()}
  silent, _ = outcomes(models, images, texts)
  styled, _ = outcomes(talking(models, styles.BARE), images, texts)
  assert styled == silent and any(find for _, find, _ in silent)
