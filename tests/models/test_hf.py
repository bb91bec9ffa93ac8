# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that transformers wrote, against transformers: logits, names and config.json."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import hf, hf_config, leaves, variants, weights
from auditdm_jax.models import multimodal as mm

torch = pytest.importorskip("torch")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

V, IMAGE = 61, 60
TEXT = dict(
  vocab_size=V,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  max_position_embeddings=128,
)
VISION = dict(
  hidden_size=12,
  intermediate_size=20,
  num_hidden_layers=2,
  num_attention_heads=3,
  image_size=16,
  patch_size=4,
  vision_use_head=False,
)
GLOBAL, LOCAL = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 3.0}


def gemma3():
  """Image blocks of 4 and a window of 3; one image token outside of the vocabulary."""
  text = TEXT | dict(
    num_hidden_layers=5,
    layer_types=[GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL],
    sliding_window=3,
    query_pre_attn_scalar=10,
    rope_scaling=LINEAR,
    attention_bias=True,
    rms_norm_eps=1e-3,
    attn_logit_softcapping=0.5,  # transformers looks at neither of the two in this model.
    final_logit_softcapping=0.7,
  )
  vision = VISION | dict(image_size=19, vision_use_head=True, layer_norm_eps=1e-2)
  return transformers.Gemma3Config(
    text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=V + 9
  )


def gemma3_local_scaling():
  """As transformers 5 lets one say it; an exact GELU; five global layers to one."""
  rope = {GLOBAL: LINEAR | {"rope_theta": 5e4}, LOCAL: LINEAR | {"rope_theta": 50.0, "factor": 2.0}}
  text = TEXT | dict(rope_parameters=rope, sliding_window=5, layer_types=[GLOBAL, GLOBAL, LOCAL])
  text |= dict(hidden_activation="gelu", tie_word_embeddings=False)
  return transformers.Gemma3Config(
    text_config=text,
    vision_config=VISION | dict(hidden_act="quick_gelu"),
    mm_tokens_per_image=16,
    image_token_index=IMAGE,
    tie_word_embeddings=False,
  )


def gemma3_text():
  return transformers.Gemma3TextConfig(
    **TEXT | dict(num_hidden_layers=7, num_key_value_heads=1),
    sliding_window=4,
    final_logit_softcapping=2.0,
    tie_word_embeddings=False,
  )


def paligemma2():
  """A window of 4 in a prefix of 20, softcaps that bite."""
  text = TEXT | dict(
    model_type="gemma2",
    sliding_window=4,
    attn_logit_softcapping=0.7,
    final_logit_softcapping=2.0,
    query_pre_attn_scalar=3,
    rope_theta=500.0,
    rope_scaling=LINEAR,
  )
  return transformers.PaliGemmaConfig(
    text_config=text, vision_config=VISION, projection_dim=16, image_token_index=IMAGE
  )


def paligemma1():
  text = TEXT | dict(model_type="gemma", num_key_value_heads=1, attention_bias=True)
  return transformers.PaliGemmaConfig(
    text_config=text,
    vision_config=VISION,
    projection_dim=16,
    image_token_index=IMAGE,
    tie_word_embeddings=False,
  )


def gemma2_text():
  return transformers.Gemma2Config(
    **TEXT, sliding_window=3, attn_logit_softcapping=0.7, final_logit_softcapping=2.0
  )


def gemma1_text():
  return transformers.GemmaConfig(**TEXT, hidden_act="gelu")


MODELS = {
  gemma3: transformers.Gemma3ForConditionalGeneration,
  gemma3_local_scaling: transformers.Gemma3ForConditionalGeneration,
  gemma3_text: transformers.Gemma3ForCausalLM,
  paligemma2: transformers.PaliGemmaForConditionalGeneration,
  paligemma1: transformers.PaliGemmaForConditionalGeneration,
  gemma2_text: transformers.Gemma2ForCausalLM,
  gemma1_text: transformers.GemmaForCausalLM,
}
EACH = pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  folder: pathlib.Path
  reference: torch.nn.Module
  config: mm.VlmConfig
  params: dict


@pytest.fixture(scope="module")
def case(tmp_path_factory):
  """Makes each checkpoint once, in as many shards as its name has letters modulo four."""

  @functools.cache
  def make_case(make):
    torch.manual_seed(0)
    model = MODELS[make](make()).eval()
    with torch.no_grad():
      for name, p in model.named_parameters():
        std = 0.4 if "norm" in name else 1.5 * p.shape[-1] ** -0.5
        p.normal_(0.0, 0.5 if "embed_tokens" in name else std)
    model.set_attn_implementation("eager")
    folder = tmp_path_factory.mktemp(make.__name__)
    size = sum(p.numel() * 4 for p in model.parameters()) // (1 + len(make.__name__) % 4)
    model.save_pretrained(folder, max_shard_size=max(size, 5000))
    return Case(folder, model, *load(folder))

  return make_case


def read(folder):
  header = json.loads((folder / "config.json").read_text())
  config = hf_config.read_config(header, where=str(folder / "config.json"))
  return config, weights.read_safetensors(folder)


def load(folder):
  config, tensors = read(folder)
  return config, tree.unflatten(leaves.place(hf.to_ours(config, tensors), None))


@functools.partial(jax.jit, static_argnums=0)
def ours(config, params, pixels, tokens, valid, ar):
  features = None
  if pixels is not None:
    features = mm.encode_images(config, params, pixels.reshape(-1, *pixels.shape[-3:]))
    features = features.reshape(*pixels.shape[:-3], *features.shape[-2:])
  x = mm.hidden(config, params, features, tokens, valid=valid, ar=ar)
  return mm.unembed(config, params, x)


def theirs(case, images, tokens, valid, ar):
  """Runs the reference, with the mask that its processor would ask for."""
  extra = {}
  if images is not None and len(images):
    extra["pixel_values"] = torch.tensor(np.stack(images)).permute(0, 3, 1, 2)
  if case.config.vision is not None:
    kinds = ar if case.config.kind == "paligemma" else tokens == case.config.image_token_id
    extra["token_type_ids"] = torch.tensor(kinds).long()
  with torch.no_grad():
    return case.reference(
      input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid).long(), **extra
    ).logits.numpy()


def batch(config, *, left, rows=3, length=28):
  """Rows of different lengths; of a Gemma 3 with two, one and no images, of a PaliGemma with one.

  Returns:
    pixels f32[B,I,H,W,3], the images in use, tokens, valid, ar.
  """
  rng = np.random.default_rng(0)
  slots = [config.image_token_id] * config.num_image_tokens
  words = lambda n: rng.integers(3, V - 1, n).tolist()  # noqa: E731
  if config.vision is None:
    texts, counts = [words(length), words(9), words(17)], [0, 0, 0]
  elif config.kind == "paligemma":
    texts, counts = [slots + words(n) for n in (12, 3, 7)], [1, 1, 1]
  elif config.num_image_tokens > 4:
    texts, counts = [words(2) + slots + words(9), words(20), slots + words(2)], [1, 0, 1]
  else:
    texts = [words(3) + slots + words(1) + slots + words(9), words(11), slots * 2 + words(4)]
    counts = [2, 0, 2]
  texts, counts = texts[:rows], counts[:rows]
  tokens, ar = np.zeros((rows, length), np.int32), np.ones((rows, length), np.int32)
  valid = np.zeros((rows, length), bool)
  for i, text in enumerate(texts):
    where = slice(length - len(text), None) if left else slice(0, len(text))
    tokens[i, where], valid[i, where] = text, True
    ar[i, where] = np.arange(len(text)) >= config.num_image_tokens + 4
  ar = ar if config.kind == "paligemma" else None
  if config.vision is None:
    return None, None, tokens, valid, ar
  size, most = config.vision.image_size, max(1, *counts, 0)
  pixels = rng.uniform(-1, 1, (rows, most, size, size, 3)).astype(np.float32)
  return pixels, [p for row, n in zip(pixels, counts) for p in row[:n]], tokens, valid, ar


@EACH
def test_logits_equal_transformers(case, make):
  c = case(make)
  for left in (False, True):
    pixels, images, tokens, valid, ar = batch(c.config, left=left)
    got = ours(c.config, c.params, pixels, tokens, valid, ar)
    want = theirs(c, images, tokens, valid, ar)
    assert want[valid].std() > 0.3
    np.testing.assert_allclose(got[valid], want[valid], atol=2e-4)


@pytest.mark.parametrize("make", [gemma3, paligemma2], ids=lambda f: f.__name__)
def test_text_only_and_batch_of_one(case, make):
  c = case(make)
  tokens = np.random.default_rng(1).integers(3, V - 1, (2, 19))
  valid, ar = np.ones((2, 19), bool), np.zeros((2, 19), np.int32)
  got = ours(c.config, c.params, None, tokens, valid, None)
  np.testing.assert_allclose(got, theirs(c, None, tokens, valid, ar), atol=2e-4)
  pixels, images, tokens, valid, ar = batch(c.config, left=False, rows=1)
  got = ours(c.config, c.params, pixels, tokens, valid, ar)
  np.testing.assert_allclose(got[valid], theirs(c, images, tokens, valid, ar)[valid], atol=2e-4)


@EACH
def test_every_layout_becomes_that_of_the_releases_bit_for_bit(case, make):
  """The folder is as transformers 5 writes it."""
  c = case(make)
  config, given = read(c.folder)
  released = {older(k): v for k, v in given.items()}
  for rename in (lambda n: n, older, nested):
    back = hf.from_ours(config, hf.to_ours(config, {rename(k): v for k, v in given.items()}))
    assert set(back) == set(released)
    for name, leaf in released.items():
      assert back[name].dtype == leaf.dtype
      np.testing.assert_array_equal(back[name].whole(), leaf.whole(), err_msg=name)


def older(name):
  """As the releases and transformers 4 call it."""
  return name.replace("vision_tower.", "vision_tower.vision_model.")


def nested(name):
  """As the modules of transformers 5 are called."""
  if name.startswith("language_model.lm_head"):
    return "lm_head.weight"
  name = name.replace("language_model.model.", "language_model.")
  return name if name.startswith(("model.", "lm_head")) else f"model.{name}"


@EACH
def test_a_written_config_is_read_by_transformers(case, make, tmp_path):
  c = case(make)
  config = hf_config.write_config(c.config)
  assert hf_config.read_config(config, where="here") == c.config
  flat = {k: leaves.of_array(v) for k, v in tree.flatten(c.params).items()}
  tensors = {
    k: torch.tensor(v.whole()).contiguous() for k, v in hf.from_ours(c.config, flat).items()
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  safetensors_torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
  model, report = MODELS[make].from_pretrained(
    tmp_path, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  _, images, tokens, valid, ar = batch(c.config, left=False)
  again = dataclasses.replace(c, reference=model.eval())
  want = theirs(c, images, tokens, valid, ar)
  np.testing.assert_array_equal(theirs(again, images, tokens, valid, ar), want)


def test_reads_only_what_is_asked_for(case):
  config, tensors = read(case(gemma3).folder)
  seen = []

  def watched(name, leaf):
    def read(index):
      seen.append((name, math.prod(s.stop - s.start for s in index)))
      return leaf.read(index)

    return dataclasses.replace(leaf, read=read)

  ours = hf.to_ours(config, {k: watched(k, v) for k, v in tensors.items()})
  assert not seen
  q = ours["llm/layers/attn/q_einsum/w"]  # [L,N,D,H]
  part = q.read((slice(1, 3), slice(1, 2), slice(4, 12), slice(2, 5)))
  names = [f"language_model.model.layers.{i}.self_attn.q_proj.weight" for i in (1, 2)]
  assert seen == [(n, 6 * 8) for n in names]
  np.testing.assert_array_equal(part, q.whole()[1:3, 1:2, 4:12, 2:5])


def test_every_slice_of_a_leaf_is_that_part_of_the_whole(case):
  config, tensors = read(case(gemma3).folder)
  mine = hf.to_ours(config, tensors)
  rng = np.random.default_rng(0)
  for name, leaf in [*mine.items(), *hf.from_ours(config, mine).items()]:
    index = []
    for n in leaf.shape:
      start = int(rng.integers(n))
      index.append(slice(start, int(rng.integers(start, n)) + 1))
    np.testing.assert_array_equal(leaf.read(tuple(index)), leaf.whole()[tuple(index)], err_msg=name)


def test_a_stored_copy_of_a_tied_head_is_taken_and_another_head_is_refused(case):
  config, tensors = read(case(gemma2_text).folder)
  copy = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
  assert set(hf.from_ours(config, hf.to_ours(config, copy))) == set(tensors)
  other = leaves.of_array(tensors["model.embed_tokens.weight"].whole() + 1)
  with pytest.raises(UserError, match="lm_head.weight is not a copy .* tie_word_embeddings"):
    hf.to_ours(config, tensors | {"lm_head.weight": other})


@pytest.mark.parametrize("rename", [lambda n: n, lambda n: older(n), lambda n: nested(n)])
def test_a_tied_embedding_may_be_there_as_the_head_only(case, rename):
  config, tensors = read(case(paligemma2).folder)
  tensors = {rename(k): v for k, v in tensors.items()}
  (name,) = (n for n in tensors if n.endswith("embed_tokens.weight"))
  only = {k: v for k, v in tensors.items() if k != name} | {"lm_head.weight": tensors[name]}
  flat, got = hf.to_ours(config, tensors), hf.to_ours(config, only)
  assert flat.keys() == got.keys()
  for k, leaf in flat.items():
    np.testing.assert_array_equal(got[k].whole(), leaf.whole(), err_msg=k)
  assert not any(name.endswith("lm_head.weight") for name in hf.from_ours(config, got))
  untied = dataclasses.replace(config, text=dataclasses.replace(config.text, tied_head=False))
  with pytest.raises(UserError, match=f"no {name}"):
    hf.to_ours(untied, only)


def test_strict_both_ways(case):
  config, tensors = read(case(gemma2_text).folder)
  name = "model.layers.1.mlp.up_proj.weight"
  rest = {k: v for k, v in tensors.items() if k != name}
  buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": leaves.of_array(np.ones(3))}
  hf.to_ours(config, tensors | buffer)
  near = "model.layers.1.mlp.up.weight"
  wide = "model.layers.3.mlp.up_proj.weight"
  for wrong, message in (
    (rest, rf"here: no {name} \(24, 16\), the nearest there is model.layers.2"),
    (rest | {near: tensors[name]}, rf"no {name}.*the nearest there is {near} \(and 1 more"),
    (tensors | {wide: tensors[name]}, rf"{wide} \(24, 16\) is not used .* that is model.layers"),
    (tensors | {name: leaves.of_array(np.ones((1, 2)))}, rf"{name}: expected \(24, 16\), got \(1,"),
    ({"x": tensors[name]}, r"0 tensors are called …embed_tokens.weight"),
  ):
    with pytest.raises(UserError, match=message):
      hf.to_ours(config, wrong, where="here")
  flat = hf.to_ours(config, tensors)
  with pytest.raises(UserError, match="no llm/final_norm/scale"):
    hf.from_ours(config, {k: v for k, v in flat.items() if k != "llm/final_norm/scale"})
  with pytest.raises(UserError, match="llm/other .* is not used"):
    hf.from_ours(config, flat | {"llm/other": leaves.of_array(np.ones(2))})


# Names in the index of a released Gemma 3 (medgemma-27b-it), and in the script that made the
# released PaliGemma 2 (transformers 4.47, convert_paligemma2_weights_to_hf.py); {} is a layer.
LAYER = """input_layernorm mlp.down_proj mlp.gate_proj mlp.up_proj post_attention_layernorm
  post_feedforward_layernorm pre_feedforward_layernorm self_attn.k_proj self_attn.o_proj
  self_attn.q_proj self_attn.v_proj""".split()
TOWER_LAYER = """layer_norm1 layer_norm2 mlp.fc1 mlp.fc2 self_attn.k_proj self_attn.out_proj
  self_attn.q_proj self_attn.v_proj""".split()
TOWER = "vision_tower.vision_model"
RELEASED = {
  "language_model.model.embed_tokens.weight",
  "language_model.model.norm.weight",
  *(f"language_model.model.layers.{{}}.{name}.weight" for name in LAYER),
  f"{TOWER}.embeddings.patch_embedding.bias",
  f"{TOWER}.embeddings.patch_embedding.weight",
  f"{TOWER}.embeddings.position_embedding.weight",
  *(f"{TOWER}.encoder.layers.{{}}.{n}.{x}" for n in TOWER_LAYER for x in ("bias", "weight")),
  f"{TOWER}.post_layernorm.bias",
  f"{TOWER}.post_layernorm.weight",
}
RELEASED_ONLY = {
  "gemma3_4b": {
    "language_model.model.layers.{}.self_attn.k_norm.weight",
    "language_model.model.layers.{}.self_attn.q_norm.weight",
    "multi_modal_projector.mm_input_projection_weight",
    "multi_modal_projector.mm_soft_emb_norm.weight",
  },
  "paligemma2_3b_224": {
    "multi_modal_projector.linear.bias",
    "multi_modal_projector.linear.weight",
  },
}


@pytest.mark.parametrize("name", RELEASED_ONLY)
def test_tensors_are_called_as_in_the_released_checkpoints(name):
  config = variants.VARIANTS[name]
  shapes = tree.flatten(jax.eval_shape(lambda k: mm.init(config, k), jax.random.key(0)))
  flat = {k: leaves.Leaf(v.shape, np.dtype("float32"), None) for k, v in shapes.items()}
  got = sorted(hf.from_ours(config, flat))
  patterns = {re.sub(r"layers\.\d+\.", "layers.{}.", k) for k in got}
  assert patterns == RELEASED | RELEASED_ONLY[name]
  depths = {"language_model.model": config.text.depth, f"{TOWER}.encoder": config.tower.depth}
  for prefix, depth in depths.items():
    numbers = {m[1] for k in got if (m := re.match(re.escape(prefix) + r"\.layers\.(\d+)\.", k))}
    assert numbers == set(map(str, range(depth)))


def test_the_parameters_are_the_model_s(case):
  for make in MODELS:
    c = case(make)
    expected = jax.eval_shape(lambda key, config=c.config: mm.init(config, key), jax.random.key(0))
    assert not tree.diff(expected, c.params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(c.params))
