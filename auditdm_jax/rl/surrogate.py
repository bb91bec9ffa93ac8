# SPDX-License-Identifier: Apache-2.0
"""A small net that guesses which questions are finds, so that those are asked.

The net sees the words of a question and features of its image, and learns from the verdicts of the
models; it never sees an oracle. The words attend to the cells of the image, since a failure is
often about what lies where. Who chooses by it: `rl.picking` in training. Ours; the paper answers
everything that is sampled.

It sees the image through a frozen tower, and computes the same on every process: it is small, so
none of it is shared out. Nothing in it scatters, so that a GPU gives the same bits twice.

Axes: N questions, P cells, Dv features of a cell; words have slots.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import io
import math
import re
from typing import Any
import zlib

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from auditdm_jax.core import streams, tree
from auditdm_jax.core.config import UserError, check

Look = Callable[[Sequence[str]], np.ndarray]  # image ids -> f32[N,patches,Dv] of a frozen tower.

_WORD = re.compile(r"\w+")
_SLOTS = 64  # Words, then pairs of neighbours; what is beyond is not read.
_ROWS = 256  # Questions that are scored at a time.
_IMAGES = 32  # Images that are looked at at a time: Gemma 3's patches of one take 19 MB.


@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
  """The surrogate, and what it may choose from; off by default, as in the paper.

  Attributes:
    proposals: first turns that are sampled for each group; 0 = off, whatever the rest says.
    prompts: prompts that are sampled for each one that is asked, in each strategy. Kept are those
      whose picks hold the most finds by the net's word, and a quarter by lot.
    untrained: of the proposals, those that the auditor before training writes, in a later round the
      one that the round began with: it still asks what training has narrowed. The learner weighs
      their reward by `grpo.tis_cap`, as of another policy; KL penalty and entropy bonus act on them
      as on all others, which pulls the auditor back.
    random: proposals of a group that are drawn by lot. What is never asked gets no verdict, and a
      malformed reply has its price only here.
    least: verdicts before it chooses; until then distinct ones are drawn by lot.
    memory: latest verdicts that it learns from. The features of their images are kept: at most
      37 kB for each with a tower as wide as SigLIP So400m.
    fits: updates of the net after each step; each takes `batch` verdicts.
    batch: a quarter of it are finds, weighted back to their share.
    lr: AdamW's learning rate.
    weight_decay: its weight decay.
    width: of the net.
    heads: of its attention.
    buckets: that words are hashed to.
    cells: rows and columns of the grid of image features, averaged if there are more.
    reader: folder of a model that reads each question with its image, or "auditor", the one before
      training. `rl.neighbours` then takes the place of the net, and of all this only `proposals`,
      `prompts`, `random`, `least` and `memory` say something. "" = the net.
    near: width of the kernel in the reader's states, in cosines.
  """

  proposals: int = 0
  prompts: int = 1
  untrained: int = 0
  random: int = 2
  least: int = 200
  memory: int = 20_000
  fits: int = 20
  batch: int = 256
  lr: float = 3e-3
  weight_decay: float = 1e-3
  width: int = 96
  heads: int = 4
  buckets: int = 512
  cells: int = 4
  reader: str = ""
  near: float = 0.05

  def __post_init__(self):
    check(vars(self), "surrogate", "proposals", "untrained", "random", "fits", least=0)
    check(vars(self), "surrogate", "prompts", "least", "memory", least=1)
    check(vars(self), "surrogate", "width", "heads", "cells", least=1)
    check(vars(self), "surrogate", "batch", least=4)
    check(vars(self), "surrogate", "buckets", least=2, below=2**16)
    check(vars(self), "surrogate", "lr", "near", above=0)
    check(vars(self), "surrogate", "weight_decay", least=0)
    if 0 < self.proposals <= self.untrained:
      raise UserError(
        f"surrogate.untrained={self.untrained}: must be below surrogate.proposals={self.proposals},"
        " of which these are"
      )
    if self.width % self.heads:
      raise UserError(f"surrogate.width={self.width}: not a multiple of heads={self.heads}")


class _Kernel(nn.Module):
  """The kernel f32[in,heads,D/heads] of a projection to heads, without the projection."""

  heads: int

  @nn.compact
  def __call__(self, width: int) -> Array:
    def drawn(key: Array) -> Array:
      flat = nn.initializers.lecun_normal()(key, (width, width))
      return flat.reshape(width, self.heads, width // self.heads)

    return self.param("kernel", drawn)


class SurrogateNet(nn.Module):
  """Logits f32[N] of being a find, from counts of words f32[N,buckets] and cells f[N,P,Dv].

  Keys and values are never made: the words' queries go through the kernel of the keys, and what
  they see through that of the values, which is a product per question and not one per cell.
  """

  config: SurrogateConfig

  @nn.compact
  def __call__(self, counts: Array, cells: Array) -> Array:
    c, d = self.config, self.config.width
    read = counts.sum(1, keepdims=True)
    text = nn.Dense(d, use_bias=False, name="words")(counts) / jnp.sqrt(jnp.maximum(read, 1))
    place = self.param("place", nn.initializers.normal(0.1), (cells.shape[1], d))
    x = nn.Dense(d, name="cells")(nn.LayerNorm(name="norm")(cells.astype(jnp.float32))) + place
    query = nn.DenseGeneral((c.heads, d // c.heads), name="query")(text)
    # A bias of the keys would add the same to the weights of all cells.
    query = jnp.einsum("nhe,dhe->nhd", query, _Kernel(c.heads, name="key")(d))
    weights = jnp.einsum("nhd,npd->nhp", query, x) / math.sqrt(d // c.heads)
    seen = jnp.einsum("nhp,npd->nhd", jax.nn.softmax(weights, axis=-1), x)
    seen = jnp.einsum("nhd,dhe->nhe", seen, _Kernel(c.heads, name="value")(d))
    seen = seen.reshape(len(text), d) + self.param("value_bias", nn.initializers.zeros, (d,))
    image = jnp.concatenate([seen, x.mean(1), x.max(1)], axis=-1)
    sums = nn.relu(nn.Dense(d, name="text_sum")(text) + nn.Dense(d, name="image_sum")(image))
    products = nn.Dense(d, name="text_product")(text) * nn.Dense(d, name="image_product")(image)
    return (nn.Dense(1, name="of_sums")(sums) + nn.Dense(1, name="of_products")(products))[..., 0]


class Surrogate:
  """The net, its optimiser, and the verdicts that it learns from."""

  def __init__(self, config: SurrogateConfig, *, look: Look, seed: int):
    """Takes what the net sees of images, and the seed of the run."""
    self.config, self._look, self._seed = config, look, seed
    self._cells: dict[str, np.ndarray] = {}  # f16[P,Dv] by image, the latest last
    self._words = np.zeros((0, _SLOTS), np.uint16)
    self._images: list[str] = []
    self._found = np.zeros(0, bool)
    self._net = SurrogateNet(config)
    self._tx = optax.adamw(config.lr, weight_decay=config.weight_decay)
    self._params: Any = None
    self._optimizer: Any = None
    self._logits = jax.jit(lambda params, *row: self._net.apply({"params": params}, *row))
    self._update = jax.jit(self._updated, donate_argnums=(0, 1))

  @property
  def ready(self) -> bool:
    """Whether it has seen enough to choose."""
    return self._params is not None and len(self._found) >= self.config.least

  def observe(self, questions: Sequence[str], images: Sequence[str], found: Sequence[bool]) -> None:
    """Remembers what became of questions about images, by id."""
    keep = self.config.memory
    self._words = np.concatenate([self._words, self._read(questions)])[-keep:]
    self._images = [*self._images, *images][-keep:]
    self._found = np.concatenate([self._found, np.asarray(found, bool)])[-keep:]

  def fit(self, *of: int | str) -> None:
    """Learns from what it remembers; `of` names the random numbers, such as a step."""
    if not len(self._found):
      return
    seen = self._see(self._images)
    if self._params is None:
      self._init(seen[self._images[0]])
    for i in range(self.config.fits):
      rows, weight = self._draw(streams.rng(self._seed, "surrogate", *of, i))
      cells = np.stack([seen[self._images[r]] for r in rows])
      batch = (self._counts(self._words[rows]), cells, self._found[rows], weight)
      self._params, self._optimizer = self._update(self._params, self._optimizer, *batch)

  def predict(self, questions: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """Returns f32[N]: the probability that each question about an image is a find.

    It says the same of all, their share so far, until it has learned from enough.
    """
    if not self.ready:
      return np.full(len(questions), self._found.mean() if len(self._found) else 0.5, np.float32)
    words, out = self._read(questions), []
    for start in range(0, len(questions), _ROWS):
      ids = list(images[start : start + _ROWS])
      seen = self._see(ids)
      rows = np.resize(np.arange(len(ids)), _ROWS)  # One static shape.
      cells = np.stack([seen[i] for i in ids])[rows]
      counts = self._counts(words[start : start + _ROWS][rows])
      logits = self._logits(self._params, counts, cells)
      out.append(np.asarray(jax.nn.sigmoid(logits))[: len(ids)])
    return np.concatenate(out) if out else np.zeros(0, np.float32)

  def flops(self, questions: int, *, fits: int) -> float:
    """Floating-point operations of scoring questions and of updates: two for each product."""
    c, cells = self.config, self.config.cells**2
    one = 2.0 * c.width * (c.width * (cells + 11) + 2 * c.heads * cells + c.buckets)
    return one * (questions + 3 * fits * c.batch)

  # ------------------------------------------------------------------------------- checkpoints

  def state(self) -> dict[str, Any]:
    """For the checkpoint; survives JSON bit for bit."""
    arrays = {"words": self._words, "found": self._found}
    if self._params is not None:
      arrays |= {f"params/{k}": np.asarray(x) for k, x in tree.flatten(self._params).items()}
      arrays |= {f"optimizer/{k}": np.asarray(x) for k, x in tree.flatten(self._optimizer).items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return {"arrays": base64.b64encode(file.getvalue()).decode(), "images": self._images}

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    with np.load(io.BytesIO(base64.b64decode(state["arrays"])), allow_pickle=False) as arrays:
      held = dict(arrays)
    self._words, self._found = held.pop("words"), held.pop("found")
    self._images = list(state["images"])
    self._params = self._optimizer = None
    flat = {k.removeprefix("params/"): x for k, x in held.items() if k.startswith("params/")}
    if flat:
      self._params = tree.unflatten(flat)
      like = self._tx.init(self._params)
      leaves = [held[f"optimizer/{k}"] for k in tree.flatten(like)]
      self._optimizer = jax.tree.unflatten(jax.tree.structure(like), leaves)

  # ------------------------------------------------------------------------------------ inside

  def _init(self, cells: np.ndarray) -> None:
    key = jax.random.wrap_key_data(jnp.asarray(streams.key_data(self._seed, "surrogate")))
    counts = jnp.zeros((1, self.config.buckets))
    self._params = jax.jit(self._net.init)(key, counts, jnp.asarray(cells)[None])["params"]
    self._optimizer = jax.jit(self._tx.init)(self._params)

  def _updated(self, params, optimizer, counts, cells, found, weight):
    """Parameters and optimiser after an update by rows of the memory."""

    def loss(params):
      logits = self._net.apply({"params": params}, counts, cells)
      return (weight * optax.sigmoid_binary_cross_entropy(logits, found)).mean()

    updates, optimizer = self._tx.update(jax.grad(loss)(params), optimizer, params)
    return optax.apply_updates(params, updates), optimizer

  def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an update and their weights: a quarter are finds, if there are any."""
    finds, rest = np.flatnonzero(self._found), np.flatnonzero(~self._found)
    size = self.config.batch
    wanted = size // 4 if len(finds) and len(rest) else size * bool(len(finds))
    rows = np.concatenate(
      [rng.choice(p, k) for p, k in ((finds, wanted), (rest, size - wanted)) if k]
    )
    share = np.array([len(rest), len(finds)]) / len(self._found)
    drawn = np.array([size - wanted, wanted]) / size
    weight = share / np.maximum(drawn, 1e-9)
    return rows, weight[self._found[rows].astype(int)].astype(np.float32)

  def _read(self, questions: Sequence[str]) -> np.ndarray:
    """Returns u16[N,slots] of hashed words and pairs of neighbours, 0 = none."""
    out = np.zeros((len(questions), _SLOTS), np.uint16)
    for row, question in zip(out, questions, strict=True):
      words = _WORD.findall(question.lower())
      terms = [*words, *map(" ".join, zip(words, words[1:]))][:_SLOTS]
      row[: len(terms)] = [1 + zlib.crc32(t.encode()) % (self.config.buckets - 1) for t in terms]
    return out

  def _counts(self, words: np.ndarray) -> np.ndarray:
    """Returns f32[N,buckets]: how often a row of words u16[N,slots] has each."""
    n, buckets = len(words), self.config.buckets
    places = words + buckets * np.arange(n)[:, None]
    counts = np.bincount(places.ravel(), minlength=n * buckets).reshape(n, buckets)
    counts[:, 0] = 0
    return counts.astype(np.float32)

  def _see(self, images: Iterable[str]) -> Mapping[str, np.ndarray]:
    """Returns the cells of images, and maybe of others; keeps those of the latest `memory`."""
    wanted = dict.fromkeys(images)
    missing = [i for i in wanted if i not in self._cells]
    if not missing:
      return self._cells
    found = {i: self._cells.pop(i) for i in wanted if i in self._cells}
    for start in range(0, len(missing), _IMAGES):
      ids = missing[start : start + _IMAGES]
      found |= zip(ids, coarse(self._look(ids), self.config.cells).astype(np.float16))
    kept = list((self._cells | found).items())[-self.config.memory :]
    self._cells = dict(kept)
    return found


def coarse(features: np.ndarray, side: int) -> np.ndarray:
  """Returns f32[N,P,Dv] with at most side x side patches, averaged over a grid."""
  n, patches, width = features.shape
  if patches <= side * side:
    return np.asarray(features, np.float32)
  rows = math.isqrt(patches)
  shape = (rows, rows) if rows * rows == patches else (1, patches)
  grid, out = np.asarray(features, np.float32).reshape(n, *shape, width), []
  bands = np.array_split(grid, min(side, shape[0]), axis=1)
  for band in bands:
    parts = np.array_split(band, side * side // len(bands), axis=2)
    out += [part.mean(axis=(1, 2)) for part in parts]
  return np.stack(out, axis=1)
