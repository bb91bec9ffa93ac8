# SPDX-License-Identifier: Apache-2.0
"""The other side of test_grpo_step: TRL's GRPOTrainer on a random Gemma 3 VLM, as a process.

COMMAND
  python -m tests.perf.grpo_trl make FOLDER SIZE      writes the checkpoint that both sides load
  python -m tests.perf.grpo_trl run FOLDER SIZE STEPS prints {"seconds": [per step, …]}
"""

import contextlib
import json
import pathlib
import sys
import time

import datasets
import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
import transformers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
import trl

from tests.perf import grpo_sizes

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image>")
TEMPLATE = (
  "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
  "<start_of_image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def make(folder: pathlib.Path, size: grpo_sizes.Size) -> None:
  """Random weights; norms' scales too, so that nothing is trivially flat."""
  torch.manual_seed(0)
  config = Gemma3Config(
    text_config=dict(
      vocab_size=size.vocab, hidden_size=size.width, intermediate_size=size.mlp,
      num_hidden_layers=size.depth, num_attention_heads=size.heads,
      num_key_value_heads=size.kv_heads, head_dim=size.head_dim, sliding_window=512,
      query_pre_attn_scalar=size.head_dim, max_position_embeddings=2048,
      pad_token_id=0, eos_token_id=1, bos_token_id=2,
    ),
    vision_config=dict(
      hidden_size=size.vision_width, intermediate_size=2 * size.vision_width,
      num_hidden_layers=size.vision_depth, num_attention_heads=4, image_size=size.image,
      patch_size=size.patch, vision_use_head=False,
    ),
    mm_tokens_per_image=size.image_tokens, image_token_index=6, boi_token_index=4,
    eoi_token_index=5, eos_token_id=1, pad_token_id=0, bos_token_id=2, tie_word_embeddings=True,
  )  # fmt: skip
  model = Gemma3ForConditionalGeneration(config)
  model.save_pretrained(folder)
  vocab = {w: i for i, w in enumerate([*SPECIAL, *(f"w{i}" for i in range(7, size.vocab))])}
  words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
    unk_token="<unk>",
    extra_special_tokens={
      "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>",
    },
  )  # fmt: skip
  images = transformers.Gemma3ImageProcessor(
    size={"height": size.image, "width": size.image}, image_seq_length=size.image_tokens
  )
  processor = Gemma3Processor(
    images, tokenizer, chat_template=TEMPLATE, image_seq_length=size.image_tokens
  )
  processor.save_pretrained(folder)


class Clock(transformers.TrainerCallback):
  """When each step ended."""

  def __init__(self):
    self.at: list[float] = []
    self.cpu: list[float] = []

  def on_step_end(self, *args, **kwargs):
    self.at.append(time.perf_counter())
    self.cpu.append(time.process_time())


def run(folder: pathlib.Path, size: grpo_sizes.Size, steps: int) -> dict:
  rows = size.prompts * size.group
  rng = np.random.default_rng(0)
  text = " ".join(f" w{i}" for i in rng.integers(7, size.vocab, size.text_tokens))
  # Every step sees new images.
  shape = (size.image, size.image, 3)
  data = [
    {
      "prompt": [{"role": "user", "content": text}],
      "image": Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)),
    }
    for _ in range(size.prompts * (steps + 1))
  ]
  model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
  for name, param in model.named_parameters():
    param.requires_grad_("vision_tower" not in name)
  lengths = []

  def reward(completion_ids, **kwargs):
    lengths.extend(map(len, completion_ids))
    return [float(len(set(ids)) % 2) for ids in completion_ids]

  clock = Clock()
  args = trl.GRPOConfig(
    output_dir=str(folder / "out"), per_device_train_batch_size=rows // size.trl_parts,
    gradient_accumulation_steps=size.trl_parts, num_generations=size.group,
    max_completion_length=size.completion, max_steps=steps, learning_rate=3e-6, beta=0.0,
    temperature=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
    logging_steps=10**6, save_strategy="no", disable_tqdm=True, loss_type="grpo",
    generation_kwargs={"min_new_tokens": size.completion}, dataloader_num_workers=0,
    top_k=0, top_p=1.0, seed=0,
  )  # fmt: skip
  trainer = trl.GRPOTrainer(
    model, reward, args=args, train_dataset=datasets.Dataset.from_list(data),
    processing_class=Gemma3Processor.from_pretrained(folder, padding_side="left"),
    callbacks=[clock],
  )  # fmt: skip
  trainer.train()
  assert set(lengths) == {size.completion}, set(lengths)
  return {
    "seconds": list(np.diff(clock.at)),
    "cpu_seconds": list(np.diff(clock.cpu)),
    "parameters": sum(p.numel() for p in model.parameters()),
    "versions": f"trl {trl.__version__}, torch {torch.__version__}",
  }


if __name__ == "__main__":
  command, where, name, *rest = sys.argv[1:]
  with contextlib.redirect_stdout(sys.stderr):
    if command == "make":
      result = make(pathlib.Path(where), grpo_sizes.SIZES[name])
    else:
      torch.set_num_threads(int(rest[1]))
      result = run(pathlib.Path(where), grpo_sizes.SIZES[name], int(rest[0]))
  print(json.dumps(result))
