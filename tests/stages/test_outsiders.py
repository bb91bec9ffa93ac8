# SPDX-License-Identifier: Apache-2.0
"""Who is outside the ensemble, and who words questions otherwise: by config, from a pool."""

import importlib.util
import pathlib
import shutil
import types

import pytest

from auditdm_jax.audit.paraphrase import keeps
from auditdm_jax.core.config import UserError, build
from auditdm_jax.models.weights import content_hash
from auditdm_jax.stages import labelled, outsiders
from auditdm_jax.stages.sections import AuditConfig, LimitedVerifyConfig
from auditdm_jax.stages.wordings import Wordings
from auditdm_jax.stages.worlds import World
from auditdm_jax.vlm import load_vlm

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "data/scenes/weights"
OPENED = types.SimpleNamespace(identity=content_hash)  # Of folders.


def _settings(**verify_config):
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  models = config.models
  models.update(auditor=f"{ROOT}/{models.auditor}", target=f"{ROOT}/{models.target}")
  models.references = tuple(f"{ROOT}/{path}" for path in models.references)
  config.verify.update(verify_config)
  return build(AuditConfig, config, name="config")


@pytest.mark.parametrize(
  ("name", "role"),
  [("ref_gemma3", "reference "), ("target_easy", "target"), ("auditor", "auditor")],
)
def test_a_copy_of_an_audited_model_is_not_outside(tmp_path, name, role):
  shutil.copytree(WEIGHTS / "siglip", tmp_path / "siglip")
  shutil.copytree(WEIGHTS / name, tmp_path / "copy")
  with pytest.raises(UserError, match=rf"verify.model: .*copy is the same model as the {role}"):
    outsiders.check(_settings(model=f"{tmp_path}/copy"), OPENED)
  outsiders.check(_settings(model=f"{tmp_path}/copy", allow_same=True), OPENED)


def test_a_model_of_its_own_is_outside_and_needs_a_name_of_its_own():
  outsiders.check(_settings(model=f"{WEIGHTS}/sibling"), OPENED)
  outsiders.check(_settings(), OPENED)
  with pytest.raises(UserError, match="has the name of the target or of a reference"):
    _settings(model="elsewhere/ref_gemma3", allow_same=True)


class Pool:
  """Two images, the second of which is there twice; one question of the first has ten answers."""

  rows = (
    ("i0", ("What  color is it?", "is it\tred"), (("red",) * 7 + ("pink",) * 3, ())),
    ("i1", ("what is it",), (("a bus",),)),
    ("i1", ("what is it",), (("bus",),)),
  )

  def __len__(self):
    return len(self.rows)

  def image_id(self, i):
    return self.rows[i][0]

  def questions(self, i):
    return self.rows[i][1]

  def answers(self, i):
    return self.rows[i][2]


def test_labels_are_of_the_pools_own_question_about_that_image():
  given = labelled.answers_of(Pool())
  assert given("i0", "what color is it") == ("red",) * 7 + ("pink",) * 3  # Ten stay ten.
  assert given("i0", "Is it red?") == () == given("i0", "what color is that")
  assert given("i1", "what is it") == ("a bus", "bus")
  assert given("made", "what color is it") == ()


class Rewords:
  """A model that puts every question in one other way."""

  def answer(self, images, prompts, *, max_new_tokens):
    asked = [p.split("Question: ")[1].splitlines()[0] for p in prompts]
    return [f"Can you say {question.lower()}" for question in asked]


@pytest.fixture
def loaded():
  """The models that are opened to reword questions."""
  return []


def _context(section, world, loaded):
  models = types.SimpleNamespace(
    config=types.SimpleNamespace(auditor="the/auditor"),
    text_model=lambda spec: loaded.append(spec) or Rewords(),
  )
  settings = types.SimpleNamespace(verify=section, seed=0)
  return types.SimpleNamespace(settings=settings, world=world, models=models)


def test_without_a_grammar_the_auditor_rewords(loaded):
  own = Wordings(_context(LimitedVerifyConfig(), World(), loaded))
  reword = own.of(["What is it?"], 2)
  assert own.exist and loaded == ["the/auditor"]
  assert reword("What is it?", 1) == "Can you say what is it?"
  assert reword("What is it?", 2) is None is reword("What is that?", 1)
  assert own.of(["What is that?"], 1)("What is that?", 1) == "Can you say what is that?"
  assert loaded == ["the/auditor"], "it is opened once"
  Wordings(_context(LimitedVerifyConfig(paraphraser="another"), World(), loaded)).of(["Why?"], 1)
  assert loaded == ["the/auditor", "another"]


def test_nobody_is_loaded_where_nobody_is_needed(loaded):
  world = World(paraphrase=lambda question, k: f"{question} {k}")
  own = Wordings(_context(LimitedVerifyConfig(), world, loaded))
  assert own.exist and own.of(["q"], 2)("q", 2) == "q 2"
  for section in (LimitedVerifyConfig(paraphraser=""), LimitedVerifyConfig(paraphrases=0)):
    nobody = Wordings(_context(section, World(), loaded))
    assert not nobody.exist and nobody.of(["q"], 2) is None
  assert not loaded


def test_the_shipped_auditor_may_be_asked_though_it_knows_three_words():
  context = _context(LimitedVerifyConfig(paraphraser=f"{WEIGHTS}/auditor"), World(), [])
  context.models.text_model = load_vlm
  asked = ["what color is the circle", "Quelle heure?"]
  reword = Wordings(context).of(asked, 2)
  found = {question: reword(question, 1) for question in asked}
  assert all(wording is None or keeps(question, wording) for question, wording in found.items())
