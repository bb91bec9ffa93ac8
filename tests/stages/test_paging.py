# SPDX-License-Identifier: Apache-2.0
"""Models that take turns on the devices."""

import dataclasses

import jax
import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.stages.paging import Paged, Turns
from tests.rl import tiny

QUESTIONS = ["what color is the circle ?", "is it red ?", "what is it ?"]
IMAGES = [np.full((16, 16, 3), 80 * i, np.uint8) for i in range(3)]


def models():
  return {n: dataclasses.replace(tiny.auditor(seed), name=n) for seed, n in enumerate("tab")}


def on_devices():
  """Bytes of parameters that are on a device."""
  return sum(x.nbytes for x in jax.live_arrays())


def test_paged_models_answer_as_resident_ones_and_one_is_there_at_a_time():
  resident = ModelBank(models(), "t", ["a", "b"]).answers(IMAGES, QUESTIONS)
  turns, waiting = Turns(), models()
  size = sum(x.nbytes for x in jax.tree.leaves(waiting["t"].params))
  before, seen = on_devices(), []

  class Watched(Paged):
    def reply_features(self, *args, **options):
      answers = super().reply_features(*args, **options)
      seen.append(on_devices() - before)
      return answers

  paged = {name: Watched(vlm, turns) for name, vlm in waiting.items()}
  assert ModelBank(paged, "t", ["a", "b"]).answers(IMAGES, QUESTIONS) == resident
  assert len(seen) == 3 and all(size <= now < 2 * size for now in seen)
