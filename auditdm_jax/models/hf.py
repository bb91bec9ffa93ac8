# SPDX-License-Identifier: Apache-2.0
"""The tensors of a Hugging Face checkpoint as parameters, and back, without reading them.

One table says which tensors a parameter is made of, with the axes of both:

    llm/layers/attn/q_einsum/w   layers.{}.self_attn.q_proj.weight   "(n h) d -> n d h"

A parameter with "{}" in its tensors' names has a leading layer axis, one with two tensors an axis
of two after it. Every tensor is used once and every parameter made, or there is an error.

Axes: v vocabulary, d width, f ffn, n heads, k kv-heads, h head dim of the decoder; e width, g ffn,
m heads, j head dim, p patches, x and y pixels of a patch, c colours of the tower; q, o, s, t of its
pooling head, three widths, a width and ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import difflib
import math
import re
from typing import Any

import numpy as np

from auditdm_jax.core.config import UserError
from auditdm_jax.models import leaves as leaves_lib
from auditdm_jax.models.leaves import Index, Leaf
from auditdm_jax.models.multimodal import VlmConfig

_EMBEDDING = "embed_tokens.weight"
_FIRST = "layers.0.input_layernorm.weight"  # Of every decoder, and of no tower.
_PATCHES = "embeddings.patch_embedding.weight"
_HEAD = "lm_head.weight"
_PROJECTION = re.compile(r"(.*)(?:mm_input_projection_weight|(?<=projector\.)linear\.weight)")
# Buffers that older versions saved; the model makes them from its config.
_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|embeddings\.position_ids)$")


@dataclasses.dataclass(frozen=True)
class Prefixes:
  """What the names of a checkpoint start with; the versions of transformers differ in it.

  Attributes:
    text: the decoder.
    tower: the tower.
    projector: the projector.
    head: the whole name of the head; "" if there is none, because it is tied.
    embedding: the name of the embedding behind `text`; "" if it is there as the head only.
  """

  text: str = "language_model.model."
  tower: str = "vision_tower.vision_model."
  projector: str = "multi_modal_projector."
  head: str = ""
  embedding: str = _EMBEDDING


def released_layout(config: VlmConfig) -> Prefixes:
  """Returns the layout of the released checkpoints, which every reader takes.

  transformers 5 reads it and writes another. It calls the tower `vision_tower.`, where 4.57 does
  not find it and starts from a random tower, and vLLM refuses the checkpoint.
  """
  text = "model." if config.vision is None else "language_model.model."
  head = "" if config.text.tied_head else text.removesuffix("model.") + _HEAD
  return Prefixes(text=text, head=head)


def detect_layout(names: Iterable[str], *, where: str = "checkpoint") -> Prefixes:
  """Finds the layout of a checkpoint by the names that end as only one can.

  Raises:
    UserError: there is no embedding, or there are several.
  """
  names = list(names)
  found = {}
  texts = [n.removesuffix(_EMBEDDING) for n in names if n.endswith(_EMBEDDING)]
  if not texts and any(n.endswith(_HEAD) for n in names):  # Of two tied ones, either may be there.
    texts = [n.removesuffix(_FIRST) for n in names if n.endswith(_FIRST)]
    found["embedding"] = ""
  if len(texts) != 1:
    some = ", ".join(names[:3]) or "nothing"
    raise UserError(
      f"{where}: {len(texts)} tensors are called …{_EMBEDDING}, a Gemma has one; it holds {some} …"
    )
  found["text"] = texts[0]
  for name in names:
    if name.endswith(_PATCHES):
      found["tower"] = name.removesuffix(_PATCHES)
    elif name == _HEAD or name.endswith("." + _HEAD):
      found["head"] = name
    elif match := _PROJECTION.fullmatch(name):
      found["projector"] = match[1]
  return Prefixes(**found)


def to_ours(
  config: VlmConfig, tensors: Mapping[str, Leaf], *, where: str = "checkpoint", dtype: Any = None
) -> dict[str, Leaf]:
  """Returns the parameters of a checkpoint by path; nothing is read but a head that is tied.

  Args:
    config: the model, of `hf_config.read_config`.
    tensors: the checkpoint, in any layout.
    where: the checkpoint, for errors.
    dtype: what a parameter gets whose tensors differ in dtype; None refuses it.

  Raises:
    UserError: a tensor is missing, not used, or of another shape than the config says.
  """
  layout = detect_layout(tensors, where=where)
  if not config.text.tied_head:
    layout = dataclasses.replace(layout, embedding=_EMBEDDING)
  rows = list(_rows(config, layout))
  expected = {name: row.shape_of_tensor for row in rows for name in row.names}
  used = {k: v for k, v in tensors.items() if not (_BUFFERS.search(k) and k not in expected)}
  if config.text.tied_head and layout.head and layout.embedding:
    embedding = layout.text + layout.embedding
    _check_tied(used, embedding, layout.head, where)
    expected[layout.head] = expected[embedding]
  _check(expected, used, where)
  return {row.path: row.parameter(tensors, dtype) for row in rows}


def from_ours(
  config: VlmConfig, leaves: Mapping[str, Leaf], *, where: str = "parameters"
) -> dict[str, Leaf]:
  """Returns the checkpoint's tensors by their released names; the inverse of `to_ours`.

  Args:
    config: the model.
    leaves: its parameters by path.
    where: the parameters, for errors.

  Raises:
    UserError: a parameter is missing, not used, or of another shape than the config says.
  """
  rows = list(_rows(config, released_layout(config)))
  _check({row.path: row.shape for row in rows}, leaves, where)
  out = {}
  for row in rows:
    out |= row.tensors(leaves[row.path])
  return out


@dataclasses.dataclass(frozen=True)
class _Row:
  """A parameter and the tensors it is made of.

  Attributes:
    path: path of the parameter.
    names: names of the tensors, layer by layer.
    groups: the axes of a tensor, each as the parameter's axes that are flattened into it.
    axes: those of the parameter behind the leading ones; "1" is an axis of one.
    lead: sizes of the leading axes: layers, and two where two tensors make one parameter.
    sizes: size of every axis.
  """

  path: str
  names: tuple[str, ...]
  groups: tuple[tuple[str, ...], ...]
  axes: tuple[str, ...]
  lead: tuple[int, ...]
  sizes: Mapping[str, int]

  @property
  def shape(self) -> tuple[int, ...]:
    return self.lead + tuple(self.sizes[a] for a in self.axes)

  @property
  def shape_of_tensor(self) -> tuple[int, ...]:
    return tuple(math.prod(self.sizes[a] for a in group) for group in self.groups)

  @property
  def _flat(self) -> list[str]:
    return [a for group in self.groups for a in group]

  def parameter(self, tensors: Mapping[str, Leaf], dtype: Any) -> Leaf:
    """Returns the parameter, made of the tensors when it is read."""
    parts = [self._unfold(tensors[name]) for name in self.names]
    for size in reversed(self.lead):
      parts = [leaves_lib.stack(parts[i : i + size], dtype) for i in range(0, len(parts), size)]
    return parts[0]

  def tensors(self, leaf: Leaf) -> dict[str, Leaf]:
    """Returns the tensors of a parameter, each cut out of it when it is read."""
    return {
      name: self._fold(leaf, tuple(map(int, np.unravel_index(i, self.lead))) if self.lead else ())
      for i, name in enumerate(self.names)
    }

  def _unfold(self, leaf: Leaf) -> Leaf:
    """Returns a tensor with the parameter's axes; of a flattened one it reads rows of the first."""
    kept = [a for a in self.axes if a != "1"]

    def read(index: Index) -> np.ndarray:
      want = dict(zip(self.axes, index))
      rows = []
      for first, *rest in self.groups:
        inner = math.prod(self.sizes[a] for a in rest)
        rows.append(slice(want[first].start * inner, want[first].stop * inner))
      firsts = {group[0] for group in self.groups}
      x = leaf.read(tuple(rows)).reshape(
        [want[a].stop - want[a].start if a in firsts else self.sizes[a] for a in self._flat]
      )
      x = x[tuple(slice(None) if a in firsts else want[a] for a in self._flat)]
      x = x.transpose([self._flat.index(a) for a in kept])
      return x.reshape([s.stop - s.start for s in index])

    shape = tuple(self.sizes[a] for a in self.axes)
    return Leaf(shape, leaf.dtype, read, leaf.source)

  def _fold(self, leaf: Leaf, at: tuple[int, ...]) -> Leaf:
    """Returns the tensor at the leading index `at`. Of a flattened axis, whole rows are read."""
    kept = [a for a in self.axes if a != "1"]

    def read(index: Index) -> np.ndarray:
      want, cut = {"1": slice(0, 1)}, []
      for s, (first, *rest) in zip(index, self.groups):
        inner = math.prod(self.sizes[a] for a in rest)
        want[first] = slice(s.start // inner, -(-s.stop // inner))
        want |= {a: slice(0, self.sizes[a]) for a in rest}
        cut.append(slice(s.start - want[first].start * inner, s.stop - want[first].start * inner))
      lead = tuple(slice(i, i + 1) for i in at)
      x = leaf.read(lead + tuple(want[a] for a in self.axes))
      x = x.reshape([want[a].stop - want[a].start for a in kept])
      x = x.transpose([kept.index(a) for a in self._flat])
      sizes = [math.prod(want[a].stop - want[a].start for a in group) for group in self.groups]
      return x.reshape(sizes)[tuple(cut)]

    return Leaf(self.shape_of_tensor, leaf.dtype, read, leaf.source)


def _row(path: str, names: str | tuple[str, ...], axes: str, *, depth: int, sizes) -> _Row:
  """Reads "(n h) d -> n d h"; for "{}" in the names there is a tensor per layer."""
  names = (names,) if isinstance(names, str) else names
  lead = ((depth,) if "{}" in names[0] else ()) + ((len(names),) if len(names) > 1 else ())
  names = tuple(n.format(i) for i in range(depth) for n in names) if "{}" in names[0] else names
  left, right = axes.split(" -> ")
  groups = re.findall(r"\(([^)]*)\)|(\S+)", left)
  groups = tuple(tuple((many or one).split()) for many, one in groups)
  return _Row(path, names, groups, tuple(right.split()), lead, sizes)


def _rows(config: VlmConfig, layout: Prefixes) -> Iterator[_Row]:
  yield from _text_rows(config, layout)
  if config.vision is not None:
    yield from _vision_rows(config, layout)


def _text_rows(config: VlmConfig, layout: Prefixes) -> Iterator[_Row]:
  t = config.text
  sizes = {"1": 1, "v": t.vocab_size, "d": t.width, "f": t.mlp_dim}
  sizes |= {"n": t.num_heads, "k": t.num_kv_heads, "h": t.head_dim}

  def row(path: str, names: str | tuple[str, ...], axes: str) -> _Row:
    names = (names,) if isinstance(names, str) else names
    names = tuple(n if n == layout.head else layout.text + n for n in names)
    return _row(f"llm/{path}", names, axes, depth=t.depth, sizes=sizes)

  yield row("embedder/input_embedding", layout.embedding or layout.head, "v d -> v d")
  if not t.tied_head:
    yield row("embedder/output_embedding", layout.head, "v d -> v d")
  yield row("final_norm/scale", "norm.weight", "d -> d")

  # Gemma 1 calls the norm before the MLP "post attention", which in Gemma 2 is another one.
  norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
  if t.post_norms:
    norms |= {
      "post_attention_norm": "post_attention_layernorm",
      "pre_ffw_norm": "pre_feedforward_layernorm",
      "post_ffw_norm": "post_feedforward_layernorm",
    }
  for ours, theirs in norms.items():
    yield row(f"layers/{ours}/scale", f"layers.{{}}.{theirs}.weight", "d -> d")

  q, k, v, o = (f"layers.{{}}.self_attn.{x}_proj" for x in "qkvo")
  yield row("layers/attn/q_einsum/w", f"{q}.weight", "(n h) d -> n d h")
  yield row("layers/attn/kv_einsum/w", (f"{k}.weight", f"{v}.weight"), "(k h) d -> k d h")
  yield row("layers/attn/attn_vec_einsum/w", f"{o}.weight", "d (n h) -> n h d")
  if t.attn_bias:
    yield row("layers/attn/q_einsum/b", f"{q}.bias", "(n h) -> n h")
    yield row("layers/attn/kv_einsum/b", (f"{k}.bias", f"{v}.bias"), "(k h) -> 1 1 k h")
    yield row("layers/attn/attn_vec_einsum/b", f"{o}.bias", "d -> d")
  if t.qk_norm:
    for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
      yield row(f"layers/attn/{ours}/scale", f"layers.{{}}.self_attn.{theirs}.weight", "h -> h")

  gate, up, down = (f"layers.{{}}.mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
  yield row("layers/mlp/gating_einsum", (gate, up), "f d -> d f")
  yield row("layers/mlp/linear", down, "d f -> f d")


def _vision_rows(config: VlmConfig, layout: Prefixes) -> Iterator[_Row]:
  v = config.tower
  sizes = {"1": 1, "d": config.text.width, "e": v.width, "g": v.mlp_dim, "p": v.num_patches}
  sizes |= {"m": v.num_heads, "j": v.width // v.num_heads}
  sizes |= {"x": v.patch_size, "y": v.patch_size, "c": 3}
  sizes |= {"s": 1, "t": 1, "q": 3 * v.width, "o": v.width}

  def row(path: str, name: str, axes: str, *, prefix: str = layout.tower) -> _Row:
    return _row(f"img/{path}", prefix + name, axes, depth=v.depth, sizes=sizes)

  def linear(path: str, name: str, kernel: str, bias: str, **kwargs) -> Iterator[_Row]:
    yield row(f"{path}/kernel", f"{name}.weight", kernel, **kwargs)
    yield row(f"{path}/bias", f"{name}.bias", bias, **kwargs)

  def norm(path: str, name: str) -> Iterator[_Row]:
    yield row(f"{path}/scale", f"{name}.weight", "e -> e")
    yield row(f"{path}/bias", f"{name}.bias", "e -> e")

  patches = _PATCHES.removesuffix(".weight")
  yield from linear("embedding", patches, "e c x y -> x y c e", "e -> e")
  yield row("pos_embedding", "embeddings.position_embedding.weight", "p e -> 1 p e")
  block, layer = "Transformer/encoderblock", "encoder.layers.{}"
  for i in (0, 1):
    yield from norm(f"{block}/LayerNorm_{i}", f"{layer}.layer_norm{i + 1}")
  attention = f"{block}/MultiHeadDotProductAttention_0"
  for ours in ("query", "key", "value"):
    theirs = f"{layer}.self_attn.{ours[0]}_proj"
    yield from linear(f"{attention}/{ours}", theirs, "(m j) e -> e m j", "(m j) -> m j")
  out = f"{layer}.self_attn.out_proj"
  yield from linear(f"{attention}/out", out, "e (m j) -> m j e", "e -> e")
  mlp = f"{block}/MlpBlock_0"
  yield from linear(f"{mlp}/Dense_0", f"{layer}.mlp.fc1", "g e -> e g", "g -> g")
  yield from linear(f"{mlp}/Dense_1", f"{layer}.mlp.fc2", "e g -> g e", "e -> e")
  yield from norm("Transformer/encoder_norm", "post_layernorm")
  if v.pooling_head:
    yield from _pooling_rows(row)

  if config.kind == "paligemma":
    yield from linear("head", "linear", "d e -> e d", "d -> d", prefix=layout.projector)
  else:
    yield row(
      "head/soft_embedding_norm/scale", "mm_soft_emb_norm.weight", "e -> e", prefix=layout.projector
    )
    yield row(
      "head/input_projection/w", "mm_input_projection_weight", "e d -> e d", prefix=layout.projector
    )


def _pooling_rows(row: Callable[[str, str, str], _Row]) -> Iterator[_Row]:
  """The names of `siglip.PoolingHead` are the checkpoint's."""
  for name, axes in {
    "probe": "s t e",
    "attention.in_proj_weight": "q e",
    "attention.in_proj_bias": "q",
    "attention.out_proj.weight": "e o",
    "attention.out_proj.bias": "e",
    "layernorm.weight": "e",
    "layernorm.bias": "e",
    "mlp.fc1.weight": "g e",
    "mlp.fc1.bias": "g",
    "mlp.fc2.weight": "e g",
    "mlp.fc2.bias": "e",
  }.items():
    yield row(f"pooling_head/{name}", f"head.{name}", f"{axes} -> {axes}")


def _check(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Leaf], where: str) -> None:
  """Raises for the first name that is missing, not used or of another shape."""
  missing = [k for k in expected if k not in given]
  unused = [k for k in given if k not in expected]
  if missing or unused:
    bad, others = (missing, unused or list(given)) if missing else (unused, list(expected))
    near = difflib.get_close_matches(bad[0], others[:2000], n=1, cutoff=0.5)
    shape = expected[bad[0]] if missing else given[bad[0]].shape
    what = f"no {bad[0]} {shape}" if missing else f"{bad[0]} {shape} is not used by the model"
    hint = f", the nearest {'there' if missing else 'that'} is {near[0]}" if near else ""
    more = f" (and {len(missing) + len(unused) - 1} more)" if len(missing) + len(unused) > 1 else ""
    raise UserError(f"{where}: {what}{hint}{more}")
  for name, shape in expected.items():
    if tuple(given[name].shape) != shape:
      raise UserError(f"{where}: {name}: expected {shape}, got {tuple(given[name].shape)}")


def _check_tied(tensors: Mapping[str, Leaf], embedding: str, head: str, where: str) -> None:
  """Checks that a head next to a tied embedding is its copy: one of the two is dropped."""
  a, b = tensors[embedding], tensors[head]
  same = a.shape == b.shape and all(
    np.array_equal(x, y) for x, y in zip(a.pieces(), b.pieces(), strict=True)
  )
  if not same:
    raise UserError(
      f"{where}: the config ties the head, but {head} is not a copy of {embedding}: "
      "set tie_word_embeddings to false in config.json"
    )
