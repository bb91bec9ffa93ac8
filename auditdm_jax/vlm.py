# SPDX-License-Identifier: Apache-2.0
"""A vision-language model behind `answer`: weights, tokenizer, preprocessing and decoding.

    vlm = load_vlm("data/models/target")
    vlm.answer([image], ["what color is the circle?"], max_new_tokens=3)  # -> ["red"]

The compiled programs belong to this module and not to a `Vlm`: parameters are an argument of
theirs, so models of one config share them, and fine-tuning a model recompiles nothing.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import decode, multimodal, preprocess, siglip, weights
from auditdm_jax.models.multimodal import Params, VlmConfig
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.text.tokenizer import Tokenizer

_MAX_BATCH = 256  # Rows of one program; more are cut into several calls.
_MIN_BATCH = 8
_LENGTH_MULTIPLE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Vlm:
  """A model that answers questions about images.

  Attributes:
    name: what records and reports call it.
    cfg: its architecture.
    params: its parameters, on the device.
    tokenizer: its tokenizer.
    template: its prompt template, see `text.prompts`.
    stop_ids: the ids that end an answer.
    extras: what else its config.json says, such as how it was trained.
    mesh: the mesh its parameters are replicated on and its batches are split over, or None.
  """

  name: str
  cfg: VlmConfig
  params: Params
  tokenizer: Tokenizer
  template: str
  stop_ids: tuple[int, ...]
  extras: dict[str, Any] = dataclasses.field(default_factory=dict)
  mesh: Mesh | None = None

  @functools.cached_property
  def tower_id(self) -> str:
    """Hash of the tower and its weights: models of one id have the same features."""
    sizes = dataclasses.replace(self._vision(), remat=False, unroll=1)
    digest = hashlib.sha256(repr(sizes).encode())
    for path, leaf in sorted(tree.flatten(multimodal.tower(self.params)).items()):
      array = np.asarray(leaf)
      digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

  def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Returns features f32[N,P,Dv] of u8[H,W,3] images: the tower's output, to be cached."""
    vision, tower = self._vision(), multimodal.tower(self.params)
    out = np.zeros((len(images), vision.num_patches, vision.width), np.float32)
    for rows in np.split(np.arange(len(images)), range(_MAX_BATCH, len(images), _MAX_BATCH)):
      pixels = preprocess.preprocess([images[i] for i in rows], size=vision.image_size)
      if len(rows):
        pixels = self._place(_pad_rows(pixels, _bucket(len(rows))))
        out[rows] = np.asarray(_encode(vision, tower, pixels))[: len(rows)]
    return out

  def answer(
    self,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[str]:
    """Answers prompts[i] about images[i]; an image given several times is encoded once.

    Args:
      images: u8[H,W,3] each, of any sizes.
      prompts: the questions, without the template.
      max_new_tokens: the longest answer, in tokens.
      temperature: 0 is greedy.
      seed: of the sampling; answer i depends on (seed, i) and not on the batch.
    """
    _same_length(images, prompts)
    unique = {id(image): image for image in images}
    order = {key: i for i, key in enumerate(unique)}
    features = self.encode(list(unique.values()))[[order[id(image)] for image in images]]
    return self.answer_features(
      features, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )

  def answer_features(
    self,
    features: np.ndarray | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[str]:
    """As `answer`, for features [N,P,Dv] of `encode` in any float dtype; None for text only."""
    if features is not None:
      _same_length(features, prompts)
    slots = 0 if features is None else self.cfg.num_image_tokens
    ids = [prompts_lib.render(self.tokenizer, self.template, p, slots) for p in prompts]
    # An image slot among the words would be read as part of the image.
    banned = (self.cfg.image_token_id,)
    sc = decode.SampleConfig(max_new_tokens, temperature, self.stop_ids, banned)
    # Long with long: each call is padded to the longest of its rows only.
    order = np.argsort([len(i) for i in ids], kind="stable")
    answers = [""] * len(prompts)
    for rows in np.split(order, range(_MAX_BATCH, len(order), _MAX_BATCH)):
      if len(rows):
        samples = self._sample(sc, features, [ids[i] for i in rows], rows=rows, seed=seed)
        tokens, lengths = np.asarray(samples.tokens)[:, 0], np.asarray(samples.length)[:, 0]
        for k, i in enumerate(rows):
          answers[i] = self.tokenizer.decode(tokens[k, : lengths[k]]).strip()
    return answers

  def logits(
    self,
    pixel_values: Array | np.ndarray | None,
    input_ids: Array | np.ndarray,
    *,
    input_mask: Array | np.ndarray | None = None,
    mask_ar: Array | np.ndarray | None = None,
  ) -> Array:
    """Returns f32[B,T,V] for callers who have tokens.

    Args:
      pixel_values: f32[B,H,W,3] in [-1, 1], or None.
      input_ids: i32[B,T], image slots included, padded on either side.
      input_mask: bool[B,T], False at padding; None is no padding.
      mask_ar: i32[B,T] of `multimodal.make_attn_mask`; None is what the architecture prescribes:
        the whole row as prefix for PaliGemma.
    """
    tokens = jnp.asarray(input_ids, jnp.int32)
    valid = jnp.ones_like(tokens, bool) if input_mask is None else jnp.asarray(input_mask, bool)
    slots = np.sum(np.asarray(input_ids) == self.cfg.image_token_id, axis=1)
    expected = 0 if pixel_values is None else self.cfg.num_image_tokens
    if np.any(slots != expected):
      raise UserError(f"rows have {slots.tolist()} image slots, each should have {expected}")
    features = None
    if pixel_values is not None:
      features = _encode(
        self._vision(), multimodal.tower(self.params), jnp.asarray(pixel_values, jnp.float32)
      )
    return _logits(self.cfg, self.params, features, tokens, valid, mask_ar)

  def with_params(self, params: Params, *, name: str | None = None) -> "Vlm":
    """The same model with other parameters, such as fine-tuned ones."""
    return dataclasses.replace(self, params=params, name=name or self.name)

  def _vision(self) -> siglip.SiglipConfig:
    if self.cfg.vision is None:
      raise UserError(f"model {self.name!r} has no vision tower")
    return self.cfg.vision

  def _sample(
    self,
    sc: decode.SampleConfig,
    features: np.ndarray | None,
    ids: Sequence[Sequence[int]],
    *,
    rows: np.ndarray,
    seed: int,
  ) -> decode.Samples:
    """Draws one sample for each of `ids`, in a program of a bucketed shape."""
    n = _bucket(len(ids))
    length = -(-max(map(len, ids)) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    tokens = np.zeros((n, length), np.int32)
    valid = np.zeros((n, length), bool)
    for k, row in enumerate([*ids, *[ids[-1]] * (n - len(ids))]):
      tokens[k, : len(row)], valid[k, : len(row)] = row, True
    if features is not None:
      features = self._place(_pad_rows(np.asarray(features[rows]), n))
    tokens, valid, rows = (self._place(x) for x in (tokens, valid, _pad_rows(rows, n)))
    return _sample(self.cfg, sc, self.params, features, tokens, valid, rows, np.int32(seed))

  def _place(self, x: np.ndarray) -> Array | np.ndarray:
    if self.mesh is None:
      return x
    split = x.shape[0] % self.mesh.size == 0
    return jax.device_put(
      x, mesh_lib.batch_sharding(self.mesh) if split else mesh_lib.replicated(self.mesh)
    )


def load_vlm(path: str | os.PathLike, *, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> Vlm:
  """Reads a model folder, see `models.weights`.

  Args:
    path: the folder; its name becomes the model's.
    mesh: replicate the parameters over this mesh and split batches over it.
    dtype: of the parameters and of the computation.

  Raises:
    UserError: the folder is not a whole model.
  """
  path = pathlib.Path(path)
  loaded = weights.load(path)
  tokenizer = Tokenizer.from_file(path / "tokenizer.json")
  extras = dict(loaded.extras)
  template, stop = extras.pop("template", None), extras.pop("stop", None)
  if not isinstance(template, str) or not isinstance(stop, list) or not stop:
    raise UserError(f"{path}/config.json: needs a 'template' and a list 'stop' of tokens")
  # Now rather than at the first question.
  prompts_lib.render(tokenizer, template, "", loaded.cfg.num_image_tokens)
  params = weights.cast(loaded.params, dtype)
  device = None if mesh is None else mesh_lib.replicated(mesh)
  return Vlm(
    name=path.resolve().name,
    cfg=loaded.cfg.with_dtype(jnp.dtype(dtype).name),
    params=jax.device_put(params, device),
    tokenizer=tokenizer,
    template=template,
    stop_ids=tuple(tokenizer.id(s) for s in stop),
    extras=extras,
    mesh=mesh,
  )


def save_vlm(path: str | os.PathLike, vlm: Vlm, *, dtype: str = "float32") -> None:
  """Writes a model folder that `load_vlm` reads.

  The tower is written with the model unless `vlm.extras["tower"]` names its folder, relative to
  `path`.
  """
  names = [vlm.tokenizer.token(i) for i in vlm.stop_ids]
  extras = vlm.extras | {"template": vlm.template, "stop": names}
  weights.save(path, vlm.cfg, vlm.params, vlm.tokenizer, extras, dtype=dtype)


def _same_length(images: Sequence[Any], prompts: Sequence[str]) -> None:
  if len(images) != len(prompts):
    raise UserError(f"{len(images)} images for {len(prompts)} prompts: one each, please")


def _bucket(n: int) -> int:
  """Returns the power of two that n rows are padded to."""
  return max(_MIN_BATCH, 1 << (n - 1).bit_length())


def _pad_rows(x: np.ndarray, n: int) -> np.ndarray:
  """Pads to n rows by repeating the last, which stops when its twin stops."""
  return np.concatenate([x, np.repeat(x[-1:], n - len(x), axis=0)]) if len(x) < n else x


@functools.partial(jax.jit, static_argnames=("vision",))
def _encode(vision: siglip.SiglipConfig, tower: Params, pixels: Array) -> Array:
  return siglip.Siglip(vision).apply({"params": tower}, pixels).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("cfg", "sc"))
def _sample(cfg, sc, params, features, tokens, valid, rows, seed) -> decode.Samples:
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
  return decode.sample(
    cfg, sc, params, features, tokens, valid=valid, group=1, row_keys=keys[:, None]
  )


@functools.partial(jax.jit, static_argnames=("cfg",))
def _logits(cfg, params, features, tokens, valid, ar) -> Array:
  x = multimodal.hidden(cfg, params, features, tokens, valid=valid, ar=ar)
  return multimodal.unembed(cfg, params, x)
