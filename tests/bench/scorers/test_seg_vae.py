# SPDX-License-Identifier: Apache-2.0
"""The decoder of <seg> codes against the same layers in PyTorch."""

import numpy as np
import pytest

from auditdm_jax.bench.scorers import seg_vae
from auditdm_jax.core.config import UserError


def weights(seed=0, *, width=8, codes=128):
  """Random weights with the file's names; the widths halve as they do in the file."""
  rng = np.random.default_rng(seed)
  shapes = {"decoder.0": (width, 6, 1, 1), "decoder.12": (1, width // 8, 1, 1)}
  for i in (2, 3):
    for j, size in ((0, 3), (2, 3), (4, 1)):
      shapes[f"decoder.{i}.net.{j}"] = (width, width, size, size)
  wide = width
  for i, narrow in zip((4, 6, 8, 10), (width, width // 2, width // 4, width // 8)):
    shapes[f"decoder.{i}"] = (wide, narrow, 4, 4)
    wide = narrow
  out = {"_vq_vae._embedding": rng.normal(size=(codes, 6)).astype(np.float32)}
  for name, shape in shapes.items():
    channels = shape[1] if name in {f"decoder.{i}" for i in (4, 6, 8, 10)} else shape[0]
    out[f"{name}.weight"] = rng.normal(size=shape, scale=0.3).astype(np.float32)
    out[f"{name}.bias"] = rng.normal(size=channels, scale=0.3).astype(np.float32)
  return out


def decode_with_torch(stored, codes):
  torch = pytest.importorskip("torch")
  f = torch.nn.functional
  w = {name: torch.from_numpy(value) for name, value in stored.items()}

  def layer(function, name, x, **options):
    return function(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

  x = w["_vq_vae._embedding"][torch.from_numpy(codes).long()]
  x = x.reshape(len(codes), 4, 4, -1).permute(0, 3, 1, 2)
  x = layer(f.conv2d, "decoder.0", x).relu()
  for i in (2, 3):
    y = layer(f.conv2d, f"decoder.{i}.net.0", x, padding=1).relu()
    y = layer(f.conv2d, f"decoder.{i}.net.2", y, padding=1).relu()
    x = x + layer(f.conv2d, f"decoder.{i}.net.4", y)
  for i in (4, 6, 8, 10):
    x = layer(f.conv_transpose2d, f"decoder.{i}", x, stride=2, padding=1).relu()
  return layer(f.conv2d, "decoder.12", x)[:, 0].numpy()


def test_masks_as_in_torch(tmp_path):
  stored = weights()
  np.savez(tmp_path / "vae.npz", **stored)
  codes = np.random.default_rng(1).integers(0, 128, (70, 16)).astype(np.int32)
  drawn = seg_vae.load(tmp_path / "vae.npz")(codes)
  assert drawn.shape == (70, 64, 64) and drawn.dtype == np.float32
  np.testing.assert_allclose(drawn, decode_with_torch(stored, codes), atol=1e-4)


def test_files_that_are_not_the_decoder(tmp_path):
  path = tmp_path / "vae.npz"
  with pytest.raises(UserError, match="no file; masks are scored with big_vision's vae-oid.npz"):
    seg_vae.load(path)
  path.write_bytes(b"no zip")
  with pytest.raises(UserError, match="not the decoder of <seg> codes"):
    seg_vae.load(path)
  np.savez(path, **{"decoder.0.bias": np.zeros(3)})
  with pytest.raises(UserError, match="not the decoder of <seg> codes"):
    seg_vae.load(path)
  np.savez(path, **weights(codes=64))
  with pytest.raises(UserError, match="64 codes, not 128"):
    seg_vae.load(path)
