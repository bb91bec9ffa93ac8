# SPDX-License-Identifier: Apache-2.0
"""The other side of test_grpo_step: TRL's GRPOTrainer on a random Gemma 3 VLM, as a process.

COMMAND
  python -m tests.perf.grpo_trl FOLDER SIZE STEPS THREADS
prints {"seconds": [per step, …], …}; the folder is one of tests.perf.grpo_checkpoint
"""

import contextlib
import json
import pathlib
import sys
import time

import datasets
import numpy as np
from PIL import Image
import torch
import transformers
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor
import trl

from tests.perf import grpo_sizes


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

  clock, on_gpu = Clock(), torch.cuda.is_available()
  parts = 1 if on_gpu else size.trl_parts
  args = trl.GRPOConfig(
    output_dir=str(folder / "out"), per_device_train_batch_size=rows // parts,
    gradient_accumulation_steps=parts, num_generations=size.group,
    max_completion_length=size.completion, max_steps=steps, learning_rate=3e-6, beta=0.0,
    temperature=1.0, use_cpu=not on_gpu, bf16=False, gradient_checkpointing=False, report_to=[],
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
    "device": torch.cuda.get_device_name() if on_gpu else "cpu",
  }


if __name__ == "__main__":
  where, name, steps, threads = sys.argv[1:]
  torch.set_num_threads(int(threads))
  with contextlib.redirect_stdout(sys.stderr):
    result = run(pathlib.Path(where), grpo_sizes.SIZES[name], int(steps))
  print(json.dumps(result))
