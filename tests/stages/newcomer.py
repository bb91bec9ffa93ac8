# SPDX-License-Identifier: Apache-2.0
"""What a newcomer has: images of all kinds in one folder, questions, and checkpoints."""

import json
import pathlib

import jax
import numpy as np
from PIL import Image

from auditdm_jax.vlm import Vlm, save_vlm
from tests.rl import tiny

KINDS = ("jpg", "png", "palette", "16 bit", "cmyk", "alpha", "grey")
_APART = 0.005  # Noise on weights of 0.2 that changes some of the answers.


def photographs(folder: pathlib.Path, n: int, *, least: int = 33, most: int = 190) -> None:
  """Writes `n` images of mixed sizes and modes, with sides that are no multiples of 16."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(n):
    height, width = rng.integers(least, most, 2) // 2 * 2 + 1
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(x * 2 + i * 9) % 256, (y * 3) % 256, (x + y + i * 31) % 256], -1)
    pixels = (pixels + rng.integers(0, 30, pixels.shape)).clip(0, 255).astype(np.uint8)
    _save(folder / f"IMG_{i:04d}", Image.fromarray(pixels), KINDS[i % len(KINDS)])


def _save(path: pathlib.Path, image: Image.Image, kind: str) -> None:
  if kind == "16 bit":
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    image, suffix = Image.fromarray(deep), ".png"
  elif kind == "alpha":
    image.putalpha(image.convert("L"))
    suffix = ".png"
  else:
    mode = {"palette": "P", "cmyk": "CMYK", "grey": "L"}.get(kind, "RGB")
    image, suffix = image.convert(mode), ".jpg" if kind in ("jpg", "cmyk", "grey") else ".png"
  image.save(path.with_suffix(suffix))


def questions(folder: pathlib.Path, *, each: int = 2) -> None:
  """Writes questions about the images, of which some have an answer, as text, number or list."""
  answers = ("red", 2, ["blue", "red"], None)
  rows = []
  for i, path in enumerate(sorted(folder.glob("IMG_*"))):
    for j in range(each):
      text = ("what color is the square ?", "is the circle red ?", "what is the color ?")[j % 3]
      answer = answers[(i + j) % 4]
      rows.append({"image": path.name, "question": text} | ({"answer": answer} if answer else {}))
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def checkpoints(folder: pathlib.Path, *, alike: bool = False) -> dict[str, str]:
  """Writes an untrained auditor, two references that mostly agree and a target; returns the flags.

  With `alike`, the three say the same, and there is no failure. No two have the same weights.
  """
  save_vlm(folder / "auditor", tiny.auditor(1))
  save_vlm(folder / "ref_a", tiny.auditor(7))
  save_vlm(folder / "ref_b", _near(tiny.auditor(7), 1e-4 if alike else _APART))
  if alike:
    save_vlm(folder / "target", _near(tiny.auditor(7), 1e-4, seed=1))
  else:
    released(folder / "target")
  return {
    "auditor": str(folder / "auditor"),
    "target": str(folder / "target"),
    "references": f"{folder / 'ref_a'},{folder / 'ref_b'}",
  }


def _near(vlm: Vlm, scale: float, *, seed: int = 0) -> Vlm:
  """The same model with some noise on its weights."""
  rng = np.random.default_rng(seed)
  return vlm.with_params(
    jax.tree.map(lambda x: x + rng.normal(0, scale, x.shape).astype(x.dtype), vlm.params)
  )


def released(folder: pathlib.Path) -> None:
  """Writes a random PaliGemma 2 as transformers writes one."""
  import torch
  import transformers

  tokenizer = tiny.tokenizer()
  text = dict(
    model_type="gemma2",
    vocab_size=tokenizer.vocab_size,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=8,
    max_position_embeddings=256,
  )
  vision = dict(
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=3,
    image_size=16,
    patch_size=8,
    vision_use_head=False,
  )
  config = transformers.PaliGemmaConfig(
    text_config=text,
    vision_config=vision,
    projection_dim=16,
    image_token_index=tokenizer.image_id,
  )
  torch.manual_seed(9)
  model = transformers.PaliGemmaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.normal_(0.0, 0.4 if "norm" in name or "embed_tokens" in name else 1.5 * p.shape[-1] ** -0.5)
  ends = "<eos>", "?", "the", "a", "blue"  # So that it ends what it begins.
  model.generation_config.eos_token_id = [tokenizer.id(word) for word in ends]
  model.save_pretrained(folder)
  tokenizer.save(folder)
