# SPDX-License-Identifier: Apache-2.0
"""Models that take turns on the devices, for an ensemble that they do not hold at once.

Those that wait are in the host's memory. The bank asks all probes of a step model by model, so a
step moves each model once.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from auditdm_jax.core import runtime
from auditdm_jax.models import sharding
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.text.styles import RawReply, Style
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm


class Turns:
  """Whose turn it is."""

  def __init__(self):
    self._name, self._vlm = "", None

  def take(self, waiting: Vlm) -> Vlm:
    """Returns a model with its parameters on the devices; the one before leaves them."""
    if self._vlm is None or self._name != waiting.name:
      self._vlm = None  # First, or both would be there.
      mesh, params = waiting.mesh, waiting.params
      if mesh is None:
        params = jax.device_put(params)
      else:
        params = runtime.place(params, sharding.shardings(mesh, params))
      self._name, self._vlm = waiting.name, waiting.with_params(params)
    return self._vlm


class Paged:
  """A model that a bank asks, as a `Vlm`."""

  takes: ClassVar[Literal["features"]] = "features"

  def __init__(self, vlm: Vlm, turns: Turns):
    """Takes a model whose parameters are on the host."""
    self._waiting = vlm
    self._turns = turns

  @property
  def name(self) -> str:
    return self._waiting.name

  @property
  def style(self) -> Style:
    return self._waiting.style

  @property
  def config(self) -> VlmConfig:
    return self._waiting.config

  @property
  def tokenizer(self) -> Tokenizer | None:
    return self._waiting.tokenizer

  @property
  def tower_id(self) -> str:
    return self._waiting.tower_id

  def encode(self, images: Sequence[Any]) -> np.ndarray:
    return self._turns.take(self._waiting).encode(images)

  def reply_features(
    self,
    features: np.ndarray,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    which: Sequence[Sequence[int]],
  ) -> list[RawReply]:
    vlm = self._turns.take(self._waiting)
    return vlm.reply_features(features, prompts, max_new_tokens=max_new_tokens, which=which)

  def is_finite(self, features: np.ndarray, prompt: str) -> bool:
    return self._turns.take(self._waiting).is_finite(features, prompt)

  def answer(self, images: Sequence[Any], prompts: Sequence[str], **options: Any) -> list[str]:
    """See `Vlm.answer`."""
    return self._turns.take(self._waiting).answer(images, prompts, **options)
