# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face config.json as a `VlmConfig`, and back.

Nothing is guessed from a model's name. A key that is missing has the default of its class in
transformers, because that is what the reference runs with: the published files hold little more
than what differs from it. A value that asks for something this decoder does not do is an error.
"""

from collections.abc import Mapping
import dataclasses
import sys
from typing import Any

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.models import siglip
from auditdm_jax.models.activations import Activation
from auditdm_jax.models.gemma import GemmaConfig, alternate
from auditdm_jax.models.multimodal import VlmConfig

# Architecture -> the model_type of its config.json.
ARCHITECTURES = {
  "Gemma3ForConditionalGeneration": "gemma3",
  "Gemma3ForCausalLM": "gemma3_text",
  "Gemma2ForCausalLM": "gemma2",
  "GemmaForCausalLM": "gemma",
  "PaliGemmaForConditionalGeneration": "paligemma",
}
ACTIVATIONS: dict[str, Activation] = {
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "gelu": "gelu",
  "gelu_python": "gelu",
  "quick_gelu": "quick_gelu",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
}

_GEMMA = {
  "vocab_size": 256_000,
  "hidden_size": 3072,
  "intermediate_size": 24_576,
  "num_hidden_layers": 28,
  "num_attention_heads": 16,
  "num_key_value_heads": 16,
  "head_dim": 256,
  "hidden_act": "gelu_pytorch_tanh",
  "rms_norm_eps": 1e-6,
  "attention_bias": False,
  "tie_word_embeddings": True,
  "rope_theta": 10_000.0,
  "final_logit_softcapping": None,
}
_GEMMA2 = _GEMMA | {
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}
_GEMMA3 = _GEMMA2 | {
  "vocab_size": 262_208,
  "rope_theta": 1_000_000.0,
  "rope_local_base_freq": 10_000.0,
  "sliding_window_pattern": 6,
  "attn_logit_softcapping": None,
  "final_logit_softcapping": None,
}
_TEXT = {"gemma": _GEMMA, "gemma2": _GEMMA2, "gemma3_text": _GEMMA3}
_SIGLIP = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 16,
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
  "vision_use_head": True,
}
# What PaliGemma's class takes for a part that its config.json does not mention.
_PALIGEMMA_TEXT = {
  "hidden_size": 2048,
  "num_hidden_layers": 18,
  "intermediate_size": 16_384,
  "num_attention_heads": 8,
  "num_key_value_heads": 1,
  "vocab_size": 257_152,
}
_PALIGEMMA_VISION = {
  "hidden_size": 1152,
  "intermediate_size": 4096,
  "num_hidden_layers": 27,
  "num_attention_heads": 16,
  "patch_size": 14,
  "vision_use_head": False,
}


class _Section:
  """A part of a config.json over its defaults; every value is checked when it is asked for."""

  def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any], name: str):
    self.values, self.name = {**defaults, **given}, name

  def error(self, key: str, expected: str) -> UserError:
    return UserError(f"{self.name}{key} is {self.values.get(key)!r}: expected {expected}")

  def integer(self, key: str, *, least: int = 1) -> int:
    value = self.values[key]
    known = isinstance(value, int) and not isinstance(value, bool)
    if not known or not least <= value < 1 << 31:
      raise self.error(key, f"a whole number from {least} up, of 32 bits")
    return value

  def number(self, key: str) -> float:
    value = self.values[key]
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not 0 < value <= sys.float_info.max:
      raise self.error(key, "a number above 0")
    return float(value)

  def cap(self, key: str) -> float:
    return 0.0 if self.values[key] is None else self.number(key)

  def boolean(self, key: str) -> bool:
    if not isinstance(self.values[key], bool):
      raise self.error(key, "true or false")
    return self.values[key]

  def choice(self, key: str, known: Mapping[str, Any]) -> Any:
    value = self.values[key]
    if not isinstance(value, str) or value not in known:
      hint = did_you_mean(str(value), known)
      raise self.error(key, f"one of {', '.join(known)}{hint}")
    return known[value]

  def side(self, key: str) -> int:
    """Returns an edge of a square, which may be given twice."""
    if isinstance(self.values[key], list) and len(set(map(str, self.values[key]))) == 1:
      self.values[key] = self.values[key][0]
    return self.integer(key)

  def part(self, key: str) -> Mapping[str, Any] | None:
    value = self.values.get(key)
    if value is not None and not isinstance(value, Mapping):
      raise self.error(key, "an object or null")
    return value


def read_config(config: Mapping[str, Any], *, where: str) -> VlmConfig:
  """Returns the model that a config.json describes.

  Args:
    config: the parsed file.
    where: its path, for errors.

  Raises:
    UserError: an unknown architecture, or a value that is wrong or asks for what is not done here.
  """
  architecture = _architecture(config, where)
  if config.get("quantization_config") is not None:
    raise UserError(f"{where}: quantization_config is set: quantised weights are not read")
  top = _Section(config, {}, f"{where}: ")
  if architecture not in ("gemma3", "paligemma"):
    if config.get("use_bidirectional_attention"):
      raise top.error("use_bidirectional_attention", "false: this decoder is causal")
    section = _Section(config, _TEXT[architecture], f"{where}: ")
    text = _read_text(section, architecture, tied=section.boolean("tie_word_embeddings"))
    # transformers caps the logits of Gemma 2 and 3, but not of Gemma 1.
    final = 0.0 if architecture == "gemma" else section.cap("final_logit_softcapping")
    text = dataclasses.replace(text, final_softcap=final)
    return VlmConfig("gemma3", text, None, image_token_id=-1)
  build = _read_gemma3 if architecture == "gemma3" else _read_paligemma
  try:
    return build(top)
  except UserError:
    raise
  except ValueError as e:  # Of a __post_init__ that checks the values together.
    raise UserError(f"{where}: {e}") from e


def _architecture(config: Mapping[str, Any], where: str) -> str:
  """Returns one of the values of `ARCHITECTURES`."""
  names = config.get("architectures")
  if isinstance(names, list) and names:
    if names[0] in ARCHITECTURES:
      return ARCHITECTURES[names[0]]
    found, known = f"architecture {names[0]!r}", list(ARCHITECTURES)
  else:
    found, known = f"model_type {config.get('model_type')!r}", list(ARCHITECTURES.values())
    if config.get("model_type") in known:
      return config["model_type"]
  hint = did_you_mean(found.split("'")[1] if "'" in found else "", known)
  raise UserError(f"{where}: {found} is not known{hint}; known are {', '.join(known)}")


def _read_gemma3(top: _Section) -> VlmConfig:
  top.values = {
    "mm_tokens_per_image": 256,
    "image_token_index": 262_144,
    "tie_word_embeddings": True,
  } | top.values
  given = top.part("text_config") or {}
  kind = given.get("model_type", "gemma3_text")
  text = _Section(given, _GEMMA3, f"{top.name}text_config.")
  if kind != "gemma3_text":
    raise text.error("model_type", "'gemma3_text'")
  if given.get("use_bidirectional_attention"):
    raise text.error("use_bidirectional_attention", "false: this decoder is causal")
  # Here transformers caps no logits, whatever final_logit_softcapping says.
  return VlmConfig(
    "gemma3",
    _read_text(text, kind, tied=top.boolean("tie_word_embeddings")),
    _read_vision(top, {}),
    image_token_id=_image_token(top),
    mm_tokens=top.integer("mm_tokens_per_image"),
  )


def _read_paligemma(top: _Section) -> VlmConfig:
  top.values = {
    "projection_dim": 2048,
    "image_token_index": 256_000,
    "tie_word_embeddings": True,
  } | top.values
  given = top.part("text_config")
  given = _PALIGEMMA_TEXT if given is None else given
  kind = given.get("model_type", "gemma")
  if kind not in ("gemma", "gemma2"):
    raise UserError(f"{top.name}text_config.model_type is {kind!r}: expected 'gemma' or 'gemma2'")
  section = _Section(given, _TEXT[kind], f"{top.name}text_config.")
  text = _read_text(section, kind, tied=top.boolean("tie_word_embeddings"))
  if top.integer("projection_dim") != text.width:
    raise top.error("projection_dim", f"{text.width}, text_config.hidden_size")
  return VlmConfig(
    "paligemma",
    dataclasses.replace(text, final_softcap=section.cap("final_logit_softcapping")),
    _read_vision(top, _PALIGEMMA_VISION),
    image_token_id=_image_token(top),
  )


def _image_token(top: _Section) -> int:
  key = "image_token_id" if "image_token_id" in top.values else "image_token_index"
  return top.integer(key, least=0)


def _read_text(s: _Section, kind: str, *, tied: bool) -> GemmaConfig:
  """Returns the decoder, but for its final softcap, which depends on what it is part of."""
  depth, two = s.integer("num_hidden_layers"), kind != "gemma"
  local = _layer_is_local(s, kind, depth)
  rope, local_rope = _read_rope(s, kind)
  activation = s.choice("hidden_activation" if two else "hidden_act", ACTIVATIONS)
  if kind == "gemma" and s.values["hidden_act"] == "gelu":
    activation = "gelu_tanh"  # So says transformers of the first releases: it was meant.
  try:
    return GemmaConfig(
      vocab_size=s.integer("vocab_size"),
      width=s.integer("hidden_size"),
      depth=depth,
      mlp_dim=s.integer("intermediate_size"),
      num_heads=s.integer("num_attention_heads"),
      num_kv_heads=s.integer("num_key_value_heads"),
      head_dim=s.integer("head_dim"),
      query_scale=s.number("query_pre_attn_scalar") ** -0.5 if two else None,
      rope_base=rope[0],
      rope_scale=rope[1],
      local_rope_base=local_rope[0],
      local_rope_scale=local_rope[1],
      window=s.integer("sliding_window") if any(local) else None,
      layer_is_local=local if any(local) else (),
      # Gemma 3's class has the key, but its attention does not look at it.
      attn_softcap=s.cap("attn_logit_softcapping") if kind == "gemma2" else 0.0,
      qk_norm=kind == "gemma3_text",
      post_norms=two,
      attn_bias=s.boolean("attention_bias"),
      activation=activation,
      tied_head=tied,
      norm_eps=s.number("rms_norm_eps"),
    )
  except UserError:
    raise
  except ValueError as e:
    raise UserError(f"{s.name.removesuffix('.')}: {e}") from e


def _layer_is_local(s: _Section, kind: str, depth: int) -> tuple[bool, ...]:
  if kind == "gemma":
    return ()
  types = s.values.get("layer_types")
  if types is None:
    every = 2 if kind == "gemma2" else s.integer("sliding_window_pattern")
    return alternate(depth, local=every - 1, every=every)
  known = {"sliding_attention": True, "full_attention": False}
  if not isinstance(types, list) or len(types) != depth or not set(map(str, types)) <= set(known):
    raise s.error("layer_types", f"{depth} of {', '.join(known)}, one per layer")
  return tuple(known[t] for t in types)


def _read_rope(s: _Section, kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
  """Returns (base, scale) of the global layers, and of those with a window.

  transformers 5 writes `rope_parameters`; before it there were `rope_theta` and `rope_scaling`, and
  in Gemma 3 `rope_local_base_freq`, whose layers are not scaled.
  """
  given, scaling = s.part("rope_parameters") or {}, s.part("rope_scaling") or {}
  if kind != "gemma3_text":
    rope = {"rope_theta": s.number("rope_theta"), **(scaling or given)}
    return (_rope(s, rope),) * 2
  inside = _Section(given, {}, f"{s.name}rope_parameters.")
  full, local = (inside.part(k) or {} for k in ("full_attention", "sliding_attention"))
  return (
    _rope(s, {"rope_theta": s.number("rope_theta"), **full, **scaling}),
    _rope(s, {"rope_theta": s.number("rope_local_base_freq"), **local}),
  )


def _rope(s: _Section, values: Mapping[str, Any]) -> tuple[float, float]:
  rope = _Section(values, {"factor": None}, f"{s.name}rope ")
  kind = values.get("rope_type", values.get("type", "default"))
  if kind not in ("default", "linear"):
    raise UserError(f"{s.name}rope_type is {kind!r}: only 'default' and 'linear' are implemented")
  if kind == "default":
    return rope.number("rope_theta"), 1.0
  if values.get("partial_rotary_factor", 1.0) != 1.0:
    raise rope.error("partial_rotary_factor", "1.0: every pair of a head is rotated here")
  return rope.number("rope_theta"), rope.number("factor")


def _read_vision(top: _Section, missing: Mapping[str, Any]) -> siglip.SiglipConfig:
  given = top.part("vision_config")
  s = _Section(missing if given is None else given, _SIGLIP, f"{top.name}vision_config.")
  if s.values.get("model_type", "siglip_vision_model") != "siglip_vision_model":
    raise s.error("model_type", "'siglip_vision_model'")
  if s.integer("num_channels") != 3:
    raise s.error("num_channels", "3")
  return siglip.SiglipConfig(
    width=s.integer("hidden_size"),
    depth=s.integer("num_hidden_layers"),
    mlp_dim=s.integer("intermediate_size"),
    num_heads=s.integer("num_attention_heads"),
    patch_size=s.side("patch_size"),
    image_size=s.side("image_size"),
    norm_eps=s.number("layer_norm_eps"),
    activation=s.choice("hidden_act", ACTIVATIONS),
    pooling_head=s.boolean("vision_use_head"),
  )


def write_config(config: VlmConfig) -> dict[str, Any]:
  """Returns the config.json of a model that did not come with one; for transformers 4.5x and 5.

  `rope_parameters` is what transformers 5 reads first, `rope_theta` and its like what others do.

  Raises:
    UserError: config.json has no words for the model, such as a softcap in a Gemma 3.
  """
  text = _write_text(config.text)
  if config.vision is None:
    out = text
  else:
    kind = config.kind
    out = {
      "model_type": kind,
      "text_config": text,
      "vision_config": _write_vision(config.vision),
      "image_token_index": config.image_token_id,
      "tie_word_embeddings": config.text.tied_head,
    }
    if kind == "gemma3":
      out["mm_tokens_per_image"] = config.num_image_tokens
    else:
      # The class keeps a vocab_size and a hidden_size of its own, which nothing reads.
      out |= {"projection_dim": config.text.width, "hidden_size": config.text.width}
      out["vision_config"]["projection_dim"] = config.text.width
  out["architectures"] = [next(k for k, v in ARCHITECTURES.items() if v == out["model_type"])]
  _check_written(config, out)
  return out


def _write_text(t: GemmaConfig) -> dict[str, Any]:
  kind = "gemma3_text" if t.qk_norm else "gemma2" if t.post_norms else "gemma"
  activation = next(k for k, v in ACTIVATIONS.items() if v == t.activation)
  out = {
    "model_type": kind,
    "vocab_size": t.vocab_size,
    "hidden_size": t.width,
    "intermediate_size": t.mlp_dim,
    "num_hidden_layers": t.depth,
    "num_attention_heads": t.num_heads,
    "num_key_value_heads": t.num_kv_heads,
    "head_dim": t.head_dim,
    "rms_norm_eps": t.norm_eps,
    "attention_bias": t.attn_bias,
    "tie_word_embeddings": t.tied_head,
  }
  out |= _older_rope(t) | {"rope_parameters": _newer_rope(t)}
  if kind == "gemma":
    return out | {"hidden_act": activation, "final_logit_softcapping": t.final_softcap or None}
  kinds = {True: "sliding_attention", False: "full_attention"}
  return out | {
    "hidden_activation": activation,
    "query_pre_attn_scalar": round((t.query_scale or t.head_dim**-0.5) ** -2),
    "sliding_window": t.window or _GEMMA2["sliding_window"],  # Not null: transformers reads it.
    "layer_types": [kinds[k] for k in t.layer_is_local or (False,) * t.depth],
    "attn_logit_softcapping": t.attn_softcap or None,
    "final_logit_softcapping": t.final_softcap or None,
  }


def with_older_keys(header: Mapping[str, Any], config: VlmConfig) -> dict[str, Any]:
  """Returns a config.json of transformers 5 that older readers take, too.

  They do not look at `rope_parameters`, so the same is said in their words beside it. A config.json
  without that key is in their words already and is returned as it is.

  Args:
    header: the config.json.
    config: the model that it describes.
  """
  part = header.get("text_config")
  section = part if isinstance(part, Mapping) else header
  if section.get("rope_parameters") is None:
    return dict(header)
  section = {**section, **_older_rope(config.text)}
  return {**header, "text_config": section} if isinstance(part, Mapping) else section


def _older_rope(t: GemmaConfig) -> dict[str, Any]:
  """Returns how transformers before 5 says the rotary embedding; no local layer is scaled there."""
  scaling = None if t.rope_scale == 1 else {"rope_type": "linear", "factor": t.rope_scale}
  local = {"rope_local_base_freq": t.local_rope_base} if t.qk_norm else {}
  return {"rope_theta": t.rope_base, "rope_scaling": scaling} | local


def _newer_rope(t: GemmaConfig) -> dict[str, Any]:
  """Returns how transformers 5 says the rotary embedding."""

  def rope(base: float, scale: float) -> dict[str, Any]:
    kind = {"rope_type": "default"} if scale == 1 else {"rope_type": "linear", "factor": scale}
    return kind | {"rope_theta": base}

  full = rope(t.rope_base, t.rope_scale)
  if not t.qk_norm:
    return full
  return {
    "full_attention": full,
    "sliding_attention": rope(t.local_rope_base, t.local_rope_scale),
  }


def _write_vision(v: siglip.SiglipConfig) -> dict[str, Any]:
  return {
    "model_type": "siglip_vision_model",
    "hidden_size": v.width,
    "intermediate_size": v.mlp_dim,
    "num_hidden_layers": v.depth,
    "num_attention_heads": v.num_heads,
    "image_size": v.image_size,
    "patch_size": v.patch_size,
    "layer_norm_eps": v.norm_eps,
    "hidden_act": next(k for k, a in ACTIVATIONS.items() if a == v.activation),
    "vision_use_head": v.pooling_head,
  }


def _check_written(config: VlmConfig, out: Mapping[str, Any]) -> None:
  """Reads back what was written: what is lost on the way cannot be said in a config.json."""
  lost = _differences(_canonical(config), _canonical(read_config(out, where="config.json")))
  if lost:
    name, ours, theirs = lost[0]
    raise UserError(
      f"a config.json of {out['architectures'][0]} cannot say that {name} is {ours!r}: "
      f"transformers would run the model with {theirs!r}"
    )


def _canonical(config: VlmConfig) -> VlmConfig:
  """The model with one way to say each thing, and without how it is computed or initialised."""
  t, plain = config.text, dict(dtype="float32", remat=False, unroll=1)
  if not any(t.layer_is_local):
    same = dict(local_rope_base=t.rope_base, local_rope_scale=t.rope_scale)
    t = dataclasses.replace(t, layer_is_local=(), window=None, **same)
  # Rounded: it is stored as n of n**-0.5.
  scale = round(t.head_dim**-0.5 if t.query_scale is None else t.query_scale, 6)
  t = dataclasses.replace(t, query_scale=scale, post_norm_init=0.0, embed_init_std=0.02, **plain)
  vision = config.vision and dataclasses.replace(config.vision, **plain)
  return dataclasses.replace(
    config, text=t, vision=vision, mm_tokens=config.num_image_tokens if vision else None
  )


def _differences(a: VlmConfig, b: VlmConfig) -> list[tuple[str, Any, Any]]:
  def flat(config: VlmConfig) -> dict[str, Any]:
    values = config.to_dict()
    parts = {k: values.pop(k) or {} for k in ("text", "vision")}
    return values | {f"{k}.{f}": v for k, part in parts.items() for f, v in part.items()}

  a, b = flat(a), flat(b)
  return [(k, a.get(k), b.get(k)) for k in a | b if a.get(k) != b.get(k)]
