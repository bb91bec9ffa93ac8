# SPDX-License-Identifier: Apache-2.0
"""Models as benchmarks ask them: folders, whose images are encoded once, and endpoints."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.bench.items import StoredPicture
from auditdm_jax.bench.predict import Asking, BenchReply
from auditdm_jax.bench.predictions import Finish, ModelId
from auditdm_jax.bench.specs import PromptSpec
from auditdm_jax.core import pictures, runtime
from auditdm_jax.stages.remote import Remote
from auditdm_jax.text.styles import Said
from auditdm_jax.vlm import Vlm

_PICTURES_OF_ENDPOINT = 64  # Decoded at a time.
_SHARE = 4  # Of the bytes of features, a chunk takes one in so many.
_MAX_DETAIL = 300


class FolderModel:
  """A folder's model."""

  def __init__(
    self, vlm: Vlm, model: ModelId, cache: FeatureCache, *, prompt: PromptSpec, feature_bytes: int
  ):
    """Takes a model, as the prompt wants its images made.

    Args:
      vlm: loaded.
      model: what records call it.
      cache: features of images, which models of one tower share.
      prompt: whether images are antialiased when they are made smaller, where its origin has both
        ways.
      feature_bytes: of the cache.
    """
    if prompt.antialias is not None and vlm.pixels.origin == "big_vision":
      pixels = dataclasses.replace(vlm.pixels, antialias=prompt.antialias)
      vlm = dataclasses.replace(vlm, pixels=pixels) if pixels != vlm.pixels else vlm
    self.model, self._vlm, self._cache = model, vlm, cache
    vision = vlm.config.vision
    one = 4 * vision.num_patches * vision.width if vision else 1
    self.pictures = max(1, feature_bytes // _SHARE // one)

  def reply(self, asked: Sequence[Asking], *, max_tokens: int) -> list[BenchReply]:
    """See `bench.predict.Respondent`."""
    shown = {name: x for a in asked for name, x in zip(a.images, a.pictures, strict=True)}
    place = {name: k for k, name in enumerate(shown)}
    features = None
    if shown:
      features = self._cache.features(self._vlm, list(shown), lambda name: decoded(shown[name]))
    replies = self._vlm.reply_features(
      features,
      [a.prompt for a in asked],
      which=[[place[name] for name in a.images] for a in asked],
      max_new_tokens=max_tokens,
    )
    return [bench_reply(r) for r in replies]


class AtEndpoint:
  """A model behind an endpoint; of several processes each asks for its share."""

  pictures = _PICTURES_OF_ENDPOINT

  def __init__(self, remote: Remote):
    """Takes an endpoint; it is proven to see before it is asked."""
    self._remote = remote
    self.model = ModelId(name=remote.name, identity=remote.identity)

  def reply(self, asked: Sequence[Asking], *, max_tokens: int) -> list[BenchReply]:
    """See `bench.predict.Respondent`; a question about several pictures is not put."""
    rows = [i for i, a in enumerate(asked) if len(a.pictures) == 1]
    mine = runtime.mine(rows)
    # All at once: an endpoint tells pictures apart by the objects that they are.
    images: dict[str, np.ndarray] = {}
    for i in mine:
      if asked[i].images[0] not in images:
        images[asked[i].images[0]] = decoded(asked[i].pictures[0])
    said = self._remote.answer(
      [images[asked[i].images[0]] for i in mine],
      [asked[i].prompt for i in mine],
      max_new_tokens=max_tokens,
    )
    shares = runtime.gather([dataclasses.astuple(bench_reply(r)) for r in said])
    found = {i: BenchReply(*shares[k % len(shares)][k // len(shares)]) for k, i in enumerate(rows)}
    several = BenchReply("", "failed", "an endpoint is asked about one picture at a time")
    return [found.get(i, several) for i in range(len(asked))]


def bench_reply(reply: Said) -> BenchReply:
  """Returns a reply as predictions keep it."""
  if reply.text is not None:
    return BenchReply(reply.text, "length" if reply.finish == "length" else "eos")
  refused = reply.finish in ("refusal", "filter", "length")
  finish: Finish = "refused" if refused else "failed"
  return BenchReply("", finish, str(reply.failure or reply.finish or "")[:_MAX_DETAIL])


def decoded(picture: StoredPicture) -> np.ndarray:
  """Returns u8[H,W,3].

  Raises:
    UserError: the picture cannot be read.
  """
  stored = picture.stored()
  return stored if isinstance(stored, np.ndarray) else pictures.read(stored, name=picture.name)
