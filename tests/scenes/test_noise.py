# SPDX-License-Identifier: Apache-2.0
"""References that err as often, and together as often, as they are told to."""

import numpy as np
import pytest

from auditdm_jax.audit.answer import FeatureCache, ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.core.config import UserError
from auditdm_jax.scenes import noise, questions, world
from auditdm_jax.scenes.noise import Noise, spoil
from auditdm_jax.stages.noisy import Noisy
from auditdm_jax.stages.sections import WorldConfig
from auditdm_jax.text.styles import PLAIN, RawReply


def probes(n):
  rng = np.random.default_rng(0)
  for i in range(n):
    scene = world.sample_scene(rng)
    question, answer, _ = questions.sample_question(rng, scene)
    yield f"image {i}", question, answer


@pytest.mark.parametrize("accuracy,phi", [(0.75, 0.0), (0.9, 0.7), (0.6, 0.3)])
def test_errors_are_as_many_and_as_common_as_asked(accuracy, phi):
  config, n = Noise(accuracy=accuracy, phi=phi), 3000
  asked = list(probes(n))
  said = {m: [spoil(config, m, i, q, a) for i, q, a in asked] for m in "ab"}
  right = [a for *_, a in asked]
  wrong = {m: np.array([x != a for x, a in zip(said[m], right)]) for m in "ab"}
  for m in "ab":
    assert 1 - wrong[m].mean() == pytest.approx(accuracy, abs=0.03)
  assert np.corrcoef(wrong["a"], wrong["b"])[0, 1] == pytest.approx(phi, abs=0.06)
  both = [i for i in range(n) if wrong["a"][i] and wrong["b"][i]]
  alike = np.mean([said["a"][i] == said["b"][i] for i in both])
  # Errors in common are the same; others agree by chance, as those of yes and no always do.
  common = phi * (1 - accuracy) / (phi * (1 - accuracy) + (1 - phi) * (1 - accuracy) ** 2)
  assert common - 0.06 < alike < common + (1 - common) * 0.45 + 0.03
  assert said["a"] == [spoil(config, "a", i, q, a) for i, q, a in asked]
  assert said["a"] != [spoil(Noise(accuracy, phi, seed=1), "a", i, q, a) for i, q, a in asked]


def test_a_wrong_answer_is_one_that_the_question_could_have():
  seen = set()
  for _, question, answer in probes(2000):
    words = noise.plausible(question)
    seen.add(questions.parse_question(question).skill)
    if answer not in (questions.NONE, questions.UNANSWERABLE, "dial", "gauge"):
      assert answer in words, question
  assert seen == set(questions.SKILLS)


def test_lasting_errors_survive_other_pixels_and_another_wording():
  config = Noise(accuracy=0.5, lasting=True)
  for image, question, answer in probes(200):
    other = questions.paraphrase(question)
    assert spoil(config, "a", image, question, answer) == spoil(config, "a", "?", other, answer)


def test_what_cannot_be_is_refused():
  with pytest.raises(UserError, match="world.noise.accuracy=1.5"):
    Noise(accuracy=1.5)
  with pytest.raises(UserError, match="only the models of scenes"):
    WorldConfig(noise=Noise(accuracy=0.9))


class _Knowing:
  """A model that says "red" whatever it sees."""

  name, tower_id, takes, style, tokenizer = "a", "tower", "features", PLAIN, None

  def encode(self, images):
    return np.zeros((len(images), 1, 1), np.float32)

  def reply_features(self, features, prompts, *, max_new_tokens, which):
    return [RawReply("red", "stop") for _ in prompts]


def test_a_bank_hears_the_same_error_again_whatever_else_it_asks():
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(40)]
  question, cache = "what color is the circle", FeatureCache(2**20)
  config = Noise(accuracy=0.5)

  def heard(shown, batch):
    models = {"t": _Knowing(), "a": Noisy(_Knowing(), config, cache)}
    bank = ModelBank(models, "t", ["a"], config=BankConfig(batch_size=batch), cache=cache)
    return bank.answers(shown, [question] * len(shown))["a"]

  said = heard(images, 64)
  assert 8 < said.count("red") < 32 and set(said) <= set(world.COLORS)
  assert heard(images[::-1], 7) == said[::-1]
