#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 4.57.6: PaliGemma ignores token_type_ids unless labels are given, and sees the answer.
#
# Expected: its processor's token_type_ids say which tokens are prompt and which are answer. A forward
#   pass with them gives the answer's log-probabilities as in training, each token seeing those before.
# Seen: without labels, token_type_ids change nothing: all tokens see each other, so the log-probability
#   of a word changes with the words after it. With labels, which should only add a loss, the logits are
#   others, and causal over the answer. Perplexity and scores from logits are thus not the model's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==4.57.6 torch==2.13.0
cat >"$folder/seen.py" <<'PY'
import torch
import transformers

torch.manual_seed(0)
text = dict(model_type="gemma2", vocab_size=32, hidden_size=16, intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
vision = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
              image_size=8, patch_size=4, vision_use_head=False)
config = transformers.PaliGemmaConfig(
  text_config=text, vision_config=vision, projection_dim=16, image_token_index=31
)
model = transformers.PaliGemmaForConditionalGeneration(config).eval()
for p in model.parameters():
  torch.nn.init.normal_(p, std=0.3)
prompt, answer, other = [2, 5, 6, 7], [8, 9, 10], [8, 9, 11]


def logits(tokens, **more):
  """Of the prompt's last token, which predicts the answer's first."""
  ids = torch.tensor([prompt + tokens])
  types = torch.tensor([[0] * len(prompt) + [1] * len(tokens)])
  with torch.no_grad():
    out = model(
      input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=types,
      **({"labels": ids} if more.get("labels") else {}),
    )
  return out.logits[0, len(prompt) - 1].log_softmax(-1)


free = (logits(answer) - logits(other)).abs().max().item()
held = (logits(answer, labels=True) - logits(other, labels=True)).abs().max().item()
between = (logits(answer) - logits(answer, labels=True)).abs().max().item()
print(f"transformers {transformers.__version__}: the first word's log-probabilities change by "
      f"{free:.2f} with the last word; with labels by {held:.0e}; by labels alone {between:.2f}")
assert transformers.__version__ == "4.57.6" and free > 0.01 and held < 1e-5 and between > 0.01
PY
"$folder/venv/bin/python" "$folder/seen.py"
