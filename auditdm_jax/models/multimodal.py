# SPDX-License-Identifier: Apache-2.0
"""The two vision-language wirings: PaliGemma (prefix-LM) and Gemma 3 (causal, image block).

Functions over a parameter tree {"img": tower and projector, "llm": decoder}:

    pixels ─ encode_images ─> features ─┐
                                        ├─ hidden ─> hidden states ─ unembed ─> logits
    tokens with image slots ────────────┘

`features` is what the tower puts out, before the projector. A frozen tower's are computed once per
image and cached; a tower that trains (`optim.frozen` decides) computes them anew at each step. The
projector is `img/head`: {kernel, bias} in PaliGemma, as in big_vision; {soft_embedding_norm/scale,
input_projection/w} in Gemma 3.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import forms, gemma, int8, sharding, siglip

Params = dict[str, Any]

SMALL = 1 << 24  # Parameters, see `is_small`.
_SPLIT_BYTES = 1 << 32  # Most of a decoder that is split, see `splits_layers`.


@dataclasses.dataclass(frozen=True)
class VlmConfig:
  """A vision-language model.

  Attributes:
    kind: the wiring: masks and projector.
    text: the decoder.
    vision: the tower; None for a text-only model.
    image_token_id: the id that marks an image slot in the tokens; it may lie outside of the
      vocabulary, as it does in big_vision's; -1 in a text-only model.
    mm_tokens: image slots per image: Gemma 3 average-pools the patches to this many; None keeps
      one per patch.
  """

  kind: Literal["paligemma", "gemma3"]
  text: gemma.GemmaConfig
  vision: siglip.SiglipConfig | None
  image_token_id: int
  mm_tokens: int | None = None

  def __post_init__(self):
    if self.image_token_id < (-1 if self.vision is None else 0):
      raise ValueError(f"image_token_id {self.image_token_id} is not a token")
    if self.vision is not None and self.mm_tokens is not None:
      side, cells = round(self.vision.num_patches**0.5), round(self.mm_tokens**0.5)
      if not 0 < cells <= side or cells**2 != self.mm_tokens or side // (side // cells) != cells:
        raise ValueError(f"{side}x{side} patches cannot be pooled to mm_tokens {self.mm_tokens}")

  @property
  def num_image_tokens(self) -> int:
    """Image slots of one image; 0 for a text-only model."""
    if self.vision is None:
      return 0
    return self.mm_tokens or self.vision.num_patches

  @property
  def tower(self) -> siglip.SiglipConfig:
    """The vision tower.

    Raises:
      UserError: a text-only model has none.
    """
    if self.vision is None:
      raise config_lib.UserError("a text-only model takes no images")
    return self.vision

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, d: dict[str, Any]) -> "VlmConfig":
    return config_lib.build(cls, d, name="model")

  def with_dtype(self, dtype: str) -> "VlmConfig":
    """Returns the same model, computed in `dtype` ("float32" or "bfloat16")."""
    vision = self.vision and dataclasses.replace(self.vision, dtype=dtype)
    return dataclasses.replace(
      self, text=dataclasses.replace(self.text, dtype=dtype), vision=vision
    )

  def with_remat(self) -> "VlmConfig":
    """Returns the same model, whose backward pass computes each layer again."""
    vision = self.vision and dataclasses.replace(self.vision, remat=True)
    return dataclasses.replace(self, text=dataclasses.replace(self.text, remat=True), vision=vision)


class Projector(nn.Module):
  """Patches f[B,P,Dv] to image tokens f[B,M,D]."""

  config: VlmConfig

  @nn.compact
  def __call__(self, features: Array) -> Array:
    config, d = self.config, self.config.text.width
    x = pool(features.astype(config.text.dtype), config.mm_tokens)
    dv = x.shape[-1]
    if config.kind == "paligemma":
      return siglip.Linear((dv, d), (d,), dv, name="Dense")("bpd,de->bpe", x)
    x = gemma.RMSNorm(config.tower.norm_eps, name="soft_embedding_norm")(x)
    return gemma.Einsum((dv, d), dv, name="input_projection")("bpd,de->bpe", x)


def pool(features: Array, tokens: int | None) -> Array:
  """Averages a square of patches [B,P,Dv] over square cells, to [B,M,Dv].

  Rows and columns that do not fill a cell are left out, at the bottom and on the right.
  """
  b, p, d = features.shape
  if tokens is None or tokens == p:
    return features
  side, cells = round(p**0.5), round(tokens**0.5)
  c = side // cells
  square = features.reshape(b, side, side, d)[:, : cells * c, : cells * c]
  return square.reshape(b, cells, c, cells, c, d).mean(axis=(2, 4)).reshape(b, tokens, d)


def init(config: VlmConfig, key: Array) -> Params:
  """Returns fresh fp32 parameters {"img": …, "llm": …}; no "img" without a tower."""
  k_img, k_head, k_llm = jax.random.split(key, 3)
  tokens = jnp.zeros((1, 2), jnp.int32)
  params = {"llm": gemma.Gemma(config.text).init(k_llm, tokens)["params"]}
  if config.vision is not None:
    s, v = config.vision.image_size, config.vision
    img = siglip.Siglip(v).init(k_img, jnp.zeros((1, s, s, 3)))["params"]
    head = Projector(config).init(k_head, jnp.zeros((1, v.num_patches, v.width)))["params"]
    params["img"] = img | {"head": head.get("Dense", head)}
  return params


def tower(params: Params) -> Params:
  """Returns the tower's own parameters: img/ without the projector."""
  return {k: v for k, v in params["img"].items() if k != "head"}


def encode_images(config: VlmConfig, params: Params, pixels: Array) -> Array:
  """Returns features [U,P,Dv] of pixels f32[U,H,W,3] in [-1, 1]."""
  return siglip.Siglip(config.tower).apply({"params": tower(params)}, pixels)


def project(config: VlmConfig, params: Params, features: Array) -> Array:
  """Returns image tokens [B,M,D] of features [B,P,Dv]."""
  head = jax.tree.map(mesh_lib.constrain, params["img"]["head"])
  head = {"Dense": head} if config.kind == "paligemma" else head
  return Projector(config).apply({"params": head}, features)


def embed(config: VlmConfig, params: Params, features: Array | None, tokens: Array) -> Array:
  """Returns [B,T,D]: token embeddings, with the projected features in the image slots.

  Args:
    config: the model.
    params: its parameters.
    features: [B,P,Dv], one image per row, or [B,I,P,Dv], I images of which a row uses the first
      that its slots ask for; None if there are no images.
    tokens: i32[B,T]. The i-th slot of a row takes the row's i-th image token, wherever it lies.
  """
  slot = tokens == config.image_token_id
  if config.image_token_id >= config.text.vocab_size:
    tokens = jnp.where(slot, 0, tokens)  # The vocabulary has no row for it.
  x = gemma.Gemma(config.text).apply({"params": params["llm"]}, tokens, method="embed")
  if features is None:
    return x
  image = project(config, params, features.reshape(-1, *features.shape[-2:]))
  image = image.reshape(tokens.shape[0], -1, image.shape[-1])
  # A product with one-hot rows rather than a gather, whose gradient would be a scatter.
  index = jnp.where(slot, jnp.cumsum(slot, axis=1) - 1, -1)
  placed = jnp.einsum("btm,bmd->btd", jax.nn.one_hot(index, image.shape[1], dtype=x.dtype), image)
  return jnp.where(slot[..., None], placed, x)


def make_attn_mask(valid: Array, ar: Array, branches: gemma.Branches | None = None) -> Array:
  """Returns bool[B,T,T]: token i sees j iff cumsum(ar)[j] <= cumsum(ar)[i], both valid.

  One rule makes every mask (big_vision, models/proj/paligemma/paligemma.py). Two rows of five:

      PaliGemma, prefix then suffix      Gemma 3, text, image block of 3, text
      ar   0 0 0 1 1                     ar   1 1 0 0 1
      0    1 1 1 . .                     1    1 . . . .
      0    1 1 1 . .                     1    1 1 1 1 .
      0    1 1 1 . .                     0    1 1 1 1 .
      1    1 1 1 1 .                     0    1 1 1 1 .
      1    1 1 1 1 1                     1    1 1 1 1 1

  With `branches` it is bool[B,T,S+E]: the tokens of a branch see the trunk and their own, which
  are the columns.
  """
  order = jnp.cumsum(ar, axis=1)
  sees = _seen(order, branches) <= order[:, :, None]
  sees = sees & _seen(valid, branches) & valid[:, :, None]
  if branches is None:
    return sees
  in_trunk = np.arange(sees.shape[2]) < branches.trunk
  return sees & (in_trunk | (np.arange(sees.shape[1]) >= branches.trunk)[:, None])


def _seen(x: Array, branches: gemma.Branches | None) -> Array:
  """Returns [B,1,T] of rows [B,T], or what `Branches.seen` does."""
  return x[:, None, :] if branches is None else branches.seen(x)


def same_block(ar: Array, branches: gemma.Branches | None = None) -> Array:
  """Returns the tokens between which `ar` makes no difference of order, as `make_attn_mask`."""
  order = jnp.cumsum(ar, axis=1)
  return order[:, :, None] == _seen(order, branches)


def default_ar(config: VlmConfig, tokens: Array) -> Array:
  """Returns i32[B,T], the mask the architecture prescribes for a prompt.

  PaliGemma sees the whole prompt at once; Gemma 3 is causal but for its image, whose tokens see
  one another.
  """
  if config.kind == "paligemma":
    return jnp.zeros_like(tokens)
  slot = tokens == config.image_token_id
  inside = slot & jnp.pad(slot, ((0, 0), (1, 0)))[:, :-1]
  return jnp.where(inside, 0, 1)


def positions_of(valid: Array, branches: gemma.Branches | None = None) -> Array:
  """Returns i32[B,T]: how many valid tokens come before; padding does not count.

  With `branches`, those of the trunk and of the token's own: each restarts at the trunk's end.
  """
  if branches is None:
    return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  trunk, own = branches.apart(valid)
  own = jnp.cumsum(own, axis=2) + trunk.sum(axis=1)[:, None, None]
  before = jnp.concatenate([jnp.cumsum(trunk, axis=1), own.reshape(len(valid), -1)], axis=1)
  return jnp.maximum(before - 1, 0)


def hidden(
  config: VlmConfig,
  params: Params,
  features: Array | None,
  tokens: Array,
  *,
  valid: Array,
  ar: Array | None = None,
  dropout: gemma.Dropout | None = None,
  places: Array | None = None,
) -> Array:
  """Returns the full forward pass, [B,T,D] or [B,C,D] after the final norm, for `unembed`.

  `dropout` is the noise of training, or None; see `row_set` for the others.
  """
  rows = row_set(config, params, features, tokens, valid=valid, ar=ar, places=places)
  return _decoder(config, params, keep_kv=False)([rows], dropout=dropout)[0][0]


def hidden_of_sets(config: VlmConfig, params: Params, sets: Sequence[gemma.RowSet]) -> list[Array]:
  """`hidden` of several sets of rows, each of `row_set`, through one pass over the layers."""
  return _decoder(config, params, keep_kv=False)(sets)[0]


def prefill(
  config: VlmConfig,
  params: Params,
  features: Array | None,
  tokens: Array,
  *,
  valid: Array,
  ar: Array | None = None,
  branches: gemma.Branches | None = None,
  places: Array | None = None,
) -> tuple[Array, Any]:
  """As `hidden`; also returns the keys and values as `gemma.Gemma.decode` does."""
  rows = row_set(config, params, features, tokens, valid=valid, branches=branches, places=places)
  (x,), (kv,) = _decoder(config, params, keep_kv=True)([rows])
  return x, kv


def row_set(
  config: VlmConfig,
  params: Params,
  features: Array | None,
  tokens: Array,
  *,
  valid: Array,
  ar: Array | None = None,
  branches: gemma.Branches | None = None,
  places: Array | None = None,
) -> gemma.RowSet:
  """Returns rows as they enter the first layer.

  Args:
    config: the model.
    params: its parameters.
    features: [B,P,Dv] or [B,I,P,Dv] of `encode_images`, or None; see `embed`.
    tokens: i32[B,T], with `num_image_tokens` image slots per image of the row.
    valid: bool[B,T], False at padding, which may be on either side.
    ar: i32[B,T] of `make_attn_mask`; None is `default_ar`. A PaliGemma row with a suffix must
      give it.
    branches: of the rows, if they are a trunk and branches.
    places: i32[B,C], the tokens whose hidden states are wanted; None is all of them.
  """
  ar = default_ar(config, tokens) if ar is None else ar
  positions = positions_of(valid, branches)
  return gemma.RowSet(
    embed(config, params, features, tokens),
    positions=positions,
    key_positions=_seen(positions, branches),
    mask=make_attn_mask(valid, ar, branches),
    # PaliGemma's prefix sees all of itself in every layer, Gemma 3's image only what is near.
    wide=same_block(ar, branches) if config.kind == "paligemma" else None,
    places=places,
    branches=branches,
  )


def step(
  config: VlmConfig,
  params: Params,
  tokens: Array,
  *,
  positions: Array,
  past: gemma.Past | list[gemma.Past],
  past_positions: Array,
  past_valid: Array,
) -> tuple[Array, Any]:
  """One more text token for each of G samples per prompt, after `past`.

  Args:
    config: the model.
    params: its parameters.
    tokens: i32[B,G].
    positions: i32[B,1] of these tokens, or i32[B,G].
    past: prefix and suffixes, of `start_past`; read only.
    past_positions: i32[B,1,S+C], or i32[B,G,S+C].
    past_valid: bool[B,1,S+C], or bool[B,G,S+C], the slots that hold something.

  Returns:
    [B,G,D] hidden states, and the keys and values [L,B,G,K,H], for `write_past`.
  """
  b, g = tokens.shape
  positions = jnp.broadcast_to(positions, (b, g))
  own = jnp.broadcast_to(positions[:, None], (b, past_positions.shape[1], g))
  # All that is past, and of the samples' new tokens the own one.
  mask = [
    jnp.broadcast_to(part, (b, g, part.shape[-1])) for part in (past_valid, jnp.eye(g, dtype=bool))
  ]
  layout = sharding.Layout.of_step(width=config.text.width, rows=b * g)
  rows = gemma.RowSet(
    embed(config, params, None, tokens),
    positions=positions,
    key_positions=jnp.concatenate([past_positions, own], axis=2),
    mask=jnp.concatenate(mask, axis=2),
  )
  (x,), (kv,) = _decoder(config, params, keep_kv=True, layout=layout)([rows], past=past)
  return x, kv


def start_past(kv: Any, *, samples: int, room: int, tail: int = 0) -> gemma.Past | list[gemma.Past]:
  """Returns `gemma.Past.start` of what `prefill` returned, whole or layer by layer."""
  start = functools.partial(gemma.Past.start, samples=samples, room=room, tail=tail)
  return [start(own) for own in kv] if isinstance(kv, list) else start(kv)


def write_past(past: gemma.Past | list[gemma.Past], kv: Any, at: Array) -> Any:
  """Returns `past` with what `step` returned at place `at`."""
  if isinstance(past, list):
    return [part.write(own, at) for part, own in zip(past, kv, strict=True)]
  return past.write(kv, at)


def lists_layers(config: VlmConfig, params: Params) -> bool:
  """Returns whether the decoder is faster with its layers in a list: a few of them on one device.

  The last layer then computes only what is wanted of it, see `gemma.Wanted`.
  """
  text = config.text
  plain = not text.remat and mesh_lib.active() is None and not int8.is_quantized(params)
  return plain and text.unroll >= text.depth


def is_small(params: Params) -> bool:
  """Returns whether compiling a program of this model costs more than running it less well."""
  return sum(x.size for x in jax.tree.leaves(params)) < SMALL


def splits_layers(params: Params) -> bool:
  """Returns whether sampling is faster with stacked layers split: on a CPU, of no small model.

  The scan copies each layer out of the stack at every token, and turns it, where few rows are
  multiplied with it. What is split takes the memory of a second decoder, 4 GiB at most.
  """
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params["llm"]))
  dear = is_small(params) or size > _SPLIT_BYTES
  return _is_plain_stack(params) and mesh_lib.lone_platform() == "cpu" and not dear


def lists_layers_of_steps(params: Params) -> bool:
  """Returns whether steps are faster with stacked layers in a list: on a GPU.

  XLA for GPUs copies each layer out of the stack before it multiplies with it, at every token. A
  list is made once, and takes the memory of a second decoder until the last token.
  """
  return _is_plain_stack(params) and mesh_lib.lone_platform() == "gpu"


def _is_plain_stack(params: Params) -> bool:
  return _form(params) == "stacked" and not int8.is_quantized(params)


def list_kv(kv: Any) -> list[Any]:
  """Returns the keys and values of `prefill` layer by layer, as those of listed layers are."""
  leaves, structure = jax.tree.flatten(kv)
  return [structure.unflatten(layer) for layer in zip(*leaves, strict=True)]


def list_layers(params: Params) -> Params:
  """Returns the parameters, or some of them, with the decoder's layers in a list."""
  llm = dict(params.get("llm", {}))
  layers = llm.pop("layers", None)
  return params if layers is None else params | {"llm": llm | forms.list_layers(layers)}


def stack_layers(params: Params) -> Params:
  """Returns what `list_layers` was given."""
  llm = dict(params.get("llm", {}))
  listed = {key: llm.pop(key) for key in list(llm) if key.startswith("blocks_")}
  if not listed:
    return params
  return params | {"llm": llm | {"layers": forms.stack_layers(listed)}}


def split_layers(params: Params) -> Params:
  """Returns the parameters as a CPU decodes with them fastest; the decoder's layers are a copy."""
  llm = dict(params["llm"])
  layers = jax.jit(forms.split_layers)(llm.pop("layers"))
  return params | {"llm": llm | layers}


def _decoder(
  config: VlmConfig,
  params: Params,
  *,
  keep_kv: bool,
  layout: sharding.Layout = sharding.GATHERED,
) -> Callable[..., tuple[list[Array], list[Any]]]:
  """Returns `gemma.Gemma.decode` of the parameters, however they lie."""
  model = gemma.Gemma(config.text, keep_kv=keep_kv, form=_form(params), layout=layout)
  return functools.partial(model.apply, {"params": params["llm"]}, method="decode")


def _form(params: Params) -> forms.Form:
  llm = params["llm"]
  return "stacked" if "layers" in llm else "split" if "layers_0" in llm else "listed"


def unembed(config: VlmConfig, params: Params, x: Array) -> Array:
  """Returns fp32 logits [...,V] of hidden states [...,D]: the only road from one to the other."""
  w = params["llm"]["embedder"]["input_embedding" if config.text.tied_head else "output_embedding"]
  # The vocabulary stays where it lies; it is the few rows that travel, see `models.sharding`.
  w, x = mesh_lib.constrain(w, ("tensor", "fsdp")), mesh_lib.constrain(x, "data")
  # Operands in the compute dtype, accumulation in fp32: bf16 logits of size 30 have an ulp of .125.
  w, fp32 = w.astype(x.dtype), jnp.float32
  if _form(params) == "split":
    logits = forms.results_first(x, w, dtype=fp32)
  else:
    logits = jnp.einsum("...d,vd->...v", x, w, preferred_element_type=fp32)
    between = (None,) * (logits.ndim - 2)
    logits = mesh_lib.constrain(logits, "data", *between, ("tensor", "fsdp"))
  return gemma.softcap(logits, config.text.final_softcap)


def sampling_logits(
  config: VlmConfig,
  params: Params,
  x: Array,
  *,
  banned: tuple[int, ...] = (),
  temperature: float | Array = 1.0,
) -> Array:
  """Returns fp32 logits [...,V] of the distribution that is sampled: tempered, without `banned`."""
  logits = unembed(config, params, x) / temperature
  if not banned:
    return logits
  keep = np.ones(config.text.vocab_size, bool)
  keep[[i for i in banned if 0 <= i < config.text.vocab_size]] = False
  return jnp.where(keep, logits, gemma.MASKED)


def logprob_and_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Returns log p(target) and the entropy, both f32[...], of fp32 logits [...,V].

  Neither log-softmax nor probabilities are kept, and the target is picked by a masked sum, which
  stays local where the vocabulary is sharded.
  """
  lse = jax.nn.logsumexp(logits, axis=-1)
  ids = jnp.arange(logits.shape[-1])
  target = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
  expected = jnp.sum(jnp.exp(logits - lse[..., None]) * logits, axis=-1)
  return target - lse, lse - expected


def token_logprobs(
  config: VlmConfig,
  params: Params,
  x: Array,
  targets: Array,
  *,
  banned: tuple[int, ...] = (),
  temperature: float = 1.0,
  chunk: int | None = None,
) -> tuple[Array, Array]:
  """Log-probs of targets under the sampling distribution, without keeping [B,C,V].

  Args:
    config: the model.
    params: its parameters.
    x: [B,C,D] hidden states, each the one that predicts its target.
    targets: i32[B,C]; a banned target has log-prob -1e30 (mask it with `where`).
    banned: ids that cannot be sampled.
    temperature: temperature of the sampling distribution.
    chunk: tokens per piece, recomputed in the backward pass; None is all at once.

  Returns:
    Log-probs f32[B,C] and entropies f32[B,C].
  """

  def piece(x, targets):
    logits = sampling_logits(config, params, x, banned=banned, temperature=temperature)
    return logprob_and_entropy(logits, targets)

  if chunk is None:
    return piece(x, targets)
  shape, n = targets.shape, targets.size
  pad = -n % chunk

  def cut(x):
    """[n,…] -> [pieces,chunk,…]: of the tokens of every row an equal share."""
    x = jnp.pad(
      x.reshape(n, *x.shape[targets.ndim :]), [(0, pad)] + [(0, 0)] * (x.ndim - targets.ndim)
    )
    return mesh_lib.cut_rows(x, chunk)

  def join(x):
    return mesh_lib.join_rows(x)[:n].reshape(shape)

  body = jax.checkpoint(lambda carry, args: (carry, piece(*args)))
  _, (logp, entropy) = jax.lax.scan(body, None, (cut(mesh_lib.constrain(x, "data")), cut(targets)))
  return join(logp), join(entropy)
