# SPDX-License-Identifier: Apache-2.0
"""Seconds of a Gemma 3 for several questions an image: it is read once, or once a question.

  python -m benchmarks.prefixes --turns=5 --images=4 --questions=8

A random model of 98 M parameters with 256 image tokens and windows, greedy answers. The two ways
take turns; what is compiled in the first call of each is not counted. Both must say the same. The
tower is left out: its features are cached either way. On a machine that does other things at the
same time, look at the CPU seconds.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.models import gemma, multimodal, siglip
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm

WORDS = [f"w{i}" for i in range(49_000)]
WORDS_ASKED = 12


def make() -> Vlm:
  """Returns the model; its logits are not flat, and most of its answers are cut."""
  tokenizer = Tokenizer.word_level(WORDS)
  text = gemma.GemmaConfig(
    vocab_size=tokenizer.vocab_size,
    width=640,
    depth=12,
    mlp_dim=2048,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    rope_base=1e6,
    window=512,
    layer_is_local=gemma.alternate(12, local=5, every=6),
    qk_norm=True,
    embed_init_std=0.06,
  )
  vision = siglip.SiglipConfig(
    width=64, depth=1, mlp_dim=64, num_heads=1, patch_size=4, image_size=64
  )
  config = multimodal.VlmConfig("gemma3", text, vision, tokenizer.image_id)
  params = jax.jit(multimodal.init, static_argnums=0)(config, jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  template, stop = prompts.GEMMA3_PLAIN, (tokenizer.id("<eos>"),)
  return Vlm("random", config, params, tokenizer, template, stop)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--images", type=int, default=4)
  parser.add_argument("--questions", type=int, default=8)
  parser.add_argument("--new", type=int, default=8, help="tokens of an answer")
  args = parser.parse_args()
  vlm, rng = make(), np.random.default_rng(0)
  shape = (args.images, vlm.config.tower.num_patches, vlm.config.tower.width)
  features = rng.normal(size=shape).astype(np.float32)
  which = np.repeat(np.arange(args.images), args.questions)
  asked = [" ".join(rng.choice(WORDS, WORDS_ASKED - i % 4)) for i in range(len(which))]
  ways = {
    "once a question": lambda: vlm.reply_features(features[which], asked, max_new_tokens=args.new),
    "once an image": lambda: vlm.reply_features(
      features, asked, which=which[:, None].tolist(), max_new_tokens=args.new
    ),
  }
  clocks = {"wall": time.perf_counter, "cpu": time.process_time}
  seconds, said = {clock: {name: [] for name in ways} for clock in clocks}, {}
  for turn in range(args.turns + 1):
    for name, way in ways.items():
      starts = {clock: now() for clock, now in clocks.items()}
      said[name] = way()
      for clock, now in clocks.items() if turn else ():
        seconds[clock][name].append(round(now() - starts[clock], 3))
  plain, shared = ways
  row = {
    "parameters": sum(x.size for x in jax.tree.leaves(vlm.params)),
    "answers": len(asked),
    "equal": sum(a == b for a, b in zip(said[plain], said[shared], strict=True)),
    "distinct": len({reply.text for reply in said[plain]}),
    "seconds": seconds,
  }
  for clock, own in seconds.items():
    row[f"ratio, {clock}"] = round(float(np.median(own[plain]) / np.median(own[shared])), 2)
  print(json.dumps(row))


if __name__ == "__main__":
  main()
