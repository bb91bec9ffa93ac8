# SPDX-License-Identifier: Apache-2.0
"""The smallest auditor with all of Gemma 3's parts, and batches for it."""

import dataclasses
import functools

import jax
import numpy as np

from auditdm_jax.models import gemma, multimodal, siglip
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm

WORDS = "ask describe edit what color is the red blue circle square ? make a".split()


def tokenizer():
  return Tokenizer.word_level(WORDS)


def config(**changes):
  text = gemma.GemmaConfig(
    vocab_size=tokenizer().vocab_size,
    width=16,
    depth=2,
    mlp_dim=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_base=10_000.0,
    local_rope_base=1_000.0,
    window=8,
    layer_is_local=(True, False),
    qk_norm=True,
  )
  vision = siglip.SiglipConfig(
    width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=8, image_size=16
  )
  made = multimodal.VlmConfig(
    kind="gemma3", text=text, vision=vision, image_token_id=tokenizer().image_id
  )
  return dataclasses.replace(made, **changes)


@functools.cache
def params(seed=0):
  """Random weights; drawn by numpy, since compiling the true init costs seconds."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(functools.partial(multimodal.init, config()), jax.random.key(0))
  return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)


def auditor(seed=0):
  tok = tokenizer()
  return Vlm(
    name="auditor",
    config=config(),
    params=params(seed),
    tokenizer=tok,
    template=prompts.GEMMA3_PLAIN,
    # A set of terminators, large enough that random weights end what they begin.
    stop_ids=tuple(tok.id(w) for w in ("<eos>", "?", "square", "circle", "edit", "the")),
  )


def batch(rows=8, seed=0, completion=5, features=2, all_equal=False):
  """Random completions of random lengths after one prompt; the last row is padding."""
  rng, tok = np.random.default_rng(seed), tokenizer()
  prompt = prompts.render(tok, prompts.GEMMA3_PLAIN, "ask", config().num_image_tokens)
  turns = []
  for _ in range(rows - 1):
    n = int(rng.integers(1, completion + 1))
    turns.append(
      batch_lib.AuditorReply(
        kind="question",
        image_id="",
        prompt=tuple(prompt),
        text="",
        tokens=rng.integers(10, tok.vocab_size, completion).astype(np.int32),
        logprobs=rng.normal(-3, 0.1, completion).astype(np.float32),
        length=n,
        truncated=False,
      )
    )
  part = batch_lib.pack_rows(
    turns,
    np.zeros(rows - 1) if all_equal else rng.normal(size=rows - 1),
    image=[i % features for i in range(rows - 1)],
    rows=rows,
    prompt_width=len(prompt),
    completion_width=completion,
  )
  seen = rng.normal(size=(features, 4, 8)).astype(np.float32)
  return batch_lib.LearnerBatch(seen, None, (part,))
