# SPDX-License-Identifier: Apache-2.0
"""A vision-language model behind `answer` and `logits`: weights, tokenizer, pixels and decoding.

    vlm = auditdm_jax.load_vlm("data/scenes/weights/target_easy")
    vlm.answer([image], ["what color is the circle?"], max_new_tokens=3)  # -> ["red"]

Its compiled programs are in `vlm_programs`; `vlm_batching` cuts rows into calls of them.
"""

from collections.abc import Sequence, Sized
import dataclasses
import functools
import hashlib
from typing import Any, ClassVar, Literal

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from auditdm_jax import vlm_batching as batching
from auditdm_jax import vlm_programs as programs
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import decode, int8, multimodal, preprocess, sharding, siglip
from auditdm_jax.models.multimodal import Params, VlmConfig
from auditdm_jax.models.preprocess import Picture, Pixels
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.text import styles
from auditdm_jax.text.styles import RawReply, Style
from auditdm_jax.text.tokenizer import FILENAMES, Tokenizer

_LEAST_NEW = 16  # Tokens of a program whose rows have limits of their own: they end it earlier.


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt of `Vlm.complete`.

  Attributes:
    ids: its tokens, with the slots of its images.
    images: which of the features fill the slots, in order.
    max_new_tokens: the longest completion, in tokens.
    temperature: 0 is greedy.
    seed: of the sampling, 32 bits.
  """

  ids: tuple[int, ...]
  images: tuple[int, ...] = ()
  max_new_tokens: int = 64
  temperature: float = 0.0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a model said: the tokens, terminator included, and whether there was no terminator."""

  tokens: tuple[int, ...]
  truncated: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Vlm:
  """A model that answers questions about images.

  Attributes:
    name: what records and reports call it.
    config: its architecture.
    params: its parameters, on the device.
    tokenizer: its tokenizer; None for a folder without one, which has logits but no answers.
    template: its prompt template, see `text.prompts`.
    stop_ids: the ids that end an answer.
    extras: what else its config.json says, such as how it was trained.
    mesh: the mesh its parameters are on and its batches are split over, or None.
    pixels: how it wants its images.
    side: the files that lay beside its weights, see `weights.Loaded`; they go where it is saved.
    style: how it is asked for a short answer. `answer` takes prompts as they are.
    takes: that it may be given the features of images.
  """

  takes: ClassVar[Literal["features"]] = "features"

  name: str
  config: VlmConfig
  params: Params
  tokenizer: Tokenizer | None
  template: str
  stop_ids: tuple[int, ...]
  extras: dict[str, Any] = dataclasses.field(default_factory=dict)
  mesh: Mesh | None = None
  pixels: Pixels = Pixels()
  side: dict[str, Any] = dataclasses.field(default_factory=dict)
  style: Style = styles.PLAIN

  @property
  def tower_id(self) -> str:
    """Hash of the tower, its weights and its pixels: models of one id have the same features."""
    return self._tower_id

  @functools.cached_property
  def _tower_id(self) -> str:
    sizes = dataclasses.replace(self._vision(), remat=False, unroll=1)
    digest = hashlib.sha256(repr((sizes, self.pixels)).encode())
    for path, leaf in sorted(tree.flatten(multimodal.tower(self.params)).items()):
      array = runtime.fetch(leaf)
      digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

  def encode(self, images: Sequence[Picture]) -> np.ndarray:
    """Returns features f32[U,P,Dv] of images as in `answer`: the tower's output, to be cached."""
    vision, tower = self._vision(), multimodal.tower(self.params)
    out = np.zeros((len(images), vision.num_patches, vision.width), np.float32)
    devices = self._room.devices
    most = batching.images_per_call(vision, devices=devices, most=self._room.most)
    for part, n in batching.call_slices(len(images), most, small=self._is_small, shards=devices):
      rows = np.arange(len(images))[part]
      pixels = self._pixels(images, rows, n)
      with mesh_lib.use(self.mesh):
        out[part] = runtime.fetch(programs.encode_images(vision, tower, pixels))[: len(rows)]
    return out

  def _pixels(self, images: Sequence[Picture], rows: np.ndarray, n: int) -> Array | np.ndarray:
    """f32[n,H,W,3] of these images, the last repeated; a process opens those of its devices."""
    size = self._vision().image_size

    def make(own: slice) -> np.ndarray:
      wanted = batching.pad_rows(rows, n)[own]
      return preprocess.preprocess(_Chosen(images, wanted), size=size, how=self.pixels)

    if self.mesh is None:
      return batching.pad_rows(make(slice(len(rows))), n)
    where = mesh_lib.rows_sharding(self.mesh, n, axes=self.mesh.axis_names)
    return jax.make_array_from_callback((n, size, size, 3), where, lambda index: make(index[0]))

  def answer(
    self,
    images: Sequence[Picture | Sequence[Picture] | None] | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[str]:
    """Answers prompts[i] about images[i]; an image given several times is encoded once.

    Args:
      images: one entry per prompt: u8[H,W,3] of any size, a Pillow image, the path of an image
        file, a list of several of them, or None for a prompt without image. None is none at all.
      prompts: the questions, without the template.
      max_new_tokens: the longest answer, in tokens.
      temperature: 0 is greedy.
      seed: of the sampling, 32 bits; answer i depends on (seed, i) and not on the batch.

    Raises:
      UserError: images that cannot be read or that the model cannot take.
    """
    if isinstance(prompts, str):
      raise UserError(f"prompts is one string, {prompts[:20]!r}: expected a list of them")
    images = [None] * len(prompts) if images is None else images
    _same_length(images, prompts)
    groups = [_as_group(image) for image in images]
    ask = functools.partial(
      self._answer, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    answers = [""] * len(prompts)
    for rows in batching.windows([len(g) for g in groups], self.config.vision):
      unique = {id(image): image for i in rows for image in groups[i]}
      order = {key: k for k, key in enumerate(unique)}
      features = self.encode(list(unique.values())) if unique else None
      which = [[order[id(image)] for image in groups[i]] for i in rows]
      for i, reply in zip(rows, ask(features, which, [prompts[i] for i in rows], rows)):
        answers[i] = reply.text or ""
    return answers

  def answer_features(
    self,
    features: np.ndarray | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[str]:
    """As `answer`, for features [B,P,Dv] of `encode` in any float dtype; None for text only."""
    replies = self.reply_features(
      features, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    return [reply.text or "" for reply in replies]

  def reply_features(
    self,
    features: np.ndarray | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    which: Sequence[Sequence[int]] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[RawReply]:
    """As `answer_features`; each reply says whether it ended or was cut, and how likely it was.

    Its log-prob is that of the distribution it was drawn from; a greedy reply's is the model's own.

    With `which`, prompt i is about features[which[i]], so that an image of many prompts is there
    once, and a prompt may have several images or none.
    """
    rows = list(range(len(prompts)))
    if which is not None:
      _same_length(which, prompts)
    elif features is not None:
      _same_length(features, prompts)
    own = [[] if features is None else [i] for i in range(len(prompts))]
    return self._answer(
      features,
      own if which is None else which,
      prompts,
      rows,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      seed=seed,
    )

  def complete(self, features: np.ndarray | None, prompts: Sequence[Prompt]) -> list[Completion]:
    """Completes prompts that have settings of their own, in as few calls as `answer` would.

    Each is what `answer` would say if it were asked that one alone: what shares its batch, other
    temperatures too, changes nothing.

    Args:
      features: [N,P,Dv] of `encode`, which prompts point into; None for text only.
      prompts: the prompts, rendered.

    Raises:
      UserError: ids that the model does not have, or a seed of more than 32 bits.
    """
    for prompt in prompts:
      self._check_ids(np.array(prompt.ids))
      _check_seed(prompt.seed)
    done: dict[int, Completion] = {}
    longest = max([_LEAST_NEW, *(p.max_new_tokens for p in prompts)])
    new = 1 << (longest - 1).bit_length()
    shapes = [batching.PromptShape(len(p.ids), len(p.images)) for p in prompts]
    for call in batching.calls(self.config, shapes, new=new, room=self._room):
      batch = [prompts[i] for i in call.rows[:, 0]]
      which = np.array([p.images for p in batch])
      warm = any(p.temperature for p in batch)
      said = self._sample(
        decode.SampleConfig(new, float(warm), self.stop_ids),
        _rows_of(features, which),
        [p.ids for p in prompts],
        call,
        np.zeros(call.rows.shape, np.int32),
        np.array([[p.seed] for p in batch], np.int32),
        limits=np.array([p.max_new_tokens for p in batch], np.int32),
        temperatures=np.array([p.temperature for p in batch], np.float32) if warm else None,
      )
      for i, (tokens, _) in said.items():
        done[i] = Completion(tuple(tokens), truncated=tokens[-1] not in self.stop_ids)
    return [done[i] for i in range(len(prompts))]

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
      pixel_values: f32[U,H,W,3], the U images that fill the image slots in the order of the rows;
        a row has one, several or none. Without it the image token is a token like any other.
      input_ids: i32[B,T], image slots included, padded on either side.
      input_mask: bool[B,T], False at padding; None is no padding.
      mask_ar: i32[B,T] of `multimodal.make_attn_mask`; None is what the architecture prescribes:
        the whole row as prefix for PaliGemma, causal but for the images for Gemma 3.

    Raises:
      UserError: shapes or dtypes are others, slots and images do not match, or the model has no
        such ids.
    """
    ids = np.asarray(input_ids)
    valid = np.ones(ids.shape, bool) if input_mask is None else np.asarray(input_mask, bool)
    if ids.ndim != 2 or valid.shape != ids.shape:
      raise UserError(f"input_ids {ids.shape}, input_mask {valid.shape}: both should be [B,T]")
    self._check_ids(ids)
    ids = ids.astype(np.int32)
    ar = None if mask_ar is None else np.asarray(mask_ar, np.int32)
    if ar is not None and ar.shape != ids.shape:
      raise UserError(f"mask_ar {ar.shape}: should be {ids.shape}, as input_ids")
    features = None
    if pixel_values is not None:
      vision, pixels = self._vision(), jnp.asarray(pixel_values)
      size = vision.image_size
      if pixels.shape[1:] != (size, size, 3) or not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise UserError(
          f"pixel_values {pixels.dtype} {pixels.shape}: should be floats of preprocess.preprocess, "
          f"[U,{size},{size},3]"
        )
      pixels = pixels.astype(jnp.float32)
      which = self._fill(ids, len(pixels))
      if len(pixels):
        with mesh_lib.use(self.mesh):
          features = programs.encode_images(vision, multimodal.tower(self.params), pixels)[which]
    if features is None and ar is None and self.config.kind == "gemma3":
      ar = np.ones(ids.shape, np.int32)
    with mesh_lib.use(self.mesh):
      return programs.logits(self.config, self.params, features, ids, valid, ar)

  def is_finite(self, features: np.ndarray, prompt: str) -> bool:
    """Whether the model gives numbers after a prompt about an image, features [1,P,Dv].

    Where parameters are NaN or infinite, it answers all the same, and always with one token.
    """
    if self.tokenizer is None:
      raise UserError(f"model {self.name!r} has no tokenizer: none of {', '.join(FILENAMES)}")
    slots = self.config.num_image_tokens
    ids = np.array([prompts_lib.render(self.tokenizer, self.template, prompt, slots)], np.int32)
    with mesh_lib.use(self.mesh):
      valid = np.ones(ids.shape, bool)
      found = programs.is_finite(self.config, self.params, features, ids, valid)
    return bool(runtime.fetch(found))

  def states(
    self, features: np.ndarray, prompts: Sequence[str], *, which: Sequence[int]
  ) -> np.ndarray:
    """Returns what the model makes of prompts about an image each, before it replies.

    It is the last hidden state of a prompt, after the final norm, from which the first token of the
    reply is predicted. All calls have one number of rows and a prompt's own length, so that what
    else is read changes no bit of it.

    Args:
      features: [U,P,Dv] of `encode`.
      prompts: N prompts.
      which: the image of each prompt, as a row of `features`.

    Returns:
      f32[N,D].

    Raises:
      UserError: as `answer`.
    """
    _same_length(which, prompts)
    ids = self._rendered(features, [[i] for i in which], prompts)
    out = np.zeros((len(ids), self.config.text.width), np.float32)
    lengths = [batching.padded_length(len(row)) for row in ids]
    room = self._room
    for length in sorted(set(lengths)):
      size = batching.rows_per_call(
        self.config, length, new=0, images=1, devices=room.devices, most=room.most
      )
      for cut in batching.cut(np.flatnonzero(np.array(lengths) == length), size):
        rows = batching.pad_rows(cut, size)
        tokens, valid = batching.padded([ids[i] for i in rows], length)
        last = np.array([[len(ids[i]) - 1] for i in rows], np.int32)
        batch = features[np.asarray(which)[rows]]
        placed = [self._place(x) for x in (batch, tokens, valid, last)]
        with mesh_lib.use(self.mesh):
          found = programs.states(self.config, self.params, *placed)
        out[rows] = runtime.fetch(found)
    return out

  def with_int8(self) -> "Vlm":
    """The same model with its decoder's weights in int8, see `models.int8`."""
    if self.mesh is None:
      return self.with_params(jax.jit(int8.quantize)(self.params))
    where = sharding.shardings(self.mesh, jax.eval_shape(int8.quantize, self.params))
    return self.with_params(jax.jit(int8.quantize, out_shardings=where)(self.params))

  def with_params(self, params: Params, *, name: str | None = None) -> "Vlm":
    """The same model with other parameters, such as fine-tuned ones."""
    return dataclasses.replace(self, params=params, name=name or self.name)

  def writer(self) -> Tokenizer:
    """Returns the tokenizer, for what writes and reads text.

    Raises:
      UserError: the model has none.
    """
    if self.tokenizer is None:
      raise UserError(f"model {self.name!r} has no tokenizer: none of {', '.join(FILENAMES)}")
    return self.tokenizer

  @property
  def terminator(self) -> int:
    """The id that a label ends with, see `prompts.terminator`.

    Raises:
      UserError: the model has no tokenizer.
    """
    return prompts_lib.terminator(self.writer(), self.template, self.stop_ids)

  def _vision(self) -> siglip.SiglipConfig:
    if self.config.vision is None:
      raise UserError(f"model {self.name!r} has no vision tower")
    return self.config.vision

  def _fill(self, ids: np.ndarray, images: int) -> np.ndarray:
    """Returns i[B,I]: which of the images are a row's, 0 where it has fewer than others."""
    need = self.config.num_image_tokens
    slots = np.sum(ids == self.config.image_token_id, axis=1)
    if np.any(slots % need) or np.sum(slots) != images * need:
      raise UserError(f"rows have {slots.tolist()} image slots, {images} images need {need} each")
    count = slots // need
    which = np.zeros((len(ids), max(count, default=0)), np.int32)
    which[np.arange(which.shape[1]) < count[:, None]] = np.arange(images)
    return which

  def _check_ids(self, ids: np.ndarray) -> None:
    """Raises a UserError for an id without an embedding: the lookup gives NaN, or another's."""
    rows = self.config.text.vocab_size
    known = (ids >= 0) & ((ids < rows) | (ids == self.config.image_token_id))
    if not np.all(known):
      raise UserError(f"token id {ids[~known][0]}: model {self.name!r} has 0 to {rows - 1}")

  def _answer(
    self,
    features: np.ndarray | None,
    which: Sequence[Sequence[int]],
    prompts: Sequence[str],
    names: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
  ) -> list[RawReply]:
    """Answers prompts about features[which[i]]; names[i] is what prompt i's randomness hangs on."""
    _check_seed(seed)
    tokenizer, ids = self.writer(), self._rendered(features, which, prompts)
    sc = decode.SampleConfig(max_new_tokens, temperature, self.stop_ids)
    replies = [RawReply("")] * len(prompts)
    shapes = [self._shape(row, w) for row, w in zip(ids, which)]
    for call in batching.calls(self.config, shapes, new=max_new_tokens, room=self._room):
      batch = np.array([which[i] for i in call.rows[:, 0]])
      said = self._sample(
        sc, _rows_of(features, batch), ids, call, np.asarray(names, np.int32)[call.rows], seed
      )
      for i, (tokens, logprob) in said.items():
        ended = tokens[-1] in self.stop_ids
        text = tokenizer.decode(np.array(tokens)).strip()
        replies[i] = RawReply(text, "stop" if ended else "length", logprob=logprob)
    return replies

  def _rendered(
    self,
    features: np.ndarray | None,
    which: Sequence[Sequence[int]],
    prompts: Sequence[str],
  ) -> list[list[int]]:
    """Returns the ids of prompts about features[which[i]].

    Raises:
      UserError: there is no tokenizer, the template has no place for an image, or an id has no
        embedding.
    """
    tokenizer, slots = self.writer(), self.config.num_image_tokens
    if features is not None and any(which) and "{image}" not in self.template:
      raise UserError(f"model {self.name!r}: its template {self.template!r} has no {{image}}")
    ids = [
      prompts_lib.render(tokenizer, self.template, p, slots, images=len(w))
      for p, w in zip(prompts, which)
    ]
    for prompt, row in zip(prompts, ids):
      if not row:
        raise UserError(f"prompt {prompt[:20]!r} has no tokens in the template {self.template!r}")
      self._check_ids(np.array(row))
    return ids

  def _shape(self, ids: Sequence[int], which: Sequence[int]) -> batching.PromptShape:
    """Returns how a prompt about some images may share calls.

    What a Gemma 3 sees of an image does not depend on what follows it. A PaliGemma sees its whole
    prompt at once, and a small model's programs cost more than they save.
    """
    shares = self.config.kind == "gemma3" and not self._is_small and len(which)
    head = len(ids) - list(reversed(ids)).index(self.config.image_token_id) if shares else 0
    if not 0 < head < len(ids):
      return batching.PromptShape(len(ids), len(which))
    return batching.PromptShape(len(ids), len(which), head, (tuple(ids[:head]), tuple(which)))

  def _sample(
    self,
    sc: decode.SampleConfig,
    features: np.ndarray | None,
    ids: Sequence[Sequence[int]],
    call: batching.Call,
    names: np.ndarray,
    seed: int | np.ndarray,
    *,
    limits: np.ndarray | None = None,
    temperatures: np.ndarray | None = None,
  ) -> dict[int, tuple[list[int], float]]:
    """Returns a sample of each prompt of a call and its log-prob, by the number in `ids`.

    Features, limits and temperatures are those of the call's rows, names and seeds those of its
    prompts.
    """
    tails = None
    if call.rows.shape[1] == 1:
      rows = [ids[i] for i in call.rows[:, 0]]
      tokens, valid = batching.padded(rows, batching.padded_length(max(map(len, rows))))
    else:
      cut = list(zip(call.rows, call.heads, strict=True))
      heads, ends = (
        [ids[row[0]][:n] for row, n in cut],
        [ids[i][n:] for row, n in cut for i in row],
      )
      tokens, valid = batching.padded(heads, batching.padded_head(max(map(len, heads))))
      own = batching.padded(ends, batching.padded_length(max(map(len, ends))))
      placed_own: list[Any] = [self._place(x.reshape(*call.rows.shape, -1)) for x in own]
      tails = decode.Tails(*placed_own)

    def placed(x: np.ndarray | None) -> Array | np.ndarray | None:
      return None if x is None else self._place(x)

    seeds = self._place(seed) if isinstance(seed, np.ndarray) else np.int32(seed)
    rest = (
      *map(placed, (features, tokens, valid, names)),
      seeds,
      placed(limits),
      placed(temperatures),
    )
    with mesh_lib.use(self.mesh):
      drawn = programs.sample_answers(self.config, sc, self._decoding_params, *rest, tails)
    drawn, lengths, logprobs = runtime.fetch(drawn)
    prompts, each = np.unique(call.rows, return_index=True)
    drawn, lengths, logprobs = (
      drawn.reshape(-1, sc.max_new_tokens),
      lengths.ravel(),
      logprobs.ravel(),
    )
    return {
      int(i): (drawn[k, : lengths[k]].tolist(), float(logprobs[k])) for i, k in zip(prompts, each)
    }

  @functools.cached_property
  def _decoding_params(self) -> Params:
    """The parameters for `answer`, split once where each call would do it."""
    if self.mesh is not None or not multimodal.splits_layers(self.params):
      return self.params
    return multimodal.split_layers(self.params)

  @functools.cached_property
  def _is_small(self) -> bool:
    return multimodal.is_small(self.params)

  @property
  def _room(self) -> batching.Room:
    """What the devices can take in one call."""
    devices, shards = (self.mesh.size, mesh_lib.row_shards(self.mesh)) if self.mesh else (1, 1)
    most = batching.largest_call(devices)
    return batching.Room(devices=devices, shards=shards, most=most, small=self._is_small)

  def _place(self, x: np.ndarray) -> Array | np.ndarray:
    if self.mesh is None:
      return x
    return runtime.place(x, mesh_lib.rows_sharding(self.mesh, x.shape[0]))


class _Chosen(Sequence[Picture]):
  """Some of the images, each looked at when its turn comes, so that one at a time is decoded."""

  def __init__(self, images: Sequence[Picture], rows: np.ndarray):
    self._images, self._rows = images, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Picture:
    return self._images[self._rows[i]]


def _as_group(images: Picture | Sequence[Picture] | None) -> tuple[Picture, ...]:
  if images is None:
    return ()
  return tuple(images) if isinstance(images, list | tuple) else (images,)


def _check_seed(seed: int) -> None:
  if not -(1 << 31) <= seed < 1 << 31:
    raise UserError(f"seed {seed}: expected -2**31 to 2**31 - 1")


def _rows_of(features: np.ndarray | None, which: np.ndarray) -> np.ndarray | None:
  """Returns the features of each row's images i[B,I], without the axis I if it is one; or None."""
  if not which.size:
    return None
  if features is None:
    raise ValueError("prompts with images, and no features")
  return features[which if which.shape[1] > 1 else which[:, 0]]


def _same_length(images: Sized, prompts: Sequence[str]) -> None:
  if len(images) != len(prompts):
    raise UserError(f"{len(images)} images for {len(prompts)} prompts: one each, please")
