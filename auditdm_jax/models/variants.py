# SPDX-License-Identifier: Apache-2.0
"""The published models as data.

Sizes are those of the published configs. The vocabulary of PaliGemma is big_vision's, 256,000
pieces, 1,024 `<loc>` and 128 `<seg>`, whose first free id marks an image slot; the Hugging Face
files pad it to 257,216 rows.
"""

from collections.abc import Mapping
import dataclasses

from auditdm_jax.models.gemma import GemmaConfig, alternate
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.models.siglip import SiglipConfig


def _siglip(image_size: int) -> SiglipConfig:
  """SigLIP So400m/14."""
  return SiglipConfig(1152, 27, 4304, 16, patch_size=14, image_size=image_size)


def _gemma3(
  width: int,
  depth: int,
  mlp_dim: int,
  heads: int,
  kv_heads: int,
  *,
  head_dim: int = 256,
  scalar: int = 256,
) -> GemmaConfig:
  """Returns a decoder of Gemma 3 from 4B up; `scalar` is query_pre_attn_scalar."""
  return GemmaConfig(
    vocab_size=262_208,
    width=width,
    depth=depth,
    mlp_dim=mlp_dim,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    query_scale=scalar**-0.5,
    rope_base=1e6,
    rope_scale=8.0,
    window=1024,
    layer_is_local=alternate(depth, local=5, every=6),
    qk_norm=True,
  )


def _gemma3_text(width: int, depth: int, mlp_dim: int) -> VlmConfig:
  text = _gemma3(width, depth, mlp_dim, 4, 1)
  text = dataclasses.replace(text, vocab_size=262_144, rope_scale=1.0, window=512)
  return VlmConfig("gemma3", text, None, image_token_id=-1)


def _gemma3_vision(text: GemmaConfig) -> VlmConfig:
  return VlmConfig("gemma3", text, _siglip(896), image_token_id=262_144, mm_tokens=256)


def _gemma2(
  width: int,
  depth: int,
  mlp_dim: int,
  heads: int,
  kv_heads: int,
  *,
  head_dim: int = 256,
  scalar: int = 256,
) -> GemmaConfig:
  return GemmaConfig(
    vocab_size=257_152,
    width=width,
    depth=depth,
    mlp_dim=mlp_dim,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    query_scale=scalar**-0.5,
    window=4096,
    layer_is_local=alternate(depth, local=1, every=2),
    attn_softcap=50.0,
    final_softcap=30.0,
  )


def _paligemmas() -> dict[str, VlmConfig]:
  gemma1 = GemmaConfig(257_152, 2048, 18, 16_384, 8, 1, 256, post_norms=False)
  texts = {
    "paligemma_3b": gemma1,
    "paligemma2_3b": _gemma2(2304, 26, 9216, 8, 4),
    "paligemma2_10b": _gemma2(3584, 42, 14_336, 16, 8),
    "paligemma2_28b": _gemma2(4608, 46, 36_864, 32, 16, head_dim=128, scalar=144),
  }
  return {
    f"{name}_{size}": VlmConfig("paligemma", text, _siglip(size), image_token_id=257_152)
    for name, text in texts.items()
    for size in (224, 448, 896)
  }


VARIANTS: Mapping[str, VlmConfig] = {
  "gemma3_270m": _gemma3_text(640, 18, 2048),
  "gemma3_1b": _gemma3_text(1152, 26, 6912),
  "gemma3_4b": _gemma3_vision(_gemma3(2560, 34, 10_240, 8, 4)),
  "gemma3_12b": _gemma3_vision(_gemma3(3840, 48, 15_360, 16, 8)),
  "gemma3_27b": _gemma3_vision(_gemma3(5376, 62, 21_504, 32, 16, head_dim=128, scalar=168)),
  **_paligemmas(),
}
