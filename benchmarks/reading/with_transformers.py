# SPDX-License-Identifier: Apache-2.0
"""Answers of transformers to `benchmarks.readers`. Needs: pip install transformers torch.

Rows are padded on the left. Ways of asking:

  labels     the whole row with labels and token_type_ids, as its trainers ask (PaliGemma: 0 on the
             prefix, 1 behind it; Gemma 3: 1 on image slots)
  prompt     the part before the answer with the processor's token_type_ids, as `generate` begins
  no types   the same without token_type_ids
  zeros      PaliGemma: as `labels`, but with token_type_ids 0 on the answer, too. The GRPO of TRL
             1.16 asks so: its `_generate_and_score_completions` extends them by zeros
  no labels  PaliGemma: as `labels`, but without labels, as one asks who scores an answer
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers


def main(work: pathlib.Path) -> None:
  request = json.loads((work / "request.json").read_text())
  pixels = np.load(work / "pixels.npz")["pixels"]
  model, report = transformers.AutoModelForImageTextToText.from_pretrained(
    work / "hf", output_loading_info=True, attn_implementation="eager"
  )
  wrong = {k: sorted(report[k]) for k in ("missing_keys", "unexpected_keys") if report[k]}
  if wrong:
    sys.exit(f"not loaded: {json.dumps(wrong)[:500]}")
  answers = {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}
  for case, rows in request["cases"].items():
    whole, prompt = [len(r["tokens"]) for r in rows], [r["first"] + 1 for r in rows]
    ways = {"labels": whole, "prompt": prompt, "no types": prompt}
    if request["kind"] == "paligemma":
      ways |= {"zeros": whole, "no labels": whole}
    for asked, lengths in ways.items():
      inputs, pad = pack(rows, lengths, request, pixels)
      if asked == "no types":
        del inputs["token_type_ids"]
      if asked == "zeros":
        inputs["token_type_ids"][:] = 0
      if asked in ("labels", "zeros"):
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
      with torch.no_grad():
        logp = torch.log_softmax(model.eval()(**inputs).logits.float(), -1).numpy()
      for i, n in enumerate(pad):
        answers[f"{asked}/{case}/{i}/0"] = logp[i, n:]
  np.savez(work / "answers.npz", **answers)


def pack(rows, lengths, request, pixels):
  """Returns what the model is called with, of the first tokens of each row, and the padding."""
  longest = max(lengths)
  pad = [longest - n for n in lengths]
  ids = np.array([[0] * p + r["tokens"][:n] for p, n, r in zip(pad, lengths, rows)])
  mask = np.array([[0] * p + [1] * n for p, n in zip(pad, lengths)])
  kinds = (ids == request["ids"]["image"]).astype(int)
  if request["kind"] == "paligemma":
    prefix = [min(n, r["prefix"]) for n, r in zip(lengths, rows)]
    kinds = np.array([[0] * (p + k) + [1] * (longest - p - k) for p, k in zip(pad, prefix)])
  inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
  images = [r["image"] for r in rows if r["image"] is not None]
  if images:
    inputs["pixel_values"] = pixels[images].transpose(0, 3, 1, 2)
  return {k: torch.tensor(v) for k, v in inputs.items()}, pad


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
