# SPDX-License-Identifier: Apache-2.0
"""Decoding speed of transformers and of auditdm_jax, in turns, on one random Gemma 3 checkpoint.

  python -m tests.perf.answer_speed FOLDER        prints {case: {"theirs": […], "ours": […], …}}

Seconds per call, after a first call of each that compiles and warms up. Greedy answers are also
compared. The group of samples is drawn at temperature 1, with what was drawn of no interest here.
"""

from collections.abc import Callable
import functools
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np
import torch
import transformers

from auditdm_jax.models import decode
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm, load_vlm

NEW = 64  # Tokens per answer.
WORDS = [f"w{i}" for i in range(49_000)]
TURNS = {"batch 1": 5, "batch 32": 3, "4 prompts x 8 samples": 3}
PROMPT = {"batch 1": 16, "batch 32": 16, "4 prompts x 8 samples": 320}


def make(folder: pathlib.Path) -> None:
  """Writes a text-only Gemma 3 of 98 M parameters whose logits are not flat, and its tokenizer."""
  tokenizer = Tokenizer.word_level(WORDS)
  config = transformers.Gemma3TextConfig(
    vocab_size=tokenizer.vocab_size,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    sliding_window=512,
  )
  torch.manual_seed(0)
  model = transformers.Gemma3ForCausalLM(config)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.normal_(0.0, 0.2 if "norm" in name else 1.5 * p.shape[-1] ** -0.5)
    # No terminator, so that all answers are equally long.
    model.get_input_embeddings().weight[tokenizer.id("<eos>")] = 0.0
  model.generation_config.eos_token_id = tokenizer.id("<eos>")
  model.save_pretrained(folder)
  tokenizer.save(folder)


def questions(count: int, length: int) -> list[str]:
  rng = np.random.default_rng(0)
  return [" ".join(rng.choice(WORDS, length - 1)) for _ in range(count)]


def generate(model, ids: np.ndarray, **how) -> np.ndarray:
  tokens = torch.tensor(ids, device=model.device)
  with torch.no_grad():
    out = model.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=NEW,
      cache_implementation="static",
      **how,
    )
  return out[:, ids.shape[1] :].cpu().numpy()


def answers(model, vlm: Vlm, count: int, length: int) -> tuple[Callable, Callable]:
  """`count` greedy answers, from text to text."""
  asked = questions(count, length)

  def theirs() -> list[str]:
    ids = np.array([prompts.render(vlm.tokenizer, vlm.template, q, 0, images=0) for q in asked])
    return [vlm.tokenizer.decode(row).strip() for row in generate(model, ids, do_sample=False)]

  return theirs, lambda: vlm.answer(None, asked, max_new_tokens=NEW)


def groups(model, vlm: Vlm, count: int, length: int, group: int) -> tuple[Callable, Callable]:
  """`group` samples of each of `count` prompts, as tokens."""
  ids = [
    prompts.render(vlm.tokenizer, vlm.template, q, 0, images=0) for q in questions(count, length)
  ]
  ids = np.array(ids, np.int32)
  keys = jax.random.split(jax.random.key(0), (count, group))
  sample = jax.jit(
    functools.partial(decode.sample, vlm.config, decode.SampleConfig(NEW), group=group)
  )

  def ours() -> None:
    out = sample(vlm.params, None, ids, valid=np.ones_like(ids, bool), row_keys=keys)
    assert np.asarray(out.tokens).shape == (count, group, NEW)

  def theirs() -> None:
    how = dict(do_sample=True, top_k=0, num_return_sequences=group, min_new_tokens=NEW)
    assert generate(model, ids, **how).shape == (count * group, NEW)

  return theirs, ours


def measure(theirs: Callable, ours: Callable, turns: int) -> dict:
  """Both, in turns; the share of equal answers if they answer."""
  sides, row = {"theirs": theirs, "ours": ours}, {"first": {}, "theirs": [], "ours": []}
  results = {}
  for turn in range(turns + 1):
    for name, side in sides.items():
      start = time.perf_counter()
      results[name] = side()
      seconds = time.perf_counter() - start
      if turn:
        row[name].append(seconds)
      else:
        row["first"][name] = seconds
  if results["ours"] is not None:
    pairs = list(zip(results["theirs"], results["ours"], strict=True))
    row["equal"] = sum(a == b for a, b in pairs) / len(pairs)
  return row


def main(folder: pathlib.Path) -> None:
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  make(folder)
  on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"  # Both, or none.
  model = transformers.Gemma3ForCausalLM.from_pretrained(folder).eval()
  model, vlm = model.to("cuda" if on_gpu else "cpu"), load_vlm(folder)
  cases = {
    "batch 1": answers(model, vlm, 1, 16),
    "batch 32": answers(model, vlm, 32, 16),
    "4 prompts x 8 samples": groups(model, vlm, 4, 320, 8),
  }
  out = {name: measure(*sides, TURNS[name]) for name, sides in cases.items()}
  size = sum(p.numel() for p in model.parameters())
  device = jax.devices()[0].device_kind if on_gpu else f"{cores} cores"
  print(json.dumps({"parameters": size, "device": device, "cases": out}))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
