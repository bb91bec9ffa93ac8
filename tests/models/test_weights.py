# SPDX-License-Identifier: Apache-2.0
"""Model folders: round trips, shared towers, and errors that say what is wrong."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import gemma, leaves, siglip, tensor_files, weights
from auditdm_jax.models import multimodal as mm
from auditdm_jax.text.tokenizer import Tokenizer
from tests import drawn

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
NATIVE = {"origin": {"format": "native"}}
EXTRAS = {"template": "{image}<bos>{text}\n", "stop": ["<eos>"], "seed": 3}


@pytest.fixture(scope="module")
def params():
  return drawn.params(CFG)


@pytest.fixture
def folder(tmp_path, params):
  weights.save(tmp_path / "model", CFG, params, TOKENIZER, EXTRAS)
  return tmp_path / "model"


def rewrite(folder, **changes):
  """Replaces tensors of a folder's file; None takes one out."""
  path = folder / "model.safetensors"
  flat = safetensors.numpy.load_file(path) | changes
  safetensors.numpy.save_file({k: v for k, v in flat.items() if v is not None}, path)
  (folder / "SHA256SUMS").unlink(missing_ok=True)  # As one who means it.


def same(a, b, **tolerance):
  assert not tree.diff(a, b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_round_trip(folder, params):
  loaded = weights.load(folder)
  assert loaded.config == CFG and loaded.extras == EXTRAS | NATIVE
  same(loaded.params, params, rtol=0)
  assert Tokenizer.from_file(folder / "tokenizer.json").encode("red blue") == [10, 11]
  assert {p.name for p in folder.iterdir()} == {
    "SHA256SUMS",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
  }


@pytest.mark.parametrize("dtype, rtol", [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_short_dtypes_come_back_in_the_dtype_asked_for(tmp_path, folder, params, dtype, rtol):
  weights.save(tmp_path / "short", CFG, params, TOKENIZER, EXTRAS, dtype=dtype)
  kept = jax.tree.leaves(weights.load(tmp_path / "short").params)
  assert all(x.dtype == dtype for x in kept)
  loaded = weights.load(tmp_path / "short", dtype="float32")
  same(loaded.params, params, rtol=rtol, atol=1e-4)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(loaded.params))
  full, short = ((f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "short"))
  assert short < 0.75 * full


def test_a_content_hash_is_of_the_weights_alone(tmp_path, folder, params):
  one = weights.content_hash(folder)
  others = {"template": "{image}<bos>{text}", "stop": []}
  weights.save(tmp_path / "short", CFG, params, None, others, dtype="bfloat16")
  assert weights.content_hash(tmp_path / "short") == one
  flat = safetensors.numpy.load_file(folder / "model.safetensors")
  name = next(k for k, v in flat.items() if v.size > 1 and v.flat[0] != v.flat[-1])
  rewrite(
    folder, **{name: np.ascontiguousarray(flat[name].ravel()[::-1].reshape(flat[name].shape))}
  )
  assert weights.content_hash(folder) != one


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
  assert loaded.extras == extras | NATIVE
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
    ("config.json", b"[]", "not the config of a model"),
    ("config.json", b'{"format": "auditdm-9"}', "format is 'auditdm-9'"),
    ("config.json", b'{"format": "auditdm-1"}', "no 'model'"),
    ("config.json", b'{"format": "auditdm-1", "model": {"kind": "x"}}', "model"),
    (
      "config.json",
      json.dumps(
        {
          "format": "auditdm-1",
          "model": {**CFG.to_dict(), "text": {**CFG.to_dict()["text"], "window": 10**30}},
        }
      ).encode(),
      "window 10{30} is not a number of tokens",
    ),
    ("model.safetensors.index.json", b"[" * 200_000, "index.json: not JSON"),
    ("config.json", b'{"format": "auditdm-1", "model": {}, "weights": "../x"}', "model"),
    ("model.safetensors", None, "neither model.safetensors nor"),
    ("model.safetensors", b"\x80\x04pickle", "not a whole safetensors file, but a pickle"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
  ],
)
def test_broken_folders_are_explained(folder, name, content, message):
  if content is None:
    (folder / name).unlink()
  else:
    (folder / name).write_bytes(content)
  if name == tensor_files.INDEX:
    (folder / tensor_files.SINGLE).unlink()
  with pytest.raises(UserError, match=message):
    weights.load(folder)


def test_torn_weights_are_refused(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match="not a whole safetensors file"):
    weights.load(folder)


def test_weights_that_cannot_be_opened_are_explained(folder, monkeypatch):
  (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")

  def closed(path, *args, **kwargs):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(tensor_files, "open", closed, raising=False)
  with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file: "):
    weights.load(folder)


def flip(path):
  """Flips a bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_bit_that_flipped_is_noticed(folder, name):
  flip(folder / name)
  for read in (weights.load, weights.content_hash):
    with pytest.raises(UserError, match=f"{name}: damaged, or not the file that") as error:
      read(folder)
    assert len(str(error.value).splitlines()) == 1 and "SHA256SUMS" in str(error.value)
  (folder / "SHA256SUMS").unlink()
  weights.load(folder)


def test_a_bit_that_flipped_in_a_shared_tower_is_noticed(tmp_path, params):
  weights.save_tower(tmp_path / "siglip", CFG.vision, params)
  weights.save(tmp_path / "model", CFG, params, TOKENIZER, EXTRAS | {"tower": "../siglip"})
  flip(tmp_path / "siglip/model.safetensors")
  for read in (weights.load, weights.content_hash):
    with pytest.raises(UserError, match="siglip/model.safetensors: damaged"):
      read(tmp_path / "model")
  with pytest.raises(UserError, match="siglip/model.safetensors: damaged"):
    weights.load_tower(tmp_path / "siglip")


def test_what_people_may_edit_has_no_sum(folder):
  text = (folder / "config.json").read_text()
  (folder / "config.json").write_text(text.replace('"seed": 3', '"seed": 4'))
  assert weights.load(folder).extras["seed"] == 4


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


def test_saving_again_replaces_everything(folder, params, monkeypatch):
  split = functools.partial(tensor_files.write_safetensors, max_shard_bytes=100)
  with monkeypatch.context() as patch:
    patch.setattr(tensor_files, "write_safetensors", split)
    weights.save(folder, CFG, params, TOKENIZER, EXTRAS)
  names = {p.name for p in folder.iterdir()}
  assert "model.safetensors" not in names and "model.safetensors.index.json" in names
  same(weights.load(folder).params, params, rtol=0)
  weights.save(folder, CFG, jax.tree.map(lambda x: x + 1, params), TOKENIZER, EXTRAS)
  assert {p.name for p in folder.iterdir()} == {
    "SHA256SUMS",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
  }
  same(weights.load(folder).params, jax.tree.map(lambda x: x + 1, params), rtol=0)


def test_side_files_go_along(tmp_path, folder, params):
  (folder / "preprocessor_config.json").write_text("{}")
  side = weights.load(folder).side
  for name in ("next", "model"):
    weights.save(tmp_path / name, CFG, params, None, EXTRAS, side=side)
    again = weights.side_files(tmp_path / name)
    assert set(again) == {"tokenizer.json", "preprocessor_config.json"}
    assert Tokenizer.from_file(again["tokenizer.json"]).encode("red blue") == [10, 11]


# ----------------------------------------------------------------------------- safetensors files


@pytest.fixture
def shards(tmp_path):
  """A folder of three shards and their index, and what is in it."""
  rng = np.random.default_rng(0)
  arrays = {
    f"{dtype}/{i}": np.asarray(rng.standard_normal((3, i + 1, 4)), dtype)
    for dtype in ("float32", "float16", ml_dtypes.bfloat16)
    for i in range(3)
  }
  arrays = {k.replace("<class 'ml_dtypes.bfloat16'>", "bf16"): v for k, v in arrays.items()}
  arrays |= {"none": np.zeros((0, 4), np.float32), "one": np.float32(3), "ids": np.arange(5)}
  folder = tmp_path / "shards"
  folder.mkdir()
  tree_of = {k: leaves.of_array(v) for k, v in arrays.items()}
  tensor_files.write_safetensors(folder, tree_of, max_shard_bytes=300)
  return folder, arrays


def test_shards_are_read_by_parts(shards):
  folder, arrays = shards
  assert len(list(folder.glob("*.safetensors"))) >= 3
  read = weights.read_safetensors(folder)
  assert read.keys() == arrays.keys()
  for name, leaf in read.items():
    assert (leaf.shape, leaf.dtype) == (arrays[name].shape, arrays[name].dtype)
    assert leaf.whole().tobytes() == np.asarray(arrays[name]).tobytes()
  part = read["float16/2"].read((slice(1, 3), slice(0, 2), slice(3, 4)))
  np.testing.assert_array_equal(part, arrays["float16/2"][1:3, 0:2, 3:4])


def test_files_are_those_of_the_library(shards):
  """Other readers take what we write, and of one file even the bytes are the library's."""
  folder, arrays = shards
  for path in folder.glob("*.safetensors"):
    flat = safetensors.numpy.load_file(path)
    assert all(flat[k].tobytes() == np.asarray(arrays[k]).tobytes() for k in flat)
    expected = safetensors.numpy.save(flat, metadata={"format": "pt"})
    assert path.read_bytes() == expected


def index_of(folder):
  path = folder / "model.safetensors.index.json"
  return path, json.loads(path.read_text())


def test_a_missing_shard_is_named(shards):
  first = min(shards[0].glob("*.safetensors"))
  first.unlink()
  with pytest.raises(UserError, match=rf"index.json: names {first.name}, which is not"):
    weights.read_safetensors(shards[0])


def test_a_torn_shard_is_named(shards):
  last = max(shards[0].glob("*.safetensors"))
  last.write_bytes(last.read_bytes()[:-1])
  with pytest.raises(UserError, match=rf"{last.name}: not a whole safetensors file"):
    weights.read_safetensors(shards[0])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: m | {"float32/9": m["one"]}, r"says that float32/9 is in .*, but it is not"),
    (lambda m: m | {"one": next(f for f in m.values() if f != m["one"])}, "says that one is in"),
    (lambda m: m | {"one": "../other.safetensors"}, "is not the name of a file in the folder"),
    (lambda m: {}, "no 'weight_map'"),
  ],
)
def test_a_wrong_index_is_explained(shards, change, message):
  path, index = index_of(shards[0])
  path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
  with pytest.raises(UserError, match=message):
    weights.read_safetensors(shards[0])


def test_pickles_and_quantized_weights_are_refused(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
  with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which is not read"):
    weights.read_safetensors(tmp_path)
  header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
  (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"00")
  with pytest.raises(UserError, match="w is F8_E4M3; quantized weights"):
    weights.read_safetensors(tmp_path)


# ---------------------------------------------------------------------------------------- Orbax


def test_orbax_restores_what_we_write_and_we_read_what_it_writes(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    "a/w": rng.standard_normal((5, 3, 4)).astype(np.float32),
    "a/b": rng.standard_normal((7, 2)).astype(ml_dtypes.bfloat16),
    "c": np.float16(3),
    "d": np.zeros(3, np.float32),
  }
  (tmp_path / "ours").mkdir()
  tensor_files.write_orbax(tmp_path / "ours", {k: leaves.of_array(v) for k, v in arrays.items()})
  with ocp.StandardCheckpointer() as checkpointer:
    theirs = tree.flatten(checkpointer.restore(tmp_path / "ours"))
    checkpointer.save(tmp_path / "theirs", tree.unflatten(arrays | {"c": jnp.float16(3)}))
  ours = tensor_files.read_orbax(tmp_path / "theirs")
  assert theirs.keys() == ours.keys() == arrays.keys()
  for name, x in arrays.items():
    for y in (theirs[name], ours[name].whole()):
      assert np.asarray(y).tobytes() == x.tobytes() and y.dtype == x.dtype
  part = (slice(1, 4), slice(0, 2), slice(3, 4))
  np.testing.assert_array_equal(ours["a/w"].read(part), arrays["a/w"][part])
  with pytest.raises(UserError, match="not the metadata of an Orbax checkpoint"):
    tensor_files.read_orbax(tmp_path)


@pytest.mark.parametrize("harm", [lambda f: f.unlink(), lambda f: f.write_bytes(b"x")])
def test_a_chunk_that_is_missing_or_torn_is_not_zeros(tmp_path, harm):
  arrays = {"a/w": np.ones((5, 3), np.float32), "zeros": np.zeros(3, np.float32)}
  tensor_files.write_orbax(tmp_path, {k: leaves.of_array(v) for k, v in arrays.items()})
  harm(tmp_path / "a.w" / "0.0")
  read = tensor_files.read_orbax(tmp_path)
  with pytest.raises(UserError, match="a/w: not a readable array: ") as e:
    read["a/w"].whole()
  assert len(str(e.value).splitlines()) == 1
  assert not read["zeros"].whole().any()


def test_what_the_disk_does_not_take_of_an_array_is_an_os_error(tmp_path):
  (tmp_path / "a").write_text("in the way")
  with pytest.raises(OSError, match="a/.zarray"):
    tensor_files.write_orbax(tmp_path, {"a": leaves.of_array(np.ones(3))})


# --------------------------------------------------------------------------------------- meshes


def test_loading_onto_a_mesh_splits_and_changes_nothing(tmp_path, run_python, folder):
  run_python(
    f"""
    import jax, numpy as np
    from auditdm_jax.core import mesh as mesh_lib, tree
    from auditdm_jax.models import weights
    one = tree.flatten(weights.load({str(folder)!r}).params)
    mesh = mesh_lib.make_mesh({{"fsdp": 2, "tensor": 2}})
    many = tree.flatten(weights.load({str(folder)!r}, mesh=mesh, dtype="bfloat16").params)
    for path, x in one.items():
      np.testing.assert_array_equal(np.asarray(x.astype("bfloat16")), np.asarray(many[path]))
    table = many["llm/embedder/input_embedding"]
    assert table.addressable_shards[0].data.size == table.size // 4, table.sharding
    other = mesh_lib.make_mesh({{"data": 4}})
    for x in jax.tree.leaves(weights.load({str(folder)!r}, mesh=other).params):
      assert x.sharding.is_fully_replicated and len(x.devices()) == 4
    """,
    devices=4,
  )


def test_a_model_is_never_twice_in_memory(tmp_path, run_python):
  """As bf16 on disk and fp32 on four devices: the peak is the model and its largest tensor."""
  config = mm.VlmConfig(
    "gemma3",
    gemma.GemmaConfig(
      vocab_size=16384, width=512, depth=8, mlp_dim=4096, num_heads=4, num_kv_heads=4, head_dim=128
    ),
    None,
    image_token_id=8,
  )
  shapes = tree.flatten(jax.eval_shape(lambda k: mm.init(config, k), jax.random.key(0)))
  rng = np.random.default_rng(0)
  flat = {
    k: leaves.of_array(rng.standard_normal(v.shape, np.float32).astype(ml_dtypes.bfloat16))
    for k, v in shapes.items()
  }
  folder = tmp_path / "model"
  folder.mkdir()
  tensor_files.write_safetensors(folder, flat, max_shard_bytes=50_000_000)
  (folder / "config.json").write_text(
    json.dumps({"format": "auditdm-1", "model": config.to_dict()})
  )
  out = run_python(
    f"""
    import resource
    import jax
    from auditdm_jax.core import mesh as mesh_lib
    from auditdm_jax.models import weights
    mesh = mesh_lib.make_mesh({{"fsdp": 2, "tensor": 2}})
    jax.device_put(1.0, mesh.devices.flat[3]).block_until_ready()
    opened = weights.open_model({str(folder)!r})
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()
    params = weights.load({str(folder)!r}, mesh=mesh, dtype="float32").params
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    print(size, largest, peak() - before)
    """,
    devices=4,
  )
  size, largest, grown = map(int, out.split())
  assert size > 180e6
  assert grown < size + 1.2 * largest, f"{grown / size:.2f} of the model"
