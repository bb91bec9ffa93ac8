# SPDX-License-Identifier: Apache-2.0
"""An untrained Vlm of a few words and 8 x 8 pixels, of either kind."""

import jax

from auditdm_jax.models import gemma, siglip
from auditdm_jax.models import multimodal as mm
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm

WORDS = "what is where the red blue round thing cup dish ? a b c d e".split()
TOKENIZER = Tokenizer.word_level(WORDS)
TEXT = gemma.GemmaConfig(
  vocab_size=TOKENIZER.vocab_size,
  width=12,
  depth=2,
  mlp_dim=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=6,
  window=4,
  layer_is_local=(True, False),
  embed_init_std=0.6,
)
VISION = siglip.SiglipConfig(width=8, depth=1, mlp_dim=12, num_heads=2, patch_size=4, image_size=8)
# No newline at the end: an untrained model repeats what it read last, which should be a word.
TEMPLATES = {"paligemma": prompts.PALIGEMMA.strip(), "gemma3": prompts.GEMMA3_PLAIN.strip()}


def make(kind, *, seed=0):
  config = mm.VlmConfig(kind, TEXT, VISION, TOKENIZER.image_id)
  params = jax.jit(mm.init, static_argnums=0)(config, jax.random.key(seed))
  return Vlm(
    "tiny", config, params, TOKENIZER, TEMPLATES[kind], (TOKENIZER.id("<eos>"), TOKENIZER.id("a"))
  )
