# SPDX-License-Identifier: Apache-2.0
"""References of the scenes world that err on purpose, see `scenes.noise`."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.core.image_store import Images
from auditdm_jax.scenes import noise
from auditdm_jax.stages.paging import Paged
from auditdm_jax.text.styles import RawReply, Style
from auditdm_jax.vlm import Vlm


class Noisy:
  """A model that a bank asks; it takes images, for errors depend on what is shown."""

  takes: ClassVar[Literal["pixels"]] = "pixels"

  def __init__(self, vlm: Vlm | Paged, config: noise.Noise, cache: FeatureCache):
    """Takes a model of one-word answers, and where features of images are kept."""
    self._vlm, self._config, self._cache = vlm, config, cache

  @property
  def name(self) -> str:
    return self._vlm.name

  @property
  def style(self) -> Style:
    return self._vlm.style

  def answer(
    self, images: Sequence[np.ndarray], prompts: Sequence[str], *, max_new_tokens: int
  ) -> list[RawReply]:
    shown = {Images.id_of(image): image for image in images}
    ids = [Images.id_of(image) for image in images]
    features = self._cache.features(self._vlm, list(shown), shown.__getitem__)
    place = {image: k for k, image in enumerate(shown)}
    replies = self._vlm.reply_features(
      features,
      prompts,
      max_new_tokens=max_new_tokens,
      which=[[place[image]] for image in ids],
    )
    said = [
      noise.spoil(self._config, self.name, image, prompt, reply.text or "")
      for image, prompt, reply in zip(ids, prompts, replies, strict=True)
    ]
    return [
      RawReply(text, reply.finish, logprob=reply.logprob if text == reply.text else None)
      for text, reply in zip(said, replies, strict=True)
    ]
