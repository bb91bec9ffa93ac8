# SPDX-License-Identifier: Apache-2.0
"""config.json files: the published ones, odd ones, and those that are refused."""

import dataclasses
import json

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.models import gemma, hf_config, variants

SO400M = {
  "hidden_size": 1152,
  "intermediate_size": 4304,
  "model_type": "siglip_vision_model",
  "num_attention_heads": 16,
  "num_hidden_layers": 27,
  "patch_size": 14,
  "vision_use_head": False,
}
SCALED = {"factor": 8.0, "rope_type": "linear"}


def gemma3(text):
  return {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "rope_scaling": SCALED, "sliding_window": 1024}
    | text,
    "vision_config": SO400M | {"image_size": 896},
  }


def gemma3_text(width, layers, ffn, **more):
  return {
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": width,
    "intermediate_size": ffn,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": layers,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "vocab_size": 262144,
  } | more


def paligemma(width, text, **vision):
  return {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "image_token_index": 257152,
    "model_type": "paligemma",
    "projection_dim": width,
    "text_config": {"hidden_size": width, "vocab_size": 257216} | text,
    "vision_config": SO400M | {"num_image_tokens": 256, "projection_dim": width} | vision,
  }


def gemma2(layers, ffn, heads, kv_heads, **more):
  return {
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "intermediate_size": ffn,
    "model_type": "gemma2",
    "num_attention_heads": heads,
    "num_hidden_layers": layers,
    "num_key_value_heads": kv_heads,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
  } | more


LOCAL, GLOBAL = "sliding_attention", "full_attention"
PALIGEMMA1 = {
  "intermediate_size": 16384,
  "model_type": "gemma",
  "num_attention_heads": 8,
  "num_hidden_layers": 18,
  "num_image_tokens": 256,
  "num_key_value_heads": 1,
}
BIG = dict(num_attention_heads=32, num_key_value_heads=16, head_dim=128)
# What the published files say of the architecture.
PUBLIC = {
  "gemma3_270m": gemma3_text(640, 18, 2048, layer_types=([LOCAL] * 5 + [GLOBAL]) * 3),
  "gemma3_1b": gemma3_text(1152, 26, 6912, sliding_window_pattern=6),
  "gemma3_4b": gemma3({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}),
  "gemma3_12b": gemma3(
    {
      "hidden_size": 3840,
      "intermediate_size": 15360,
      "num_attention_heads": 16,
      "num_hidden_layers": 48,
      "num_key_value_heads": 8,
    }
  ),
  "gemma3_27b": gemma3(
    BIG
    | {
      "hidden_size": 5376,
      "intermediate_size": 21504,
      "num_hidden_layers": 62,
      "query_pre_attn_scalar": 168,
    }
  ),
  "paligemma_3b_224": paligemma(2048, PALIGEMMA1),
  "paligemma_3b_896": paligemma(2048, PALIGEMMA1, image_size=896),
  "paligemma2_3b_448": paligemma(2304, gemma2(26, 9216, 8, 4), image_size=448),
  "paligemma2_10b_224": paligemma(3584, gemma2(42, 14336, 16, 8), image_size=224),
  "paligemma2_28b_896": paligemma(
    4608, gemma2(46, 36864, 32, 16, head_dim=128, query_pre_attn_scalar=144), image_size=896
  ),
}


def read(config):
  return hf_config.read_config(config, where="m/config.json")


@pytest.mark.parametrize("name", PUBLIC)
def test_published_configs_are_the_variants(name):
  config, variant = read(PUBLIC[name]), variants.VARIANTS[name]
  if config.kind == "paligemma":  # Hugging Face pads big_vision's vocabulary.
    text = dataclasses.replace(variant.text, vocab_size=257_216)
    variant = dataclasses.replace(variant, text=text)
  assert config == variant


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_written_config_says_the_same(name):
  assert read(hf_config.write_config(variants.VARIANTS[name])) == variants.VARIANTS[name]


def test_the_model_type_does_where_no_architecture_is_named():
  config = {k: v for k, v in PUBLIC["gemma3_1b"].items() if k != "architectures"}
  assert read(config) == variants.VARIANTS["gemma3_1b"]


def test_missing_keys_are_those_of_transformers():
  config = read({"architectures": ["PaliGemmaForConditionalGeneration"]})
  assert (config.text.depth, config.text.vocab_size, config.vision.mlp_dim) == (18, 257_152, 4096)
  assert config.image_token_id == 256_000
  config = read({"model_type": "gemma3", "mm_tokens_per_image": 49})
  assert (config.text.width, config.text.window, config.vision.depth) == (2304, 4096, 12)
  assert config.text.layer_is_local == gemma.alternate(26, local=5, every=6)
  assert config.vision.pooling_head and config.image_token_id == 262_144


def test_rope_in_both_spellings():
  def angles(**more):
    t = read(gemma3_text(64, 6, 8) | {"rope_scaling": None} | more).text
    return t.rope_base, t.rope_scale, t.local_rope_base, t.local_rope_scale

  full = {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5}
  local = {"rope_type": "default", "rope_theta": 3e3}
  new = {"rope_parameters": {GLOBAL: full, LOCAL: local}, "rope_theta": 5}
  assert angles(**new) == (7e5, 4.0, 3e3, 1.0)
  old = dict(rope_theta=7e5, rope_local_base_freq=3e3, rope_scaling={"type": "linear", "factor": 4})
  assert angles(**old) == (7e5, 4.0, 3e3, 1.0)
  assert angles(rope_parameters={LOCAL: local | full}) == (1e6, 1.0, 7e5, 4.0)
  text = read({"model_type": "gemma2", "rope_theta": 50.0, "rope_scaling": full}).text
  assert (text.rope_base, text.local_rope_base, text.local_rope_scale) == (7e5, 7e5, 4.0)


def test_null_turns_a_softcap_off():
  text = read({"model_type": "gemma2", "attn_logit_softcapping": None}).text
  assert (text.attn_softcap, text.final_softcap) == (0.0, 30.0)


def test_layers_without_a_window_need_none():
  config = {"model_type": "gemma2", "sliding_window": None, "layer_types": [GLOBAL] * 26}
  text = read(config).text
  assert text.window is None and text.layer_is_local == ()


TINY = gemma3_text(16, 2, 8)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"architectures": ["Gemma3ForCausalML"]}, ".did you mean 'Gemma3ForCausalLM'.*; known"),
    ({"architectures": None, "model_type": "llama"}, "model_type 'llama' is not known"),
    ({"architectures": [], "model_type": None}, "model_type None is not known"),
    ({"hidden_size": "16"}, "m/config.json: hidden_size is '16': expected a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"sliding_window": 10**30}, "sliding_window is 10{30}: expected a whole number"),
    ({"rope_theta": 10**400}, "rope_theta is 10{400}: expected a number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan: expected a number"),
    ({"query_pre_attn_scalar": float("inf")}, "query_pre_attn_scalar is inf: expected a number"),
    ({"num_key_value_heads": 3}, "num_heads 4 % num_kv_heads 3"),
    ({"head_dim": None}, "head_dim is None"),
    ({"head_dim": 5}, "head_dim 5 is odd"),
    ({"hidden_activation": "gelu_10"}, "hidden_activation is 'gelu_10': expected one of gelu_py"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn': only"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope factor is None: expected a number"),
    ({"rope_scaling": SCALED | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_scaling": 8}, "rope_scaling is 8: expected an object"),
    ({"layer_types": [LOCAL]}, "layer_types is .*expected 2 of sliding"),
    ({"layer_types": [LOCAL, "chunked_attention"]}, "layer_types is .*chunked"),
    ({"sliding_window": None}, "sliding_window is None"),
    ({"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({"quantization_config": {"bits": 4}}, "quantised weights"),
    ({"attention_bias": 1}, "attention_bias is 1: expected true or false"),
  ],
)
def test_what_cannot_be_done_is_named(change, message):
  with pytest.raises(UserError, match=message) as e:
    read(TINY | change)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
    ({"text_config": 3}, "text_config is 3: expected an object"),
    ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type is 'clip"),
    ({"vision_config": {"num_channels": 1}}, "vision_config.num_channels is 1"),
    ({"vision_config": {"image_size": [224, 196]}}, r"image_size is \[224, 196\]"),
    ({"vision_config": {"num_attention_heads": 5}}, "m/config.json: width 768 % num_heads 5"),
    ({"projection_dim": 64}, "projection_dim is 64: expected 2048"),
  ],
)
def test_what_cannot_be_done_in_a_part_is_named(change, message):
  with pytest.raises(UserError, match=message):
    read({"model_type": "paligemma", "vision_config": {}} | change)


def test_what_config_json_has_no_words_for_is_refused():
  def changed(name, **text):
    config = variants.VARIANTS[name]
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **text))

  for config, message in (
    (changed("gemma3_4b", final_softcap=30.0), "Gemma3ForCond.* text.final_softcap is 30.0"),
    (changed("gemma3_1b", attn_softcap=50.0), "text.attn_softcap is 50.0"),
    (changed("paligemma2_3b_224", local_rope_base=5.0), "text.local_rope_base is 5.0"),
    (changed("paligemma_3b_224", query_scale=0.5), "text.query_scale is 0.5"),
    (changed("paligemma2_3b_224", query_scale=0.3), "text.query_scale is 0.3"),
  ):
    with pytest.raises(UserError, match=message):
      hf_config.write_config(config)


def test_the_rotary_embedding_is_said_in_old_and_in_new_words():
  """Old as released, new as transformers 5.23 saves it after reading a release."""
  gemma3_4b = hf_config.write_config(variants.VARIANTS["gemma3_4b"])["text_config"]
  assert gemma3_4b["rope_theta"] == 1e6 and gemma3_4b["rope_local_base_freq"] == 1e4
  assert gemma3_4b["rope_scaling"] == SCALED
  assert gemma3_4b["rope_parameters"] == {
    GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    LOCAL: {"rope_type": "default", "rope_theta": 1e4},
  }
  paligemma2 = hf_config.write_config(variants.VARIANTS["paligemma2_3b_224"])["text_config"]
  assert paligemma2["rope_theta"] == 1e4 and paligemma2["rope_scaling"] is None
  assert paligemma2["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4}
  assert "rope_local_base_freq" not in paligemma2


@pytest.mark.parametrize("name", ["gemma3_4b", "gemma3_1b", "paligemma2_3b_224"])
def test_a_config_of_transformers_5_gets_the_old_words_and_a_released_one_stays(name):
  config = variants.VARIANTS[name]
  written = hf_config.write_config(config) | {"transformers_version": "5.23.0"}
  old = ("rope_theta", "rope_scaling", "rope_local_base_freq")

  def without(header, keys):
    if "text_config" not in header:
      return {k: v for k, v in header.items() if k not in keys}
    return header | {"text_config": without(header["text_config"], keys)}

  new = without(written, old)
  given = json.dumps(new)
  assert hf_config.with_older_keys(new, config) == written
  assert json.dumps(new) == given
  released = without(written, ("rope_parameters",))
  assert hf_config.with_older_keys(released, config) == released
