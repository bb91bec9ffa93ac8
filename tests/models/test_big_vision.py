# SPDX-License-Identifier: Apache-2.0
"""big_vision's checkpoints: every form of them loads, and big_vision itself gives the same logits.

The last needs big_vision and what it imports; without them its test is skipped:

    PYTHONPATH=path/to/big_vision python -m pytest tests/models/test_big_vision.py -k unmodified
"""

import dataclasses
import json
import zipfile

import jax
from jax.experimental.array_serialization import serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import big_vision, gemma, leaves, siglip, tensor_files, variants, weights
from auditdm_jax.models import multimodal as mm

TEXT = gemma.GemmaConfig(
  vocab_size=20,
  width=16,
  depth=3,
  mlp_dim=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  query_scale=8**-0.5,
  attn_softcap=50.0,
  final_softcap=30.0,
)
VISION = siglip.SiglipConfig(16, 2, 24, 2, patch_size=4, image_size=12)
CFG = mm.VlmConfig("paligemma", TEXT, VISION, image_token_id=20)
MHA = dataclasses.replace(CFG, text=dataclasses.replace(TEXT, num_kv_heads=4))
GEMMA1 = dataclasses.replace(
  CFG, text=dataclasses.replace(TEXT, post_norms=False, attn_softcap=0.0, final_softcap=0.0)
)


def arrays_of(config, seed=0, dtype=np.float32):
  """Random parameters by path."""
  shapes = tree.flatten(jax.eval_shape(lambda k: mm.init(config, k), jax.random.key(0)))
  rng = np.random.default_rng(seed)
  return {k: (0.3 * rng.standard_normal(v.shape)).astype(dtype) for k, v in shapes.items()}


def save_npz(path, arrays, prefix=""):
  """As numpy, and so big_vision, does it: bf16 becomes |V2."""
  np.savez(path, **{prefix + k: v for k, v in arrays.items()})
  return path


def same(params, arrays):
  flat = tree.flatten(params)
  assert flat.keys() == arrays.keys()
  for path, x in arrays.items():
    assert flat[path].dtype == x.dtype and np.asarray(flat[path]).tobytes() == x.tobytes(), path


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_npz_loads_by_identity(tmp_path, prefix, dtype):
  arrays = arrays_of(CFG, dtype=dtype)
  path = save_npz(tmp_path / "x.npz", arrays, prefix)
  if dtype is ml_dtypes.bfloat16:
    assert np.load(path)[f"{prefix}img/pos_embedding"].dtype.kind == "V"
  loaded = weights.load(path)
  same(loaded.params, arrays)
  assert loaded.config == CFG
  assert loaded.extras["origin"]["format"] == "big_vision"
  assert "softcaps 50 and 30" in loaded.extras["origin"]["inferred"]


def test_what_lies_beside_the_parameters_is_left(tmp_path):
  arrays = arrays_of(CFG)
  more = {f"params/{k}": v for k, v in arrays.items()} | {"opt/0/count": np.int32(3)}
  same(weights.load(save_npz(tmp_path / "x.npz", more)).params, arrays)


def test_compressed_and_fortran_ordered_members_are_read(tmp_path):
  arrays = arrays_of(CFG)
  np.savez_compressed(tmp_path / "c.npz", **arrays)
  np.savez(tmp_path / "f.npz", **{k: np.asfortranarray(v) for k, v in arrays.items()})
  for name in ("c.npz", "f.npz"):
    same(weights.load(tmp_path / name).params, arrays)


def test_unscanned_layers_and_joint_qkv(tmp_path):
  arrays = arrays_of(MHA)
  other = {}
  q, kv = (arrays[f"llm/layers/attn/{n}_einsum/w"] for n in ("q", "kv"))
  joint = arrays | {"llm/layers/attn/qkv_einsum/w": np.concatenate([q[:, None], kv], axis=1)}
  for path, x in joint.items():
    if path.endswith(("/q_einsum/w", "/kv_einsum/w")):
      continue
    for scanned, each in (("Transformer/encoderblock/", "_{}/"), ("llm/layers/", "/{}/")):
      if scanned in path:
        names = (path.replace(scanned, scanned[:-1] + each.format(i)) for i in range(len(x)))
        other |= dict(zip(names, x))
        break
    else:
      other[path] = x
  assert "img/Transformer/encoderblock_1/LayerNorm_0/bias" in other
  assert "llm/layers/2/attn/qkv_einsum/w" in other
  loaded = weights.load(save_npz(tmp_path / "x.npz", other))
  assert loaded.config == MHA
  same(loaded.params, arrays)
  written = big_vision.from_ours(MHA, weights.open_model(tmp_path / "x.npz").tree)
  np.testing.assert_array_equal(
    written["params/llm/layers/attn/qkv_einsum/w"].whole(), joint["llm/layers/attn/qkv_einsum/w"]
  )
  parts = [slice(1, 3), slice(1, 2), slice(0, 4), slice(3, 9), slice(0, 5)]
  np.testing.assert_array_equal(
    written["params/llm/layers/attn/qkv_einsum/w"].read(tuple(parts)),
    joint["llm/layers/attn/qkv_einsum/w"][tuple(parts)],
  )
  del other["llm/layers/1/mlp/linear"]
  with pytest.raises(UserError, match="layer 2, but there is no 1"):
    weights.load(save_npz(tmp_path / "y.npz", other))


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_checkpoints_of_the_trainer(tmp_path, dtype):
  """A folder per array, as `u.tssave` writes them, with the optimizer's beside."""
  arrays = arrays_of(CFG, dtype=dtype)
  folder = tmp_path / "run" / "checkpoint.bv-000000002"
  folder.mkdir(parents=True)
  names = [f"params~{k.replace('/', '~')}" for k in arrays] + ["opt~0~0~count"]
  manager = serialization.GlobalAsyncCheckpointManager()
  manager.serialize_with_paths(
    [*map(jnp.asarray, arrays.values()), jnp.int32(2)], [str(folder / n) for n in names]
  )
  manager.wait_until_finished()
  (tmp_path / "run" / "checkpoint.bv-LAST").write_text("000000002")
  # The trainer writes down its own config, which is that of no model.
  (tmp_path / "run" / "config.json").write_text('{"lr": 1e-5}')
  for path in (folder, tmp_path / "run" / "checkpoint.bv", tmp_path / "run"):
    same(weights.load(path).params, arrays)
  leaf = weights.open_model(folder).tree["llm/layers/mlp/linear"]
  part = (slice(1, 2), slice(3, 9), slice(0, 16))
  np.testing.assert_array_equal(leaf.read(part), arrays["llm/layers/mlp/linear"][part])
  # A chunk that is gone, and one that a writer with a fill value may have left out.
  norm = folder / "params~llm~final_norm~scale"
  (norm / "0").unlink()
  with pytest.raises(UserError, match="params~llm~final_norm~scale: .*is missing"):
    weights.load(folder)
  metadata = json.loads((norm / ".zarray").read_text())
  (norm / ".zarray").write_text(json.dumps(metadata | {"fill_value": 0.0}))
  assert not np.any(weights.load(folder).params["llm"]["final_norm"]["scale"])
  (tmp_path / "run" / "checkpoint.bv-LAST").write_text("000000004")
  with pytest.raises(UserError, match="names checkpoint.bv-000000004, which is not there"):
    weights.load(tmp_path / "run")


@pytest.mark.parametrize(
  "name", ["paligemma_3b_224", "paligemma2_3b_448", "paligemma2_10b_896", "paligemma2_28b_224"]
)
def test_the_published_sizes_are_inferred(name):
  config = variants.VARIANTS[name]
  shapes = tree.flatten(jax.eval_shape(lambda k: mm.init(config, k), jax.random.key(0)))
  flat = {k: leaves.Leaf(v.shape, np.dtype("float32"), None) for k, v in shapes.items()}
  got, _ = big_vision.infer(flat, name)
  scale = config.text.query_scale or config.text.head_dim**-0.5
  text = dataclasses.replace(config.text, window=None, layer_is_local=(), query_scale=scale)
  assert got == dataclasses.replace(config, text=text)


def test_a_named_model_says_what_shapes_cannot(tmp_path):
  arrays = arrays_of(GEMMA1)
  path = save_npz(tmp_path / "x.npz", arrays)
  assert weights.load(path).config == GEMMA1
  windowed = dataclasses.replace(
    CFG, text=dataclasses.replace(TEXT, window=4, layer_is_local=(True, False, True))
  )
  path = save_npz(tmp_path / "y.npz", arrays_of(CFG))
  assert weights.load(path, model=windowed).config == windowed
  with pytest.raises(UserError, match="missing llm/layers/post_attention_norm/scale"):
    weights.load(tmp_path / "x.npz", model=CFG)


def test_another_resolution_resamples_the_positions(tmp_path):
  """Bilinear with corners on corners: a plane stays a plane, and corners stay what they are."""
  arrays = arrays_of(CFG)
  y, x = np.mgrid[0:3, 0:3]
  arrays["img/pos_embedding"][0, :, 0] = (2 * y + 5 * x).ravel()
  path = save_npz(tmp_path / "x.npz", arrays)
  loaded = weights.load(path, image_size=20)
  assert loaded.config.vision.image_size == 20 and loaded.config.num_image_tokens == 25
  grid = np.asarray(loaded.params["img"]["pos_embedding"]).reshape(5, 5, -1)
  y, x = np.mgrid[0:5, 0:5]
  np.testing.assert_allclose(grid[..., 0], y + 2.5 * x, atol=1e-5)
  old = arrays["img/pos_embedding"].reshape(3, 3, -1)
  np.testing.assert_allclose(grid[::4, ::4], old[::2, ::2], atol=1e-6)
  with pytest.raises(UserError, match="image size 3"):
    weights.load(path, image_size=3)


def test_a_row_for_the_image_token_is_never_the_likeliest():
  arrays = arrays_of(CFG)
  name = "llm/embedder/input_embedding"
  arrays[name][:, 0] = 2
  config, grown = big_vision.with_image_token(
    CFG, {k: leaves.of_array(v) for k, v in arrays.items()}
  )
  assert config.text.vocab_size == 64 and grown[name].shape == (64, 16)
  table = grown[name].whole()
  np.testing.assert_array_equal(table[:20], arrays[name])
  np.testing.assert_array_equal(grown[name].read((slice(18, 30), slice(2, 5))), table[18:30, 2:5])
  states = np.random.default_rng(1).standard_normal((100, 16))
  states[:50, 0] = -5  # Of which all logits are below 0.
  logits = states @ table.T
  assert (logits[:, :20].max(1) < 0).any()
  assert (logits[:, :20].max(1) > logits[:, 20:].max(1)).all()


FULL = dataclasses.replace(
  CFG,
  text=dataclasses.replace(TEXT, vocab_size=257_216, width=4, depth=1),
  vision=dataclasses.replace(VISION, depth=1),
  image_token_id=257_152,
)
ADDED = "hf_rows/llm/embedder/input_embedding"


def test_rows_behind_a_full_vocabulary_lie_where_big_vision_does_not_look():
  flat = {k: leaves.of_array(v) for k, v in arrays_of(FULL).items()}
  written = big_vision.from_ours(FULL, flat)
  assert [k for k in written if not k.startswith("params/")] == [ADDED]
  table = flat["llm/embedder/input_embedding"].whole()
  given = written["params/llm/embedder/input_embedding"]
  assert given.shape == (257_152, 4) and written[ADDED].shape == (64, 4)
  np.testing.assert_array_equal(given.whole(), table[:257_152])
  np.testing.assert_array_equal(written[ADDED].whole(), table[257_152:])
  np.testing.assert_array_equal(
    written[ADDED].read((slice(3, 9), slice(1, 3))), table[257_155:257_161, 1:3]
  )


@pytest.mark.parametrize("model", [None, FULL])
def test_rows_behind_a_full_vocabulary_come_back(tmp_path, model):
  arrays = arrays_of(FULL, dtype=ml_dtypes.bfloat16)
  flat = {k: leaves.of_array(v) for k, v in arrays.items()}
  tensor_files.write_npz(tmp_path / "x.npz", big_vision.from_ours(FULL, flat))
  opened = weights.open_model(tmp_path / "x.npz", model=model)
  assert opened.config.text.vocab_size == 257_216 and opened.config.image_token_id == 257_152
  table = opened.tree["llm/embedder/input_embedding"]
  want = arrays["llm/embedder/input_embedding"]
  assert table.dtype == want.dtype and table.whole().tobytes() == want.tobytes()
  for first, last in ((257_150, 257_153), (0, 3), (257_160, 257_216)):
    part = table.read((slice(first, last), slice(1, 4)))
    np.testing.assert_array_equal(part, want[first:last, 1:4])


def test_rows_of_another_width_are_refused(tmp_path):
  arrays = {f"params/{k}": v for k, v in arrays_of(CFG).items()}
  path = save_npz(tmp_path / "x.npz", arrays | {ADDED: np.zeros((64, 15), np.float32)})
  with pytest.raises(UserError, match=r"expected \(rows, 16\), got \(64, 15\)"):
    weights.load(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "gemma3"}, "has PaliGemma only"),
    ({"text": dataclasses.replace(TEXT, activation="silu")}, "activation is silu"),
    ({"text": dataclasses.replace(TEXT, rope_base=5e5)}, "rope_base is 500000"),
    ({"text": dataclasses.replace(TEXT, query_scale=0.3)}, "query_scale is 0.3"),
    ({"vision": dataclasses.replace(VISION, norm_eps=1e-5)}, "norm_eps is 1e-05"),
  ],
)
def test_models_that_big_vision_does_not_have(change, message):
  flat = {k: leaves.of_array(v) for k, v in arrays_of(CFG).items()}
  with pytest.raises(UserError, match=message):
    big_vision.from_ours(dataclasses.replace(CFG, **change), flat)


def drop(arrays, name):
  return {k: v for k, v in arrays.items() if k != name}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda a: drop(a, "llm/final_norm/scale"), "missing llm/final_norm/scale"),
    (lambda a: a | {"llm/final_norm/scal": a["llm/final_norm/scale"]}, "unused  llm/final_norm"),
    (lambda a: a | {"img/head/bias": np.zeros(3, np.float32)}, r"img/head/bias: expected \(16,\)"),
    (lambda a: drop(a, "llm/layers/mlp/linear"), "there is no llm/layers/mlp/linear"),
    (lambda a: a | {"img/pos_embedding": np.zeros((1, 7, 16))}, "7 patches, which is no square"),
    (lambda a: a | {"img/head/bias": np.arange(16)}, "img/head/bias is int64"),
    (lambda a: a | {"img/head/bias": np.array([{}] * 16)}, "holds Python objects .a pickle"),
    (lambda a: {"x": np.zeros(3)}, "not a PaliGemma of big_vision"),
  ],
)
def test_wrong_npz_files_are_explained(tmp_path, change, message):
  path = save_npz(tmp_path / "x.npz", change(arrays_of(CFG)))
  with pytest.raises(UserError, match=message):
    weights.load(path)


def test_torn_npz_files_are_explained(tmp_path):
  path = save_npz(tmp_path / "x.npz", arrays_of(CFG))
  whole = path.read_bytes()
  for content in (whole[:-100], whole[: len(whole) // 2], b"", b"\x80\x04junk"):
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.npz: not a whole npz file"):
      weights.load(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.npy", b"\x93NUMPY\x01\x00")
  with pytest.raises(UserError, match="x.npz: not a whole npz file"):
    weights.load(path)


@pytest.mark.parametrize("at, value", [(8, 1), (10, 99)], ids=["encrypted", "unknown_method"])
def test_damaged_entries_of_an_npz_are_explained(tmp_path, at, value):
  path = save_npz(tmp_path / "x.npz", {"a": np.zeros(3)})
  damaged = bytearray(path.read_bytes())
  damaged[damaged.index(b"PK\x01\x02") + at] = value
  path.write_bytes(damaged)
  with pytest.raises(UserError, match="x.npz: not a whole npz file"):
    tensor_files.read_npz(path)


def test_damage_in_an_array_of_an_npz_is_explained(tmp_path):
  header = b"{'shape': (3,".ljust(118)
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
    archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
  with pytest.raises(UserError, match="x.npz: not a whole npz file"):
    tensor_files.read_npz(tmp_path / "x.npz")
  np.savez_compressed(tmp_path / "y.npz", a=np.random.default_rng(0).standard_normal(5000))
  damaged = bytearray((tmp_path / "y.npz").read_bytes())
  damaged[len(damaged) // 2] ^= 255
  (tmp_path / "y.npz").write_bytes(damaged)
  leaf = tensor_files.read_npz(tmp_path / "y.npz")["a"]  # The header is whole.
  with pytest.raises(UserError, match="y.npz: a: cannot be read: "):
    leaf.whole()


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_numpy_reads_what_we_write(tmp_path, dtype):
  arrays = arrays_of(CFG, dtype=dtype)
  tensor_files.write_npz(tmp_path / "x.npz", {k: leaves.of_array(v) for k, v in arrays.items()})
  np.savez(tmp_path / "y.npz", **arrays)
  ours, theirs = np.load(tmp_path / "x.npz"), np.load(tmp_path / "y.npz")
  assert ours.files == theirs.files
  for name in theirs.files:
    assert ours[name].dtype == theirs[name].dtype and (
      ours[name].tobytes() == theirs[name].tobytes()
    )


# ------------------------------------------------------------------------------- big_vision itself


@pytest.mark.parametrize("config", [CFG, MHA, GEMMA1], ids=["gemma2", "as_many_kv_heads", "gemma1"])
def test_unmodified_big_vision_gives_the_same_logits(tmp_path, monkeypatch, config):
  """From one npz, both ways: it reads what we write and we read what it has made."""
  pytest.importorskip("big_vision", reason="needs big_vision on PYTHONPATH")
  bv_gemma = pytest.importorskip("big_vision.models.ppp.gemma")
  paligemma = pytest.importorskip("big_vision.models.proj.paligemma.paligemma")
  ml_collections = pytest.importorskip("ml_collections")
  t, v = config.text, config.vision
  sizes = ml_collections.ConfigDict(
    dict(
      variant="tiny",
      width=t.width,
      depth=t.depth,
      mlp_dim=t.mlp_dim,
      num_heads=t.num_heads,
      num_kv_heads=t.num_kv_heads,
      head_dim=t.head_dim,
      norm_eps=1e-6,
      vocab_size=t.vocab_size,
      final_logits_softcap=t.final_softcap,
      attn_logits_softcap=t.attn_softcap,
      post_norms=t.post_norms,
      scan=True,
      remat_policy="nothing_saveable",
    )
  )
  monkeypatch.setattr(bv_gemma, "get_config", lambda variant: sizes.copy_and_resolve_references())
  theirs = paligemma.Model(
    img=dict(
      width=v.width,
      depth=v.depth,
      mlp_dim=v.mlp_dim,
      num_heads=v.num_heads,
      pool_type="none",
      patch_size=(v.patch_size, v.patch_size),
      scan=True,
      head_zeroinit=False,
    ),
    llm=dict(variant="tiny", vocab_size=t.vocab_size, cache_dtype="float32"),
  )
  rng = np.random.default_rng(0)
  pixels = rng.uniform(-1, 1, (2, v.image_size, v.image_size, 3)).astype(np.float32)
  text = rng.integers(3, t.vocab_size, (2, 7))
  mask_ar = np.array([[0, 0, 0, 1, 1, 1, 1]] * 2)
  init = theirs.init(jax.random.key(0), pixels, text, mask_ar)["params"]
  shapes = {k: x.shape for k, x in tree.flatten(init).items()}
  made = {k: (0.3 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}

  # Theirs to ours.
  loaded = weights.load(save_npz(tmp_path / "theirs.npz", made, "params/"))
  assert loaded.config == config
  # Ours back to theirs, through their own loader.
  written = big_vision.from_ours(loaded.config, weights.open_model(tmp_path / "theirs.npz").tree)
  tensor_files.write_npz(tmp_path / "ours.npz", written)
  model_config = ml_collections.ConfigDict(
    dict(img=dict(scan=True), llm=dict(variant="tiny", vocab_size=t.vocab_size))
  )
  params = paligemma.load(init, str(tmp_path / "ours.npz"), model_config)
  for path, x in tree.flatten(params).items():
    np.testing.assert_array_equal(x, made[path], err_msg=path)

  # Teacher-forced: big_vision caps the logits of its decoding only, we cap them everywhere.
  expected, _ = theirs.apply({"params": params}, pixels, text, mask_ar)
  expected = np.asarray(gemma.softcap(expected, t.final_softcap))
  slots = np.full((2, config.num_image_tokens), config.image_token_id)
  tokens = np.concatenate([slots, text], axis=1)
  ar = np.concatenate([np.zeros_like(slots), mask_ar], axis=1)
  features = mm.encode_images(config, loaded.params, pixels)
  x = mm.hidden(
    config, loaded.params, features, jnp.asarray(tokens), valid=jnp.ones(tokens.shape, bool), ar=ar
  )
  got = np.asarray(mm.unembed(config, loaded.params, x))[:, config.num_image_tokens :]
  assert np.ptp(expected) > 1
  np.testing.assert_allclose(got, expected, atol=2e-4)
