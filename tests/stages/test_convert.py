# SPDX-License-Identifier: Apache-2.0
"""convert: every pair of formats, bit by bit, and mistakes that leave nothing behind."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from auditdm_jax import __main__ as main_lib
from auditdm_jax.core import tree
from auditdm_jax.models import (
  gemma,
  hf,
  hf_config,
  leaves,
  preprocess,
  siglip,
  tensor_files,
  weights,
)
from auditdm_jax.models import multimodal as mm
from auditdm_jax.stages import convert

TEXT = gemma.GemmaConfig(
  vocab_size=64,
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
VISION = siglip.SiglipConfig(16, 2, 24, 2, patch_size=4, image_size=8)
PALIGEMMA = mm.VlmConfig("paligemma", TEXT, VISION, image_token_id=63)
GEMMA3 = mm.VlmConfig(
  "gemma3",
  dataclasses.replace(
    TEXT,
    attn_softcap=0.0,
    final_softcap=0.0,
    qk_norm=True,
    window=5,
    layer_is_local=(True, True, False),
    rope_base=1e6,
    rope_scale=8.0,
  ),
  VISION,
  image_token_id=63,
  mm_tokens=1,
)
CONFIGS = {"paligemma": PALIGEMMA, "gemma3": GEMMA3}
OLDER_KEYS = {"rope_theta", "rope_scaling", "rope_local_base_freq"}


def run(*flags: str) -> int:
  """Runs the command line, which in a process of its own would start without values."""
  convert.FLAGS.unparse_flags()
  for name in convert.FLAGS:
    convert.FLAGS[name].unparse()
  return main_lib.run(["convert", *flags])


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
  monkeypatch.setattr(leaves, "_PIECE_BYTES", 200)  # So that tensors go over in several pieces.
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def work(tmp_path):
  """A folder of which a test can say what is in it."""
  (tmp_path / "work").mkdir()
  return tmp_path / "work"


def arrays_of(config, dtype="float32"):
  """Random parameters by path."""
  shapes = tree.flatten(jax.eval_shape(lambda k: mm.init(config, k), jax.random.key(0)))
  rng = np.random.default_rng(0)
  return {k: (0.3 * rng.standard_normal(v.shape)).astype(dtype) for k, v in shapes.items()}


def write_hf(folder, config, *, dtype="float32", newer=False, max_shard_bytes=10_000, **header):
  """A folder as a release is, or as transformers 5 writes it, from random parameters."""
  flat = {k: leaves.of_array(v) for k, v in arrays_of(config, dtype).items()}
  tensors = hf.from_ours(config, flat)
  header = hf_config.write_config(config) | {"torch_dtype": np.dtype(dtype).name} | header
  if newer:
    tensors = {k.replace(".vision_model.", "."): v for k, v in tensors.items()}
    for key in OLDER_KEYS & set(header["text_config"]):
      del header["text_config"][key]
  folder.mkdir()
  tensor_files.write_safetensors(folder, tensors, max_shard_bytes=max_shard_bytes)
  (folder / "config.json").write_text(json.dumps(header))
  (folder / "tokenizer.json").write_text("{}")
  (folder / "preprocessor_config.json").write_text(
    json.dumps({"size": {"height": 8, "width": 8}, "image_seq_length": 4, "do_resize": True})
  )
  return folder


def tensors_in(folder):
  """Name -> (dtype, shape, bytes) of all safetensors files of a folder, by the library."""
  flat = {}
  for path in folder.glob("*.safetensors"):
    flat |= safetensors.numpy.load_file(path)
  return {k: (v.dtype, v.shape, v.tobytes()) for k, v in flat.items()}


def params_of(path):
  return {
    k: (v.dtype, v.shape, v.whole().tobytes()) for k, v in weights.open_model(path).tree.items()
  }


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("newer", [False, True], ids=["released", "transformers_5"])
def test_from_hugging_face_and_back_is_the_same(work, dtype, kind, newer):
  """Over our own format and over Orbax: tensors, config and what lies beside, in released names."""
  start = write_hf(
    work / "hf", CONFIGS[kind], dtype=dtype, newer=newer, transformers_version="4.50.0"
  )
  assert len(list(start.glob("*.safetensors"))) > 1
  released = {
    k.replace("vision_tower.", "vision_tower.vision_model.") if newer else k: v
    for k, v in tensors_in(start).items()
  }
  for middle in ("native", "orbax"):
    assert not run(f"--input={start}", f"--output={work / middle}", f"--to={middle}")
    back = work / f"hf_{middle}"
    assert not run(f"--input={work / middle}", f"--output={back}", "--to=hf")
    assert tensors_in(back) == released
    header = json.loads((start / "config.json").read_text())
    if newer:
      written = hf_config.write_config(CONFIGS[kind])["text_config"]
      assert set(written) - set(header["text_config"]) == OLDER_KEYS & set(written)
      header["text_config"] |= {k: written[k] for k in OLDER_KEYS & set(written)}
    assert json.loads((back / "config.json").read_text()) == header
    for name in ("tokenizer.json", "preprocessor_config.json"):
      assert json.loads((back / name).read_text()) == json.loads((start / name).read_text())
  assert not list(work.glob(".*"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_image_token_without_a_row_stays_without(work, kind, tied):
  """As transformers allows it; what did not come from there gets rows, in the head too."""
  config = dataclasses.replace(
    CONFIGS[kind], text=dataclasses.replace(CONFIGS[kind].text, tied_head=tied), image_token_id=73
  )
  start = write_hf(work / "hf", config)
  for source, to in (("hf", "again"), ("hf", "native"), ("native", "back")):
    flags = (f"--input={work / source}", f"--output={work / to}")
    assert not run(*flags, "--to=native" if to == "native" else "--to=hf")
  for name in ("again", "back"):
    assert tensors_in(work / name) == tensors_in(start)
    for file in ("config.json", "preprocessor_config.json"):
      assert json.loads((work / name / file).read_text()) == json.loads((start / file).read_text())
  params = tree.unflatten({k: jnp.asarray(v) for k, v in arrays_of(config).items()})
  weights.save(work / "ours", config, params, None, {})
  assert not run(f"--input={work / 'ours'}", f"--output={work / 'grown'}", "--to=hf")
  grown = weights.open_model(work / "grown")
  rows = {leaf.shape[0] for k, leaf in grown.tree.items() if k.startswith("llm/embedder/")}
  assert rows == {grown.config.text.vocab_size} == {128}


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("middle", ["native", "orbax", "hf"])
def test_from_npz_and_back_is_the_same(work, dtype, middle):
  config = dataclasses.replace(PALIGEMMA, image_token_id=64)
  arrays = {f"params/{k}": v for k, v in arrays_of(config, dtype).items()}
  np.savez(work / "x.npz", **arrays)
  assert not run(f"--input={work / 'x.npz'}", f"--output={work / middle}", f"--to={middle}")
  if middle == "hf":  # It has rows for the image token, which a short vocabulary keeps.
    assert weights.open_model(work / "hf").config.text.vocab_size == 128
    assert set(params_of(work / "hf")) == set(params_of(work / "x.npz"))
    return
  assert not run(f"--input={work / middle}", f"--output={work / 'y.npz'}", "--to=big_vision")
  before, after = np.load(work / "x.npz"), np.load(work / "y.npz")
  assert sorted(before.files) == sorted(after.files)
  for name in before.files:
    assert before[name].dtype == after[name].dtype
    assert before[name].tobytes() == after[name].tobytes()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_without_a_processor_gets_one(work, kind):
  transformers = pytest.importorskip("transformers")
  start = write_hf(work / "hf", CONFIGS[kind])
  (start / "preprocessor_config.json").unlink()
  assert not run(f"--input={start}", f"--output={work / 'native'}", "--to=native")
  assert not run(f"--input={work / 'native'}", f"--output={work / 'back'}", "--to=hf")
  vision = CONFIGS[kind].vision
  theirs = transformers.AutoImageProcessor.from_pretrained(work / "back")
  image = np.random.default_rng(0).integers(0, 256, (2 * vision.image_size, 31, 3), np.uint8)
  want = theirs(images=[image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
  (got,) = preprocess.preprocess([image], size=vision.image_size)
  np.testing.assert_allclose(got, want, atol=0.02)  # Two levels: its resizing may be torch's.
  how = preprocess.read_processor(work / "back", size=vision.image_size, resample="bicubic")
  assert how.resample == "bilinear"


def test_a_folder_for_big_vision_keeps_what_an_npz_cannot_say(work):
  windowed = dataclasses.replace(
    PALIGEMMA, text=dataclasses.replace(TEXT, window=7, layer_is_local=(True, False, True))
  )
  start = write_hf(work / "hf", windowed)
  assert not run(f"--input={start}", f"--output={work / 'bv'}", "--to=big_vision")
  assert {p.name for p in (work / "bv").iterdir()} == {
    "SHA256SUMS",
    "model.npz",
    "config.json",
    "tokenizer.json",
    "preprocessor_config.json",
  }
  for path in (work / "bv", work / "bv" / "model.npz"):
    opened = weights.open_model(path)
    assert opened.config == windowed and opened.extras["origin"]["format"] == "hf"
    assert params_of(path) == params_of(start)
  assert not run(f"--input={work / 'bv'}", f"--output={work / 'back'}", "--to=hf")
  assert tensors_in(work / "back") == tensors_in(start)


FULL = dataclasses.replace(
  PALIGEMMA,
  text=dataclasses.replace(TEXT, vocab_size=257_216, width=4, depth=1),
  vision=dataclasses.replace(VISION, depth=1),
  image_token_id=257_152,
)
ADDED = "hf_rows/llm/embedder/input_embedding"


def test_every_pair_of_formats_keeps_every_bit_of_a_full_vocabulary(work, monkeypatch):
  """Hugging Face adds 64 rows to big_vision's vocabulary; no zeros, no means: the same rows."""
  monkeypatch.setattr(leaves, "_PIECE_BYTES", 1 << 20)
  start = write_hf(work / "hf", FULL, dtype=ml_dtypes.bfloat16, max_shard_bytes=1 << 30)
  formats = {"hf": "hf", "npz": "big_vision", "folder": "big_vision"}
  formats |= {"native": "native", "orbax": "orbax"}

  def convert_to(source, name, to):
    path = work / (f"{name}.npz" if to == "npz" else name)
    assert not run(f"--input={source}", f"--output={path}", f"--to={formats[to]}")
    return path

  paths = {"hf": start} | {to: convert_to(start, f"a_{to}", to) for to in formats if to != "hf"}
  want = params_of(start)
  for source, path in paths.items():
    assert params_of(path) == want, source
    for to in formats:
      made = convert_to(path, f"b_{source}_{to}", to)
      assert params_of(made) == want, (source, to)
      if to == "hf":
        assert tensors_in(made) == tensors_in(start), source
      if to == "npz":
        arrays = np.load(made)
        assert arrays["params/llm/embedder/input_embedding"].shape == (257_152, 4)
        assert [k for k in arrays.files if not k.startswith("params/")] == [ADDED]


def test_rows_that_nothing_says_are_named(work, monkeypatch, caplog):
  """As in a checkpoint that big_vision's trainer has saved."""
  monkeypatch.setattr(leaves, "_PIECE_BYTES", 1 << 20)
  tensors = {f"params/{k}": v for k, v in arrays_of(FULL).items()}
  name = "params/llm/embedder/input_embedding"
  np.savez(work / "x.npz", **(tensors | {name: tensors[name][:257_152]}))
  assert not run(f"--input={work / 'x.npz'}", f"--output={work / 'hf'}", "--to=hf")
  (line,) = [m for m in caplog.messages if "embedding" in m]
  assert line.startswith("hf: rows 257152 to 257215 of the embedding are not in the input")


@pytest.mark.parametrize(
  ("config", "to", "message"),
  [
    (PALIGEMMA, "hf", "hf: vLLM runs a PaliGemma's prompt causally"),
    (PALIGEMMA, "big_vision", None),
    (GEMMA3, "hf", None),
    (
      dataclasses.replace(GEMMA3, text=dataclasses.replace(GEMMA3.text, local_rope_scale=2.0)),
      "hf",
      "hf: transformers before 5 does not scale",
    ),
  ],
)
def test_a_reader_that_would_run_another_model_is_named(work, caplog, config, to, message):
  start = write_hf(work / "start", config)
  assert not run(f"--input={start}", f"--output={work / to}", f"--to={to}")
  lines = [m for m in caplog.messages if m.startswith(f"{to}: ")]
  assert len(lines) == (message is not None)
  assert message is None or lines[0].startswith(message)


def test_another_dtype(work):
  start = write_hf(work / "hf", PALIGEMMA, dtype="float32")
  flags = (f"--input={start}", f"--output={work / 'short'}", "--to=hf", "--dtype=bfloat16")
  assert not run(*flags)
  assert json.loads((work / "short" / "config.json").read_text())["torch_dtype"] == "bfloat16"
  for name, (_, shape, data) in tensors_in(start).items():
    short = np.frombuffer(data, np.float32).astype(ml_dtypes.bfloat16)
    assert tensors_in(work / "short")[name] == (short.dtype, shape, short.tobytes())


def test_layers_in_several_dtypes_need_one_to_be_asked_for(work, capsys):
  start = write_hf(work / "hf", PALIGEMMA, max_shard_bytes=1_000_000)
  flat = safetensors.numpy.load_file(start / "model.safetensors")
  for name in flat:
    if ".layers.1.mlp." in name or "v_proj" in name:
      flat[name] = flat[name].astype(ml_dtypes.bfloat16)
  safetensors.numpy.save_file(flat, start / "model.safetensors", {"format": "pt"})
  assert run(f"--input={start}", f"--output={work / 'x'}", "--to=native") == 2
  assert ": ask for a dtype" in capsys.readouterr().err
  assert not run(f"--input={start}", f"--output={work / 'x'}", "--to=hf", "--dtype=float32")
  assert tensors_in(work / "x") == {
    k: (np.dtype("f4"), v.shape, v.astype("f4").tobytes()) for k, v in flat.items()
  }
  loaded = weights.load(start, dtype="bfloat16").params
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(loaded))


def test_another_resolution(work):
  start = write_hf(work / "hf", PALIGEMMA)
  flags = (f"--input={start}", f"--output={work / 'big'}", "--to=hf", "--image_size=12")
  assert not run(*flags)
  header = json.loads((work / "big" / "config.json").read_text())
  assert header["vision_config"]["image_size"] == 12
  assert json.loads((work / "big" / "preprocessor_config.json").read_text()) == {
    "size": {"height": 12, "width": 12},
    "image_seq_length": 9,
    "do_resize": True,
  }
  assert weights.load(work / "big").params["img"]["pos_embedding"].shape == (1, 9, 16)


def test_our_own_models_convert(work):
  """With a shared tower, which goes into the model, and back with all it says of itself."""
  extras = {"template": "{image}<bos>{text}\n", "stop": ["<eos>"], "recipe": {"seed": 3}}
  params = tree.unflatten({k: jnp.asarray(v) for k, v in arrays_of(GEMMA3).items()})

  class Words:
    def save(self, path):
      (path / "tokenizer.json").write_text("{}")

  weights.save_tower(work / "siglip", VISION, params)
  weights.save(work / "m", GEMMA3, params, Words(), extras | {"tower": "../siglip"})
  for to in ("hf", "orbax", "native"):
    assert not run(f"--input={work / 'm'}", f"--output={work / to}", f"--to={to}")
    assert params_of(work / to) == params_of(work / "m")
  for to in ("orbax", "orbax/params", "native"):
    opened = weights.open_model(work / to)
    assert weights.side_folder(work / to) == work / to.removesuffix("/params")
    assert opened.config == GEMMA3 and opened.extras == extras | {"origin": {"format": "native"}}


# --------------------------------------------------------------------------------- transformers


def transformers_model(kind):
  """A tiny random model of transformers whose softcaps and windows matter."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  header = hf_config.write_config(CONFIGS[kind])
  classes = {
    "paligemma": transformers.PaliGemmaForConditionalGeneration,
    "gemma3": transformers.Gemma3ForConditionalGeneration,
  }
  header.pop("architectures")
  model = classes[kind](classes[kind].config_class(**header)).eval()
  for x in model.parameters():
    torch.nn.init.normal_(x, std=0.2)
  return torch, classes[kind], model


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_we_write_loads_in_transformers(work, kind):
  """A model of theirs, over our format and, without its config.json, from its bare parameters."""
  torch, cls, model = transformers_model(kind)
  model.save_pretrained(work / "hf", max_shard_size="30KB")
  assert not run(f"--input={work / 'hf'}", f"--output={work / 'ours'}", "--to=native")
  assert not run(f"--input={work / 'ours'}", f"--output={work / 'back'}", "--to=hf")
  assert tensors_in(work / "back") == {
    k.replace("vision_tower.", "vision_tower.vision_model."): v
    for k, v in tensors_in(work / "hf").items()
  }
  header = json.loads((work / "ours" / "config.json").read_text())
  (work / "ours" / "config.json").write_text(json.dumps(header | {"origin": {"format": "native"}}))
  assert not run(f"--input={work / 'ours'}", f"--output={work / 'fresh'}", "--to=hf")

  slots = [63] * CONFIGS[kind].num_image_tokens
  ids = torch.tensor([slots + [2, 5, 9, 11, 7, 4, 8, 3]])
  inputs = {
    "input_ids": ids,
    "pixel_values": torch.rand(1, 3, 8, 8) * 2 - 1,
    "token_type_ids": (ids == 63).int() if kind == "gemma3" else torch.zeros_like(ids),
  }
  with torch.no_grad():
    expected = model(**inputs).logits
    for name in ("back", "fresh"):
      again = cls.from_pretrained(work / name).eval()
      torch.testing.assert_close(again(**inputs).logits, expected, atol=0, rtol=0)
  assert np.ptp(expected.numpy()) > 1


def test_an_npz_becomes_a_model_of_transformers(work):
  """It has no row for the image token, and gets one that takes nothing from the others."""
  torch, cls, model = transformers_model("paligemma")
  model.save_pretrained(work / "hf")
  for source, target, to in (("hf", "x.npz", "big_vision"), ("x.npz", "back", "hf")):
    assert not run(f"--input={work / source}", f"--output={work / target}", f"--to={to}")
  again = cls.from_pretrained(work / "back").eval()
  assert again.config.image_token_id == 64
  text = [2, 5, 9, 11, 7, 4, 8, 3]
  pixels = torch.rand(1, 3, 8, 8) * 2 - 1
  with torch.no_grad():
    expected, got = (
      m(input_ids=torch.tensor([[image] * 4 + text]), pixel_values=pixels).logits
      for m, image in ((model, 63), (again, 64))
    )
  torch.testing.assert_close(got[..., :64], expected, atol=1e-5, rtol=0)
  assert (got[..., :64].amax(-1) > got[..., 64:].amax(-1)).all()


# ------------------------------------------------------------------------------------- mistakes


def test_help_lists_the_flags(capsys):
  assert run("--help") == 0
  out = capsys.readouterr().out
  assert "--image_size" in out and "<hf|big_vision|native|orbax>" in out and "--config" not in out


def torn(folder):
  last = max(folder.glob("*.safetensors"))
  last.write_bytes(last.read_bytes()[:-8])


def without_a_shard(folder):
  max(folder.glob("*.safetensors")).unlink()


def in_another_file(folder):
  path = folder / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  names = sorted(set(index["weight_map"].values()))
  first = min(k for k, v in index["weight_map"].items() if v == names[0])
  index["weight_map"][first] = names[1]
  path.write_text(json.dumps(index))


def of_another_shape(folder):
  path = max(folder.glob("*.safetensors"))
  flat = safetensors.numpy.load_file(path)
  name = max(k for k in flat if flat[k].ndim == 2)
  safetensors.numpy.save_file(flat | {name: flat[name][:-1]}, path)


def of_another_architecture(folder):
  header = json.loads((folder / "config.json").read_text())
  header["architectures"] = ["LlavaForConditionalGeneration"]
  (folder / "config.json").write_text(json.dumps(header))


def a_pickle(folder):
  for path in folder.glob("model*"):
    path.unlink()
  (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def a_pickle_in_disguise(folder):
  for path in folder.glob("model*"):
    path.unlink()
  (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\x00" * 100)


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (lambda f: (f / "config.json").unlink(), "there is no config.json in it"),
    (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    (torn, "not a whole safetensors file"),
    (without_a_shard, "which is not in the folder"),
    (in_another_file, "but it is not"),
    (of_another_shape, "expected ("),
    (of_another_architecture, "'LlavaForConditionalGeneration' is not known"),
    (a_pickle, "pytorch_model.bin is a pickle"),
    (a_pickle_in_disguise, "not a whole safetensors file, but a pickle or a zip file"),
  ],
)
def test_a_wrong_input_is_one_line_and_leaves_nothing(work, capsys, harm, message):
  start = write_hf(work / "hf", PALIGEMMA)
  harm(start)
  assert run(f"--input={start}", f"--output={work / 'deep' / 'out'}", "--to=native") == 2
  err = capsys.readouterr().err
  assert message in err and len(err.splitlines()) == 1 and err.startswith("auditdm_jax: "), err
  assert [p.name for p in work.iterdir()] == ["hf"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--to=hf"], "is there already"),
    (["--to=hg", "--output={}/y"], "value should be one of <hf|"),
    (["--to=hf", "--output={}/y", "--input={}/z"], "/z: no such file or folder"),
    (["--to=hf", "--output={}/y", "--input={}/" + "z" * 300], "File name too long"),
    (["--to=hf", "--output={}/" + "y" * 300], "File name too long"),
    (["--to=hf", "--output={}/y", "--dtype=int8"], "value should be one of <float32|"),
    (["--to=hf", "--output={}/y", "--model=paligemma2_3b_48"], "did you mean 'paligemma2_3b_448'"),
    (["--to=hf", "--output={}/y", "--model=paligemma2_3b_448"], "config.json says what the model"),
    (["--to=hf", "--output={}/y", "--image_size=3"], "image size 3"),
    (["--to=big_vision", "--output={}/y"], "big_vision has PaliGemma only"),
    (["--output={}/y"], "--to must have a value"),
    (["--to=native", "--output={}/y", "--dtype=float16"], "not finite in float16"),
  ],
)
def test_wrong_flags_are_one_line_and_leave_nothing(work, capsys, flags, message):
  start = write_hf(work / "hf", GEMMA3)
  path = max(start.glob("*.safetensors"))
  flat = safetensors.numpy.load_file(path)
  name = max(flat)
  safetensors.numpy.save_file(flat | {name: np.full_like(flat[name], 1e6)}, path)
  (work / "x").mkdir()
  flags = [flag.format(work) for flag in flags]
  assert run(f"--input={start}", f"--output={work / 'x'}", *flags) == 2
  err = capsys.readouterr().err
  *progress, last = err.splitlines()
  assert message in last and all(line.startswith("tensors ") for line in progress), err
  assert sorted(p.name for p in work.iterdir()) == ["hf", "x"] and not list((work / "x").iterdir())


def test_a_disk_that_does_not_take_it_is_one_line(work, capsys, monkeypatch):
  start = write_hf(work / "hf", PALIGEMMA)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(convert.shutil, "disk_usage", lambda path: type("", (), {"free": 10}))
    assert run(f"--input={start}", f"--output={work / 'x'}", "--to=native") == 2
  assert "GB are needed" in capsys.readouterr().err
  monkeypatch.setattr(tensor_files, "_bytes", full)
  assert run(f"--input={start}", f"--output={work / 'x'}", "--to=native") == 2
  assert "x could not be written: [Errno 28] No space left" in capsys.readouterr().err
  below = start / "config.json" / "x"
  assert run(f"--input={start}", f"--output={below}", "--to=native") == 2
  assert f"{below} could not be written: [Errno" in capsys.readouterr().err
  assert [p.name for p in work.iterdir()] == ["hf"]
