# SPDX-License-Identifier: Apache-2.0
"""Models that talk say the same as those that do not."""

import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.scenes import questions, talk, world
from auditdm_jax.text.short import short_answer

WORDS = {synonym: word for word, synonym in talk.SYNONYMS.items()}


def probes(n):
  rng = np.random.default_rng(0)
  for i in range(n):
    scene = world.sample_scene(rng)
    question, answer, _ = questions.sample_question(rng, scene, absent=0.3)
    yield f"model{i % 3}", question, answer


def read(said, question):
  got = short_answer(said, question=question)
  if got.kind == "abstention":
    return questions.UNANSWERABLE
  return " ".join(WORDS.get(w, w) for w in (got.text or got.kind).split())


def test_the_short_answer_is_what_was_meant():
  voice = talk.Voice(sentences=0.7, synonyms=0.3, letters=0.3)
  told = 0
  for speaker, question, answer in probes(1500):
    said = talk.say(voice, speaker, question, answer)
    assert read(said, question) == answer, (question, said)
    told += said != answer
  assert told > 1000


def test_what_is_said_depends_on_its_names_alone():
  voice = talk.Voice(sentences=0.5, synonyms=0.5)
  first = [talk.say(voice, *probe) for probe in probes(300)]
  assert first == [talk.say(voice, *probe) for probe in probes(300)]
  others = [talk.say(talk.Voice(sentences=0.5, synonyms=0.5, seed=1), *p) for p in probes(300)]
  assert first != others
  silent = talk.Voice()
  assert not silent.talks and all(talk.say(silent, *p) == p[2] for p in probes(50))


def test_refusals_come_in_their_share():
  voice = talk.Voice(refusals=0.2)
  kinds = [short_answer(talk.say(voice, *p), question=p[1]).kind for p in probes(1000)]
  assert 150 < kinds.count("refusal") < 250


def test_shares_are_shares():
  with pytest.raises(UserError, match="world.talk.letters=2"):
    talk.Voice(letters=2.0)
