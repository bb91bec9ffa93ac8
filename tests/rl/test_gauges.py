# SPDX-License-Identifier: Apache-2.0
"""Gauges of reward hacking, with models that look and models that guess."""

import numpy as np
import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import gauges
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.text.styles import PLAIN, RawReply
from tests.rl import fakes, tiny


class Model:
  """Answers `rule(question, grey level)`."""

  style, takes = PLAIN, "features"

  def __init__(self, rule):
    self.rule, self.tower_id = rule, "tower"

  def encode(self, images):
    return np.array([[[float(i.mean())]] for i in images], np.float32)

  def reply_features(self, features, prompts, *, max_new_tokens, which):
    seen = [features[i] for (i,) in which]
    return [RawReply(self.rule(q, round(float(f[0, 0]))), "stop") for q, f in zip(prompts, seen)]


IMAGES = {"dark": np.full((8, 8, 3), 10, np.uint8), "light": np.full((8, 8, 3), 200, np.uint8)}


def looks(question, grey):
  return "guess" if question == "riddle" else ("red" if grey < 127 else "blue")


def target(question, grey):
  return "wrong" if question == "riddle" or grey != 127 else looks(question, grey)


@pytest.fixture
def bank():
  models = {"t": Model(target), "a": Model(looks), "b": Model(looks)}
  return ModelBank(models, "t", ("a", "b"))


def finds(bank, probes):
  ids = [image for image, _ in probes]
  verdicts = bank.verdicts(IMAGES.__getitem__, [q for _, q in probes], image_ids=ids)
  assert all(v.disagreement for v in verdicts)
  return [
    Trajectory(("train",), i, 0, "question", image, image_id=image, question=q, verdict=v)
    for i, ((image, q), v) in enumerate(zip(probes, verdicts))
  ]


def test_questions_that_are_finds_without_looking_are_seen(bank):
  found = finds(bank, [("dark", "color"), ("light", "color"), ("dark", "riddle")])
  out = gauges.measure(bank, found, load=IMAGES.__getitem__, heldout=None)
  assert out == {"gauge/finds": 3, "gauge/blank": pytest.approx(1 / 3)}


def test_a_model_outside_the_ensemble_takes_a_side(bank):
  found = finds(bank, [("dark", "color"), ("light", "color"), ("dark", "riddle")])
  outsider = Model(lambda question, grey: "red")
  out = gauges.measure(bank, found, load=IMAGES.__getitem__, heldout=outsider)
  assert out["gauge/heldout"] == pytest.approx(1 / 3)


def test_without_finds_there_is_nothing_to_say(bank):
  assert gauges.measure(bank, [], load=IMAGES.__getitem__, heldout=None) == {}


def test_they_look_every_so_often_and_change_no_reward(monkeypatch):
  calls = []
  measure = lambda bank, finds, **kw: calls.append(len(finds)) or {"gauge/blank": 0.5}  # noqa: E731
  monkeypatch.setattr(gauges, "measure", measure)
  config = gauges.GaugeConfig(every=2, sample=3)
  watched, plain = fakes.rollout({"question": 3}, gauges=config), fakes.rollout({"question": 3})
  params = tiny.auditor().params
  for step in range(3):
    a, b = watched.step(params, step), plain.step(params, step)
    assert a.records == b.records
    assert ("gauge/blank" in a.metrics) == (step % 2 == 0)
    assert "gauge/blank" not in b.metrics
  assert len(calls) == 2 and max(calls) <= 3


def test_settings_that_cannot_be_meant_are_refused():
  with pytest.raises(UserError, match="never asked"):
    gauges.GaugeConfig(heldout="somewhere")
