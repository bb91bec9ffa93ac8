# SPDX-License-Identifier: Apache-2.0
"""A folder's model answers about one, several or no pictures, each encoded once."""

import dataclasses

import numpy as np
import pytest

from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.bench.predict import Asking
from auditdm_jax.bench.predictions import ModelId
from auditdm_jax.bench.specs import MetricName, PromptSpec
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.stages.respondents import FolderModel, bench_reply
from auditdm_jax.text.styles import RawReply
from tests import tiny_vlm

ID = ModelId(name="tiny", identity="x")
PROMPT = PromptSpec(
  template="{question}", metric=MetricName(name="x", variant="y"), max_tokens=4, source="ours"
)


@dataclasses.dataclass(frozen=True)
class _Picture:
  name: str
  looks: list

  def stored(self):
    self.looks.append(self.name)
    return np.random.default_rng(ord(self.name)).integers(0, 256, (8, 8, 3), np.uint8)


def _model(vlm, prompt=PROMPT):
  return FolderModel(vlm, ID, FeatureCache(1 << 20), prompt=prompt, feature_bytes=1 << 20)


def test_one_several_and_no_pictures_as_answer_has_them():
  vlm, looks = tiny_vlm.make("gemma3"), []
  shown = {name: _Picture(name, looks) for name in "abc"}
  asked = [("where is the cup", "a"), ("what is red", "ab"), ("a b c", ""), ("the dish ?", "b")]
  replies = _model(vlm).reply(
    [
      Asking(image=names, pictures=tuple(shown[n] for n in names), images=tuple(names), prompt=text)
      for text, names in asked
    ],
    max_tokens=4,
  )
  assert sorted(looks) == ["a", "b"], "each picture is decoded once"
  images = [[shown[n].stored() for n in names] or None for _, names in asked]
  alone = vlm.answer(images, [text for text, _ in asked], max_new_tokens=4)
  assert [r.text for r in replies] == alone
  assert {r.finish for r in replies} <= {"eos", "length"}


@pytest.mark.parametrize(("antialias", "pixels"), [(True, True), (False, False), (None, True)])
def test_the_prompt_says_whether_big_vision_antialiases(antialias, pixels):
  vlm = tiny_vlm.make("paligemma")
  vlm = dataclasses.replace(vlm, pixels=Pixels("big_vision", antialias=True))
  prompt = dataclasses.replace(PROMPT, antialias=antialias)
  assert _model(vlm, prompt)._vlm.pixels.antialias is pixels
  native = dataclasses.replace(vlm, pixels=Pixels())
  assert _model(native, prompt)._vlm.pixels == Pixels(), "others have one way"


@pytest.mark.parametrize(
  ("reply", "finish"),
  [
    (RawReply("yes", "stop"), "eos"),
    (RawReply("yes yes", "length"), "length"),
    (RawReply(None, "refusal", "REFUSED"), "refused"),
    (RawReply(None, "failed", "TIMEOUT"), "failed"),
    (RawReply(None, "length", "CUT"), "refused"),
  ],
)
def test_how_replies_end(reply, finish):
  found = bench_reply(reply)
  assert found.finish == finish and found.text == (reply.text or "")
  assert bool(found.detail) == (reply.text is None)
