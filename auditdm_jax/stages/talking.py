# SPDX-License-Identifier: Apache-2.0
"""Models of the scenes world that talk, though they were trained to say one word."""

from collections.abc import Sequence
import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.scenes import talk
from auditdm_jax.stages.paging import Paged
from auditdm_jax.text.styles import RawReply, Style
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm


class Talking:
  """A model that a bank asks, as a `Vlm`."""

  takes: ClassVar[Literal["features"]] = "features"

  def __init__(self, vlm: Vlm | Paged, voice: talk.Voice, style: Style):
    """Takes a model of one-word answers; the style is how what it says is read."""
    self._vlm, self._voice, self.style = vlm, voice, style

  @property
  def name(self) -> str:
    return self._vlm.name

  @property
  def config(self) -> VlmConfig:
    return self._vlm.config

  @property
  def tokenizer(self) -> Tokenizer | None:
    return self._vlm.tokenizer

  @property
  def tower_id(self) -> str:
    return self._vlm.tower_id

  def encode(self, images: Sequence[Any]) -> np.ndarray:
    return self._vlm.encode(images)

  def is_finite(self, features: np.ndarray, prompt: str) -> bool:
    return self._vlm.is_finite(features, prompt)

  def reply_features(
    self,
    features: np.ndarray,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    which: Sequence[Sequence[int]],
  ) -> list[RawReply]:
    replies = self._vlm.reply_features(
      features, prompts, max_new_tokens=max_new_tokens, which=which
    )
    return [
      dataclasses.replace(reply, text=talk.say(self._voice, self.name, prompt, reply.text or ""))
      for prompt, reply in zip(prompts, replies, strict=True)
    ]
