# SPDX-License-Identifier: Apache-2.0
"""PaliGemma checkpoints of big_vision: where they are, what their names mean, what they imply.

Our tree is big_vision's, so most names map to themselves. What differs is taken care of here:

    params/img/…, opt/target/img/…             without the prefix
    img/Transformer/encoderblock_7/…           one array per layer, of an unscanned model: stacked
    llm/layers/7/…
    llm/layers/attn/qkv_einsum/w [L,3,N,D,H]   as many kv-heads as heads: q_einsum and kv_einsum
    hf_rows/llm/embedder/input_embedding       rows that Hugging Face adds to a full vocabulary

The last is ours. big_vision's loader takes what is below params/ and leaves the rest of an npz, so
that its trainers see the vocabulary they know, and a model from Hugging Face is itself again after
the way back.

A checkpoint has no config. Sizes are read off the shapes; what no shape tells is what big_vision
sets for the Gemma whose shapes they are (models/ppp/gemma.py).
"""

from collections.abc import Mapping
import dataclasses
import logging
import pathlib
import re
from typing import Any

import numpy as np
import scipy.ndimage

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.models import gemma, leaves, siglip, tensor_files
from auditdm_jax.models.leaves import Index, Leaf
from auditdm_jax.models.multimodal import VlmConfig

_PREFIXES = ("params/", "opt/target/")
_LAYER = re.compile(r"(img/Transformer/encoderblock|llm/layers)[_/](\d+)/(.+)")
_QKV, _Q, _KV = (f"llm/layers/attn/{name}_einsum/w" for name in ("qkv", "q", "kv"))
_EMBEDDING = "llm/embedder/input_embedding"
_ADDED = f"hf_rows/{_EMBEDDING}"
_HEAD = "llm/embedder/output_embedding"  # Only in a model whose head is not tied.
_POSITIONS = "img/pos_embedding"
VOCAB = 256_000 + 1024 + 128  # Gemma's pieces, <loc0000> to <loc1023>, <seg000> to <seg127>.
# The sizes (D, N, H) whose queries are scaled by (D/N)**-0.5: Gemma 2 27B.
_SCALED_BY_WIDTH = {(4608, 32, 128)}
# Of our config, what is not in big_vision's model but in its config, or about computing.
_FREE = {
  "vocab_size",
  "query_scale",
  "window",
  "layer_is_local",
  "attn_softcap",
  "final_softcap",
  "post_norm_init",
  "embed_init_std",
  "dtype",
  "remat",
  "unroll",
}


def find(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the npz file or the folder of arrays that `path` means; None if it means neither.

  A folder of arrays can be named by itself, by its name without the step, as big_vision does, or
  by the folder that it is in.

  Raises:
    UserError: it names a checkpoint that is not complete.
  """
  if path.is_file():
    return path if path.suffix == ".npz" else None
  for base in (path, path / "checkpoint.bv"):
    last = base.with_name(f"{base.name}-LAST")
    if last.is_file():
      folder = base.with_name(f"{base.name}-{last.read_text(encoding='utf-8').strip()}")
      if not folder.is_dir():
        raise UserError(f"{last}: names {folder.name}, which is not there")
      return folder
  if path.is_dir() and any(p.name.startswith("params~") for p in path.iterdir()):
    return path
  return None


def read(path: pathlib.Path, dtype: Any = None) -> dict[str, Leaf]:
  """Reads what `find` found, as leaves of our tree, with added rows still by themselves.

  Args:
    path: the file or folder.
    dtype: see `to_ours`.

  Raises:
    UserError: it cannot be read, or its names do not make a tree.
  """
  if path.is_file():
    tensors = tensor_files.read_npz(path)
  else:
    tensors = tensor_files.read_zarr_folders(path, prefix=_PREFIXES[0])
  return to_ours(tensors, dtype)


def to_ours(tensors: Mapping[str, Leaf], dtype: Any = None) -> dict[str, Leaf]:
  """Renames, stacks and splits arrays of big_vision to leaves of our tree.

  Layers in several dtypes are cast to `dtype`; None refuses them. Added rows keep their name, and
  `join` appends them to the others once the sizes are known.
  """
  added = {k: v for k, v in tensors.items() if k == _ADDED}
  tensors = {k: v for k, v in tensors.items() if k not in added}
  for prefix in _PREFIXES:
    if any(name.startswith(prefix) for name in tensors):
      # Besides the parameters, a trainer keeps its optimizer and its clock.
      tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
      break
  out: dict[str, Leaf] = {}
  layers: dict[str, dict[int, Leaf]] = {}
  for name, leaf in tensors.items():
    if match := _LAYER.fullmatch(name):
      layers.setdefault(f"{match[1]}/{match[3]}", {})[int(match[2])] = leaf
    else:
      out[name] = leaf
  for name, parts in layers.items():
    if gap := next((i for i in range(len(parts)) if i not in parts), None):
      raise UserError(f"{parts[max(parts)].source}: layer {max(parts)}, but there is no {gap}")
    out[name] = leaves.stack([parts[i] for i in sorted(parts)], dtype)
  if _QKV in out:
    out[_Q], out[_KV] = _split(out.pop(_QKV))
  return {name: out[name] for name in sorted(out)} | added


def join(tree: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Returns the tree with added rows at the end of the embedding, if there are any.

  Raises:
    UserError: they are not as wide as the embedding.
  """
  tree = dict(tree)
  added = tree.pop(_ADDED, None)
  if added is None or _EMBEDDING not in tree:
    return tree
  table = tree[_EMBEDDING]
  if len(added.shape) != 2 or added.shape[1:] != table.shape[1:]:
    raise UserError(f"{added.source}: expected (rows, {table.shape[-1]}), got {added.shape}")
  tree[_EMBEDDING] = _append(table, leaves.cast(added, table.dtype))
  return tree


def from_ours(config: VlmConfig, tree: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Names the leaves of our tree as big_vision's trainers want them, "params/…".

  The rows that Hugging Face adds to a full vocabulary, from the image token on, get a name of their
  own, which big_vision does not look at.

  Raises:
    UserError: big_vision has no such model.
  """
  _check_known(config, tree)
  out = dict(tree)
  if config.text.num_heads == config.text.num_kv_heads:
    out[_QKV] = _join(out.pop(_Q), out.pop(_KV))
  added = {}
  if config.image_token_id == VOCAB < config.text.vocab_size:
    table = out[_EMBEDDING]
    out[_EMBEDDING] = _rows(table, 0, VOCAB)
    added[_ADDED] = _rows(table, VOCAB, table.shape[0])
  return {f"params/{name}": out[name] for name in sorted(out)} | added


def _check_known(config: VlmConfig, tree: Mapping[str, Leaf]) -> None:
  """Raises a UserError for a model other than `config`; warns of what big_vision leaves out."""
  if config.kind != "paligemma" or config.vision is None:
    raise UserError(
      f"big_vision has PaliGemma only: a {config.kind} model cannot be written for it"
    )
  plain, _ = infer(tree, "the model")
  for ours, theirs in ((config.text, plain.text), (config.vision, plain.vision)):
    known = dataclasses.asdict(theirs)
    for key, value in dataclasses.asdict(ours).items():
      if key not in _FREE and value != known[key]:
        raise UserError(f"{key} is {value} in this model, and {known[key]} in big_vision")
  text = config.text
  scales = [text.head_dim**-0.5, (text.width // text.num_heads) ** -0.5]
  if text.query_scale is not None and not np.isclose(text.query_scale, scales).any():
    raise UserError(f"query_scale is {text.query_scale}, and one of {scales} in big_vision")
  if any(text.layer_is_local):
    logging.warning(
      "big_vision knows no window: it is the same model up to %d tokens only", text.window
    )


def infer(tree: Mapping[str, Leaf], source: str) -> tuple[VlmConfig, str]:
  """Returns the config that the shapes of our tree imply, and in words what was assumed.

  Raises:
    UserError: an array is missing or has another number of axes, so that the sizes are unknown.
  """

  def shape(name: str, axes: int) -> tuple[int, ...]:
    if name not in tree:
      hint = did_you_mean(name, tree)
      raise UserError(f"{source}: not a PaliGemma of big_vision, there is no {name}{hint}")
    if len(tree[name].shape) != axes:
      raise UserError(f"{source}: {name} should have {axes} axes, but is {tree[name].shape}")
    return tree[name].shape

  vocab, width = shape(_EMBEDDING, 2)
  depth, heads, _, head_dim = shape(_Q, 4)
  query = shape("img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel", 4)
  mlp = shape("img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", 3)
  patch = shape("img/embedding/kernel", 4)[0]
  patches = shape(_POSITIONS, 3)[1]
  gemma2 = "llm/layers/post_attention_norm/scale" in tree
  by_width = (width, heads, head_dim) in _SCALED_BY_WIDTH
  text = gemma.GemmaConfig(
    vocab_size=vocab,
    width=width,
    depth=depth,
    mlp_dim=shape("llm/layers/mlp/linear", 3)[1],
    num_heads=heads,
    num_kv_heads=shape(_KV, 5)[2],
    head_dim=head_dim,
    query_scale=(width // heads) ** -0.5 if by_width else head_dim**-0.5,
    # big_vision's Gemma 2 has no window: its sequences are shorter.
    attn_softcap=50.0 if gemma2 else 0.0,
    final_softcap=30.0 if gemma2 else 0.0,
    post_norms=gemma2,
  )
  side = round(patches**0.5)
  if side * side != patches:
    raise UserError(f"{source}: {_POSITIONS} has {patches} patches, which is no square")
  vision = siglip.SiglipConfig(
    width=query[1],
    depth=query[0],
    mlp_dim=mlp[2],
    num_heads=query[2],
    patch_size=patch,
    image_size=side * patch,
  )
  config = VlmConfig("paligemma", text, vision, image_token_id=vocab)
  family = (
    "PaliGemma 2 (it has post norms): softcaps 50 and 30"
    if gemma2
    else ("PaliGemma 1 (it has no post norms): no softcaps")
  )
  scale = f"queries scaled by {'(width/heads)' if by_width else 'head_dim'}**-0.5"
  return config, f"{family}, {scale}, no sliding window, images of {vision.image_size} px"


def fit(config: VlmConfig, tree: Mapping[str, Leaf]) -> tuple[VlmConfig, dict[str, Leaf]]:
  """Returns the config and the tree, made to fit each other in the two things that may differ.

  Position embeddings of another resolution are resampled. A full vocabulary may lack the rows that
  Hugging Face has added, from the image token on; where they are given, they are `join`ed.
  """
  tree = join(tree)
  positions = tree.get(_POSITIONS)
  if config.vision is not None and positions is not None and len(positions.shape) == 3:
    tree[_POSITIONS] = _resize_positions(positions, config.vision.num_patches)
  if _EMBEDDING in tree and tree[_EMBEDDING].shape[0] >= VOCAB == config.image_token_id:
    rows = tree[_EMBEDDING].shape[0]
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=rows))
  return config, tree


def with_image_token(
  config: VlmConfig, tree: Mapping[str, Leaf]
) -> tuple[VlmConfig, dict[str, Leaf]]:
  """Returns config and tree with a row for the image token, as Hugging Face's models have.

  As there, rows are added up to a multiple of 64.
  """
  rows = 64 * (config.image_token_id // 64 + 1)
  config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=rows))
  return config, dict(tree) | {k: _grow(tree[k], rows) for k in (_EMBEDDING, _HEAD) if k in tree}


def _resize_positions(leaf: Leaf, patches: int) -> Leaf:
  """Resamples as big_vision does, models/vit.py: bilinear, corners on corners."""
  if leaf.shape[1] == patches:
    return leaf
  old, new = (round(n**0.5) for n in (leaf.shape[1], patches))
  if old * old != leaf.shape[1]:
    raise UserError(f"{leaf.source}: {leaf.shape[1]} patches are no square")

  def read(index: Index) -> np.ndarray:
    # fp32: scipy knows no bf16.
    grid = leaf.whole().astype(np.float32).reshape(old, old, -1)
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return grid.reshape(1, patches, -1).astype(leaf.dtype)[index]

  return Leaf((1, patches, leaf.shape[2]), leaf.dtype, read, leaf.source)


def _rows(leaf: Leaf, first: int, last: int) -> Leaf:
  """Returns rows `first` to `last` - 1 of a matrix."""

  def read(index: Index) -> np.ndarray:
    return leaf.read((slice(first + index[0].start, first + index[0].stop), index[1]))

  return dataclasses.replace(leaf, shape=(last - first, *leaf.shape[1:]), read=read)


def _append(leaf: Leaf, added: Leaf) -> Leaf:
  """Returns a matrix with the rows of both."""
  old = leaf.shape[0]

  def read(index: Index) -> np.ndarray:
    first, last = index[0].start, index[0].stop
    upper = leaf.read((slice(min(first, old), min(last, old)), index[1]))
    lower = added.read((slice(max(first - old, 0), max(last - old, 0)), index[1]))
    return np.concatenate([upper, lower])

  return dataclasses.replace(leaf, shape=(old + added.shape[0], *leaf.shape[1:]), read=read)


def _grow(leaf: Leaf, rows: int) -> Leaf:
  """Returns the embedding or the head with more rows, each the mean of the rows there are.

  The logit of such a row is the mean of the others, so it is never the largest.
  """
  old, width = leaf.shape

  def read(index: Index) -> np.ndarray:
    first, last = index[0].start, index[0].stop
    given = leaf.read((slice(min(first, old), min(last, old)), index[1]))
    if last <= old:
      return given
    total = sum(piece.astype(np.float64).sum(0) for piece in leaf.pieces())
    mean = (total / old).astype(leaf.dtype)[index[1]]
    return np.concatenate([given, np.tile(mean, (last - max(first, old), 1))])

  return Leaf((rows, width), leaf.dtype, read, leaf.source)


def _split(qkv: Leaf) -> tuple[Leaf, Leaf]:
  """[L,3,N,D,H] to [L,N,D,H] and [L,2,N,D,H]."""
  depth, _, *rest = qkv.shape

  def read_q(index: Index) -> np.ndarray:
    return qkv.read((index[0], slice(0, 1), *index[1:]))[:, 0]

  def read_kv(index: Index) -> np.ndarray:
    return qkv.read((index[0], slice(index[1].start + 1, index[1].stop + 1), *index[2:]))

  return (
    Leaf((depth, *rest), qkv.dtype, read_q, qkv.source),
    Leaf((depth, 2, *rest), qkv.dtype, read_kv, qkv.source),
  )


def _join(q: Leaf, kv: Leaf) -> Leaf:
  """Returns the inverse of `_split`."""
  depth, *rest = q.shape

  def read(index: Index) -> np.ndarray:
    layers, part, *other = index
    both = (slice(0, 2), *other)
    whole = np.concatenate([q.read((layers, *other))[:, None], kv.read((layers, *both))], axis=1)
    return whole[:, part]

  return Leaf((depth, 3, *rest), q.dtype, read, q.source)
