# SPDX-License-Identifier: Apache-2.0
"""The decoder of PaliGemma's `<seg>` codes: 16 codes -> a mask of 64 x 64.

The user brings the file, vae-oid.npz of big_vision's PaliGemma release. It holds the decoder of a
VQ-VAE with the names and layouts of PyTorch: an embedding per code, a convolution, two residual
blocks, four transposed convolutions and a convolution.
Source: big_vision, evaluators/proj/paligemma/transfers/segmentation.py; arXiv 2301.02229.

Axes: B masks, H and W height and width, I and O channels in and out, K kernel size.
"""

from collections.abc import Mapping
import functools
import pathlib
import zipfile

import jax
from jax import numpy as jnp
import numpy as np

from auditdm_jax.bench.scorers import boxes, masks
from auditdm_jax.core.config import UserError

SIDE = 64
_LAYOUT = ("NHWC", "OIHW", "NHWC")
_RESIDUAL, _UPSAMPLING, _LAST = (2, 3), (4, 6, 8, 10), 12
_NAMES = (
  "_vq_vae._embedding",
  *(f"decoder.{i}.{kind}" for i in (0, *_UPSAMPLING, _LAST) for kind in ("weight", "bias")),
  *(
    f"decoder.{i}.net.{j}.{kind}"
    for i in _RESIDUAL
    for j in (0, 2, 4)
    for kind in ("weight", "bias")
  ),
)


def load(path: pathlib.Path) -> masks.MaskDecoder:
  """Reads the file.

  Returns:
    i32[B, 16] -> f32[B, 64, 64].

  Raises:
    UserError: there is no file, or one that is not the decoder.
  """
  if not path.is_file():
    raise UserError(f"{path}: no file; masks are scored with big_vision's vae-oid.npz")
  try:
    with np.load(path) as stored:
      weights = {name: np.asarray(stored[name], np.float32) for name in _NAMES}
  except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: not the decoder of <seg> codes (vae-oid.npz): {error}") from error
  if weights[_NAMES[0]].shape[0] != boxes.N_CODES:
    raise UserError(f"{path}: {weights[_NAMES[0]].shape[0]} codes, not {boxes.N_CODES}")
  decode = jax.jit(functools.partial(decode_codes, jax.device_put(weights)))
  return functools.partial(_in_batches, decode)


def _in_batches(decode, codes: np.ndarray, *, size: int = 64) -> np.ndarray:
  """Decodes in batches of one shape, so that there is one compilation."""
  out = np.zeros((len(codes), SIDE, SIDE), np.float32)
  for start in range(0, len(codes), size):
    batch = codes[start : start + size]
    padded = np.zeros((size, codes.shape[1]), np.int32)
    padded[: len(batch)] = batch
    out[start : start + len(batch)] = np.asarray(decode(padded))[: len(batch)]
  return out


def decode_codes(weights: Mapping[str, jax.Array], codes: jax.Array) -> jax.Array:
  """i32[B, 16] -> f32[B, 64, 64]."""
  x = weights["_vq_vae._embedding"][codes].reshape(len(codes), 4, 4, -1)
  x = jax.nn.relu(_convolve(weights, "decoder.0", x))
  for i in _RESIDUAL:
    y = jax.nn.relu(_convolve(weights, f"decoder.{i}.net.0", x))
    y = jax.nn.relu(_convolve(weights, f"decoder.{i}.net.2", y))
    x = x + _convolve(weights, f"decoder.{i}.net.4", y)
  for i in _UPSAMPLING:
    x = jax.nn.relu(_upsample(weights, f"decoder.{i}", x))
  return _convolve(weights, f"decoder.{_LAST}", x)[..., 0]


def _convolve(weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
  """A convolution that keeps the size: f32[B, H, W, I] with weights f32[O, I, K, K]."""
  kernel = weights[f"{name}.weight"]
  pad = (kernel.shape[-1] - 1) // 2
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=_LAYOUT)
  return y + weights[f"{name}.bias"]


def _upsample(weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
  """A transposed convolution of stride 2 that doubles the size, weights f32[I, O, 4, 4].

  It is the convolution of the input with zeros between its pixels and the mirrored kernel.
  PyTorch's padding of 1 leaves 4 - 1 - 1 = 2 at each side.
  """
  kernel = jnp.flip(weights[f"{name}.weight"], (2, 3)).swapaxes(0, 1)
  y = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=_LAYOUT
  )
  return y + weights[f"{name}.bias"]
