# SPDX-License-Identifier: Apache-2.0
"""Model folders: round trips, shared towers, and errors that say what is wrong."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import gemma, siglip, weights
from auditdm_jax.models import multimodal as mm
from auditdm_jax.text.tokenizer import Tokenizer

CFG = mm.VlmConfig(
  "gemma3",
  gemma.GemmaConfig(
    vocab_size=12,
    width=8,
    depth=2,
    mlp_dim=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    window=3,
    layer_is_local=(True, False),
    qk_norm=True,
  ),
  siglip.SiglipConfig(width=8, depth=1, mlp_dim=8, num_heads=2, patch_size=4, image_size=8),
  image_token_id=8,
)
TOKENIZER = Tokenizer.word_level(["red", "blue"])
EXTRAS = {"template": "{image}<bos>{text}\n", "stop": ["<eos>"], "seed": 3}


@pytest.fixture(scope="module")
def params():
  return jax.jit(mm.init, static_argnums=0)(CFG, jax.random.key(0))


@pytest.fixture
def folder(tmp_path, params):
  weights.save(tmp_path / "model", CFG, params, TOKENIZER, EXTRAS)
  return tmp_path / "model"


def rewrite(folder, **changes):
  """Replaces tensors of a folder's file; None takes one out."""
  path = folder / "model.safetensors"
  flat = safetensors.numpy.load_file(path) | changes
  safetensors.numpy.save_file({k: v for k, v in flat.items() if v is not None}, path)


def same(a, b, **tolerance):
  assert not tree.diff(a, b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_round_trip(folder, params):
  loaded = weights.load(folder)
  assert loaded.cfg == CFG and loaded.extras == EXTRAS
  same(loaded.params, params, rtol=0)
  assert Tokenizer.from_file(folder / "tokenizer.json").encode("red blue") == [10, 11]
  assert {p.name for p in folder.iterdir()} == {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
  }


@pytest.mark.parametrize("dtype, rtol", [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_short_dtypes_come_back_as_float32(tmp_path, folder, params, dtype, rtol):
  weights.save(tmp_path / "short", CFG, params, TOKENIZER, EXTRAS, dtype=dtype)
  loaded = weights.load(tmp_path / "short")
  same(loaded.params, params, rtol=rtol, atol=1e-4)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(loaded.params))
  full, short = ((f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "short"))
  assert short < 0.75 * full


def test_shared_tower(tmp_path, params):
  weights.save_tower(tmp_path / "siglip", CFG.vision, params)
  extras = EXTRAS | {"tower": "../siglip"}
  weights.save(tmp_path / "model", CFG, params, TOKENIZER, extras)
  own = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
  assert {k for k in own if k.startswith("img/")} == {
    "img/head/soft_embedding_norm/scale",
    "img/head/input_projection/w",
  }
  loaded = weights.load(tmp_path / "model")
  same(loaded.params, params, rtol=0)
  assert loaded.extras == extras
  vision, tower = weights.load_tower(tmp_path / "siglip")
  assert vision == CFG.vision and "head" not in tower["img"]


@pytest.mark.parametrize("tower", ["/etc", "../../siglip", "../.."])
def test_a_tower_outside_the_parent_folder_is_refused(tmp_path, params, tower):
  extras = EXTRAS | {"tower": tower}
  with pytest.raises(UserError, match="not a relative path inside"):
    weights.save(tmp_path / "a" / "model", CFG, params, TOKENIZER, extras)
  weights.save(tmp_path / "a" / "model", CFG, params, TOKENIZER, EXTRAS)
  config = tmp_path / "a" / "model" / "config.json"
  config.write_text(json.dumps(json.loads(config.read_text()) | {"tower": tower}))
  with pytest.raises(UserError, match="not a relative path inside"):
    weights.load(tmp_path / "a" / "model")


def test_a_tower_of_other_sizes_is_refused(tmp_path, params):
  # Four heads instead of two: no shape of the merged tensors but of q, k, v would say so.
  other = dataclasses.replace(CFG.vision, num_heads=4)
  weights.save_tower(tmp_path / "siglip", other, params)
  extras = EXTRAS | {"tower": "../siglip"}
  weights.save(tmp_path / "model", CFG, params, TOKENIZER, extras)
  with pytest.raises(UserError, match="num_heads=4"):
    weights.load(tmp_path / "model")


def test_wrong_tensors_are_named(folder):
  rewrite(folder, **{"llm/final_norm/scale": None, "llm/final_norm/scales": np.zeros(8)})
  with pytest.raises(UserError) as e:
    weights.load(folder)
  assert "missing llm/final_norm/scale (8,)  nearest llm/final_norm/scales" in str(e.value)
  assert "unused  llm/final_norm/scales" in str(e.value)


def test_wrong_shapes_are_named(folder):
  rewrite(folder, **{"img/pos_embedding": np.zeros((1, 9, 8), np.float32)})
  with pytest.raises(UserError, match=r"img/pos_embedding: expected \(1, 4, 8\), got \(1, 9, 8\)"):
    weights.load(folder)


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("config.json", None, "no config.json"),
    ("config.json", b"{", "not JSON"),
    ("config.json", b"[]", "format is None"),
    ("config.json", b'{"format": "auditdm-9"}', "format is 'auditdm-9'"),
    ("config.json", b'{"format": "auditdm-1"}', "no 'model'"),
    ("config.json", b'{"format": "auditdm-1", "model": {"kind": "x"}}', "model"),
    ("model.safetensors", None, "no such file"),
    ("model.safetensors", b"\x80\x04pickle", "not a whole safetensors file"),
  ],
)
def test_broken_folders_are_explained(folder, name, content, message):
  if content is None:
    (folder / name).unlink()
  else:
    (folder / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    weights.load(folder)


def test_torn_weights_are_refused(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match="not a whole safetensors file"):
    weights.load(folder)


def test_saving_refuses_what_could_not_be_loaded(tmp_path, params):
  broken = {"img": params["img"], "llm": {k: v for k, v in params["llm"].items() if k != "layers"}}
  with pytest.raises(UserError, match="missing llm/layers"):
    weights.save(tmp_path / "m", CFG, broken, TOKENIZER, EXTRAS)
  huge = jax.tree.map(lambda x: x + 1e6, params)
  with pytest.raises(UserError, match="not finite in float16"):
    weights.save(tmp_path / "m", CFG, huge, TOKENIZER, EXTRAS, dtype="float16")
  with pytest.raises(UserError, match="'int8' is not one of"):
    weights.save(tmp_path / "m", CFG, params, TOKENIZER, EXTRAS, dtype="int8")
  with pytest.raises(UserError, match="extras cannot hold"):
    weights.save(tmp_path / "m", CFG, params, TOKENIZER, {"model": 1})
  assert not (tmp_path / "m" / "config.json").exists()
