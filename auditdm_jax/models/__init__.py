# SPDX-License-Identifier: Apache-2.0
"""The models: one scanned Gemma decoder, one SigLIP tower, their wiring, decoding and weights.

Axes, by the letters that the whole project uses; a file's docstring says only what differs:

  B   batch: prompts, or rows
  T   query: the tokens of a call
  S   key: what they look at, such as the tokens of a prompt
  C   completion: the tokens of a reply
  N   heads; in statistics and worlds, things of one kind such as attempts
  K   kv-heads
  G   group: the heads of a kv-head; the samples of a prompt; the prompts that share a beginning
  E   end: the tokens of such a prompt after what is shared
  H   head dim
  D   width; Dv of the tower
  F   ffn
  V   vocabulary
  L   layers
  P   patches
  M   image tokens of an image, the slots that its patches fill
  I   images of a row
  U   images of a call, each once
  R   completions of all rows, one a line

A picture is u8[H,W,3] of height, width and colours. Numbers are written out: f32[size,size,3].
"""
