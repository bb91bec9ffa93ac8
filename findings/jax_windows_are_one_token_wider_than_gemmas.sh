#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax 0.10.2 and transformers 5.23.0: a window of W is W + 1 tokens in jax.nn.dot_product_attention.
#
# Expected: a Gemma 3 or Mistral whose config.json says sliding_window=W is ported with
#   local_window_size=(W, 0), or W, and is_causal=True: a token sees itself and the W - 1 before it.
# Seen: jax counts the tokens beside the token itself, so it sees W before it as well. Up to W tokens
#   nothing differs, so that short parity tests pass; config.json's W is (W - 1, 0) in jax.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cat >"$folder/seen.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.masking_utils import sliding_window_causal_mask_function

LENGTH, W = 9, 4


def seen_by_jax(window):
  """How many tokens each of LENGTH attends to: the values are one-hot, and all scores are alike."""
  same = jnp.zeros((1, LENGTH, 1, LENGTH))
  values = jnp.eye(LENGTH)[None, :, None, :]
  out = jax.nn.dot_product_attention(
    same, same, values, is_causal=True, local_window_size=window
  )
  return (np.asarray(out[0, :, 0]) > 0).sum(1).tolist()


allowed = sliding_window_causal_mask_function(W)
places = [torch.tensor(i) for i in range(LENGTH)]
theirs = [sum(bool(allowed(0, 0, q, k)) for k in places) for q in places]
print(f"jax {jax.__version__}, transformers {transformers.__version__}: window {W}, tokens seen")
print("  transformers      ", theirs)
for window in ((W, 0), W, (W - 1, 0)):
  print(f"  jax {window!s:14}", seen_by_jax(window))
assert theirs == [min(i + 1, W) for i in range(LENGTH)]
assert seen_by_jax((W, 0)) == seen_by_jax(W) == [min(i + 1, W + 1) for i in range(LENGTH)]
assert seen_by_jax((W - 1, 0)) == theirs
PY
"$folder/venv/bin/python" "$folder/seen.py"
