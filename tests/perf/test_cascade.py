# SPDX-License-Identifier: Apache-2.0
"""What the cascade saves: answers and seconds for the same verdicts, against the full ensemble.

Asks random questions about random scenes, of which the target fails the more, the easier it is to
find failures. The models take the same order in both.

COMMAND
  python -m pytest -s -m perf tests/perf/test_cascade.py
"""

import pathlib
import time

import numpy as np
import pytest

from auditdm_jax import load_vlm
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.scenes.mix import Mix

pytestmark = pytest.mark.perf

WEIGHTS = pathlib.Path(__file__).parents[2] / "data/scenes/weights"
REFERENCES = ("ref_paligemma2", "ref_gemma3")
TURNS = 3


@pytest.mark.parametrize("target", ["target_easy", "target_rare"])
def test_cascade_against_the_full_ensemble(target):
  vlms = {name: load_vlm(WEIGHTS / name) for name in (target, *REFERENCES)}
  mix = Mix(seed=0, scenes=512, images=512, per_image=2)
  pixels, drawn = mix.pixels(0, 512), mix.draw(0)
  images = [pixels[i] for i in drawn.image]
  bank = ModelBank(
    vlms,
    target=target,
    references=REFERENCES,
    config=BankConfig(max_new_tokens=3, batch_size=512, abstentions=("unanswerable",)),
  )
  seconds, answers, finds = {False: [], True: []}, {}, {}
  for _ in range(TURNS + 1):  # the first compiles
    for cascade, taken in seconds.items():
      before, begin = bank.computed.total(), time.perf_counter()
      verdicts = bank.verdicts(images, drawn.texts, cascade=cascade)
      taken.append(time.perf_counter() - begin)
      answers[cascade] = bank.computed.total() - before
      finds[cascade] = [v.disagreement for v in verdicts]
  assert finds[True] == finds[False]
  full, cascade = (float(np.median(seconds[kind][1:])) for kind in (False, True))
  print(
    f"\n{target}: {len(images)} questions, {sum(finds[True])} finds; full {answers[False]} answers"
    f" in {full:.2f} s, cascade {answers[True]} in {cascade:.2f} s: x {full / cascade:.2f}"
  )
  assert answers[True] < answers[False]
