# SPDX-License-Identifier: Apache-2.0
"""Sizes of test_grpo_step, which both of its processes know."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
  """A Gemma 3 VLM and a GRPO step: P prompts x G completions, each image with one text."""

  prompts: int
  group: int
  text_tokens: int  # of the prompt, besides the image's block
  completion: int
  vocab: int
  width: int
  depth: int
  mlp: int
  heads: int
  kv_heads: int
  head_dim: int
  image: int
  patch: int
  image_tokens: int
  vision_width: int
  vision_depth: int
  trl_parts: int  # micro-batches of TRL's; all rows at once need 17 GB at 100 M parameters


SIZES = {
  # 16 x 8 x (28 + 12) tokens, 300 k parameters: the auditor of the scenes world.
  "scenes": Size(
    prompts=16,
    group=8,
    text_tokens=10,
    completion=12,
    vocab=104,
    width=96,
    depth=3,
    mlp=192,
    heads=4,
    kv_heads=2,
    head_dim=24,
    image=64,
    patch=16,
    image_tokens=16,
    vision_width=96,
    vision_depth=2,
    trl_parts=1,
  ),
  # 4 x 8 x (320 + 64) tokens, 100 M parameters.
  "100m": Size(
    prompts=4,
    group=8,
    text_tokens=62,
    completion=64,
    vocab=32_768,
    width=640,
    depth=12,
    mlp=2560,
    heads=4,
    kv_heads=2,
    head_dim=160,
    image=224,
    patch=14,
    image_tokens=256,
    vision_width=192,
    vision_depth=4,
    trl_parts=4,
  ),
}
