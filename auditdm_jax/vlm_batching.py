# SPDX-License-Identifier: Apache-2.0
"""How prompts are cut into calls of a `Vlm`, and the few shapes that calls are padded to.

A call has B rows of up to G prompts. G is a power of two, and B one too or, where there are many
rows, three times one. Where the model lets them, prompts that begin alike stand in one row, which
is prefilled once: questions about one image to a Gemma 3.

`plan` reads the same numbers to compile what a run calls.
"""

from collections.abc import Hashable, Iterator, Sequence
import dataclasses

import jax
import numpy as np

from auditdm_jax.models import siglip
from auditdm_jax.models.multimodal import VlmConfig

MAX_BATCH = 256  # Rows of one program; more are cut into several calls.
MAX_BATCH_CPU = 64  # More leave its caches: 256 tiny rows take 1.6 times as long as 4 x 64.
MEMORY = 1 << 32  # Bytes of a device that one call's activations and cache may take, roughly.
# Of the calls of a small model, for which compiling costs more than rows.
_FEW_SIZES = tuple(8**k for k in range(1, 7))
_BETWEEN = 96  # From this many rows on, a size between two powers of two is worth compiling.
_LENGTH_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class PromptShape:
  """A prompt, as far as it decides how calls are cut.

  Attributes:
    length: its tokens.
    images: how many images it has.
    head: how many tokens it begins with that do not see the rest, or 0 to have a row of its own.
    key: equal for equal heads about equal images.
  """

  length: int
  images: int
  head: int = 0
  key: Hashable = None


@dataclasses.dataclass(frozen=True)
class Room:
  """What devices can take in one call.

  Attributes:
    devices: how many there are.
    shards: over how many of them rows are split.
    most: prompts of one call, whatever the memory.
    small: the model's size is, see `multimodal.is_small`.
  """

  devices: int
  shards: int
  most: int
  small: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """The prompts of one call, padded by repeating some.

  Attributes:
    rows: i64[B,G], which prompts.
    heads: i64[B], how many tokens the prompts of a row share; 0 where G is 1.
  """

  rows: np.ndarray
  heads: np.ndarray


def largest_call(devices: int) -> int:
  """Returns the most rows of one call, whatever the memory, on the backend that runs here."""
  on_cpu = jax.default_backend() == "cpu"
  return devices * (min(MAX_BATCH, MAX_BATCH_CPU) if on_cpu else MAX_BATCH)


def images_per_call(vision: siglip.SiglipConfig, *, devices: int, most: int) -> int:
  """Returns how many images `Vlm.encode` sends through the tower at once."""
  # The attention of one layer, and an MLP's input and output; 4 bytes each.
  p = vision.num_patches
  heads = vision.num_heads if siglip.has_whole_scores(vision) else 1
  return _fitting_rows(4 * p * (p * heads + 2 * vision.mlp_dim), devices, most)


def rows_per_call(
  config: VlmConfig,
  longest: int,
  *,
  new: int,
  images: int,
  devices: int,
  most: int,
  prompts: int = 1,
) -> int:
  """Returns how many rows of up to `longest` tokens `Vlm.answer` answers at once.

  Args:
    config: the model's architecture.
    longest: tokens of a row: one prompt, or a head and what follows it in each prompt.
    new: the longest answer, in tokens.
    images: of a row.
    devices: how many there are.
    most: prompts of one call, whatever the memory.
    prompts: of a row.
  """
  # The cache of all layers, the attention of one, and the features; 4 bytes each.
  kept = longest + prompts * new
  need = 2 * config.text.depth * config.text.num_kv_heads * config.text.head_dim * kept
  need += config.text.num_heads * longest**2
  if images:
    need += images * config.tower.num_patches * config.tower.width
  return _fitting_rows(4 * need, devices, max(1, most // prompts))


def _fitting_rows(row_bytes: int, devices: int, most: int) -> int:
  """Returns the power of two, up to `most`, of rows that fit into the devices' memory."""
  fit = max(1, MEMORY * devices // row_bytes)
  return min(most, 1 << (fit.bit_length() - 1))


def padded_length(length: int) -> int:
  """Returns the length that prompts are padded to: few lengths, none an eighth too long."""
  step = max(_LENGTH_MULTIPLE, 1 << length.bit_length() >> 4)
  return -(-length // step) * step


def call_sizes(n: int, most: int, *, small: bool, shards: int = 1) -> list[int]:
  """Returns the rows, padding included, of the calls that n rows are cut into; the last is padded.

  They are powers of two or, from 96 on, three times one. Of a small model they are powers of eight:
  its calls are at least half full, but for one of eight rows.

  Args:
    n: rows.
    most: rows of one call.
    small: the model's size is, see `multimodal.is_small`.
    shards: over how many devices rows are split.
  """
  sizes = list[int]()
  few = [*(size for size in _FEW_SIZES if size < most), most]
  while n > 0:
    if small:
      size = max((size for size in few if size <= 2 * n), default=few[0])
    else:
      double = 1 << (n - 1).bit_length()
      between = double * 3 // 4
      fits = between >= max(n, _BETWEEN) and between % shards == 0
      size = min(most, between if fits else double)
    sizes.append(size)
    n -= size
  return sizes


def pad_rows(x: np.ndarray, n: int) -> np.ndarray:
  """Pads to n rows by repeating the last, which stops when its twin stops."""
  return np.concatenate([x, np.repeat(x[-1:], n - len(x), axis=0)]) if len(x) < n else x


def cut(rows: np.ndarray, most: int) -> list[np.ndarray]:
  """Cuts rows into pieces of at most `most`, none of them empty."""
  return np.split(rows, range(most, len(rows), most)) if len(rows) else []


def call_slices(n: int, most: int, *, small: bool, shards: int = 1) -> Iterator[tuple[slice, int]]:
  """Yields which of n rows a call has, and how many it is padded to; see `call_sizes`."""
  start = 0
  for size in call_sizes(n, most, small=small, shards=shards):
    yield slice(start, min(start + size, n)), size
    start += size


def windows(counts: Sequence[int], vision: siglip.SiglipConfig | None) -> Iterator[list[int]]:
  """Cuts rows, in order, so that the features of each piece's images fit into the memory.

  Args:
    counts: how many images each row has.
    vision: the tower that makes the features; None if no row has an image.
  """
  most = MEMORY // (4 * vision.num_patches * vision.width) if vision else len(counts)
  rows, held = [], 0
  for i, count in enumerate(counts):
    if rows and held + count > most:
      yield rows
      rows, held = [], 0
    rows.append(i)
    held += count
  yield rows


def calls(
  config: VlmConfig, prompts: Sequence[PromptShape], *, new: int, room: Room
) -> Iterator[Call]:
  """Cuts prompts into calls: each has rows of one number of images, and long rows go together.

  A call is padded only to the longest of its rows.

  Args:
    config: the model's architecture.
    prompts: what is asked.
    new: the longest answer, in tokens.
    room: of the devices.
  """
  for count in sorted({p.images for p in prompts}):
    chosen = sorted(
      (i for i, p in enumerate(prompts) if p.images == count), key=lambda i: prompts[i].length
    )
    alike: dict[Hashable, list[int]] = {}
    for i in chosen:
      alike.setdefault((prompts[i].head, prompts[i].key if prompts[i].head else i), []).append(i)
    head = padded_head(max(p.head for p in prompts if p.images == count))
    tail = padded_length(max(prompts[i].length - prompts[i].head for i in chosen))
    whole = padded_length(prompts[chosen[-1]].length)
    share = _prompts_per_row(
      config, [len(x) for x in alike.values()], head, tail, whole=whole, new=new, room=room
    )
    rows = [x[k : k + share] for x in alike.values() for k in range(0, len(x), share)]
    rows.sort(key=lambda row: prompts[row[-1]].length)
    fit = rows_per_call(
      config,
      whole if share == 1 else head + share * tail,
      new=new,
      images=count,
      devices=room.devices,
      most=room.most,
      prompts=share,
    )
    for part, size in call_slices(len(rows), fit, small=room.small, shards=room.shards):
      yield _call(rows[part], size, share, prompts)


def _prompts_per_row(
  config: VlmConfig,
  counts: Sequence[int],
  head: int,
  tail: int,
  *,
  whole: int,
  new: int,
  room: Room,
) -> int:
  """Returns the power of two of prompts in a row for which a model has the least to multiply.

  Args:
    config: the model's architecture.
    counts: how many prompts have each head.
    head: tokens of a head.
    tail: tokens of the rest.
    whole: tokens of a prompt.
    new: the longest answer, in tokens.
    room: of the devices.
  """
  text = config.text
  projections = 2 * text.head_dim * (text.num_heads + text.num_kv_heads)
  token = text.width * (projections + 3 * text.mlp_dim)
  pair = 2 * text.num_heads * text.head_dim  # Of a token and one that it sees.

  def work(share: int) -> int:
    row = whole if share == 1 else head + share * tail
    said = share * new
    rows = sum(-(-n // share) for n in counts)
    fit = max(1, room.most // share)
    sizes = call_sizes(rows, fit, small=room.small, shards=room.shards)
    # What cannot be split over the devices, each of them computes.
    rows = sum(size // (room.shards if size % room.shards == 0 else 1) for size in sizes)
    return rows * (token * (row + said) + pair * (row**2 + said * (whole + new)))

  most = min(max(counts), room.most)
  return min((1 << k for k in range((most - 1).bit_length() + 1)), key=work)


def _call(
  rows: Sequence[Sequence[int]], size: int, share: int, prompts: Sequence[PromptShape]
) -> Call:
  """Returns a call of `size` rows, of which these are the first, of at most `share` prompts."""
  full = [[*row, *[row[-1]] * (share - len(row))] for row in rows]
  full += [full[-1]] * (size - len(full))
  heads = [prompts[row[0]].head if share > 1 else 0 for row in full]
  return Call(np.array(full), np.array(heads))


def padded_head(length: int) -> int:
  """Returns the length that heads are padded to: they have few lengths, those of templates."""
  return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens i32[N,length], padded on the right, and bool[N,length] where they are valid."""
  tokens, valid = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
  for k, row in enumerate(rows):
    tokens[k, : len(row)], valid[k, : len(row)] = row, True
  return tokens, valid
