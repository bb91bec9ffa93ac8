# SPDX-License-Identifier: Apache-2.0
"""How rows are cut into calls of a `Vlm`, and the few shapes that calls are padded to.

`plan` reads the same numbers to compile what a run calls.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from auditdm_jax.models import siglip
from auditdm_jax.models.multimodal import VlmConfig

MAX_BATCH = 256  # Rows of one program; more are cut into several calls.
MAX_BATCH_CPU = 64  # More leave its caches: 256 tiny rows take 1.6 times as long as 4 x 64.
MEMORY = 1 << 32  # Bytes of a device that one call's activations and cache may take, roughly.
# A model of fewer parameters is padded to _MIN_BATCH rows: for it, compiling costs more than rows.
SMALL = 1 << 24
_MIN_BATCH = 8
_LENGTH_MULTIPLE = 8


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
  config: VlmConfig, longest: int, *, new: int, images: int, devices: int, most: int
) -> int:
  """Returns how many prompts of up to `longest` tokens `Vlm.answer` answers at once."""
  # The cache of all layers, the attention of one, and the features; 4 bytes each.
  need = 2 * config.text.depth * config.text.num_kv_heads * config.text.head_dim * (longest + new)
  need += config.text.num_heads * longest**2
  if images:
    need += images * config.tower.num_patches * config.tower.width
  return _fitting_rows(4 * need, devices, most)


def _fitting_rows(row_bytes: int, devices: int, most: int) -> int:
  """Returns the power of two, up to `most`, of rows that fit into the devices' memory."""
  fit = max(1, MEMORY * devices // row_bytes)
  return min(most, 1 << (fit.bit_length() - 1))


def padded_length(length: int) -> int:
  """Returns the length that prompts are padded to: few lengths, none an eighth too long."""
  step = max(_LENGTH_MULTIPLE, 1 << length.bit_length() >> 4)
  return -(-length // step) * step


def is_small(params: Any) -> bool:
  """Whether compiling a program of this model costs more than rows of padding."""
  return sum(x.size for x in jax.tree.leaves(params)) < SMALL


def bucket(n: int, *, small: bool) -> int:
  """Returns the power of two that n rows are padded to; `small`: the model's size is."""
  return max(_MIN_BATCH if small else 1, 1 << (n - 1).bit_length())


def pad_rows(x: np.ndarray, n: int) -> np.ndarray:
  """Pads to n rows by repeating the last, which stops when its twin stops."""
  return np.concatenate([x, np.repeat(x[-1:], n - len(x), axis=0)]) if len(x) < n else x


def cut(rows: np.ndarray, most: int) -> list[np.ndarray]:
  """Cuts rows into pieces of at most `most`, none of them empty."""
  return np.split(rows, range(most, len(rows), most)) if len(rows) else []


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
  config: VlmConfig,
  lengths: Sequence[int],
  *,
  images: Sequence[int],
  new: int,
  devices: int,
  most: int,
) -> Iterator[list[int]]:
  """Cuts rows into calls: each has rows of one number of images, and long rows go with long ones.

  A call is padded only to the longest of its rows.

  Args:
    config: the model's architecture.
    lengths: tokens of each row's prompt.
    images: how many images each row has.
    new: the longest answer, in tokens.
    devices: see `rows_per_call`.
    most: see `rows_per_call`.
  """
  for count in sorted(set(images)):
    rows = [i for i, n in enumerate(images) if n == count]
    longest = max(lengths[i] for i in rows)
    rows.sort(key=lambda i: lengths[i])
    fit = rows_per_call(config, longest, new=new, images=count, devices=devices, most=most)
    for part in cut(np.array(rows), fit):
      yield part.tolist()
