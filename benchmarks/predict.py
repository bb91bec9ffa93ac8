# SPDX-License-Identifier: Apache-2.0
"""Examples per second of `predict` and of transformers' generate in batches, on one checkpoint.

COMMAND
  python -m benchmarks.predict [--images=100] [--each=5] [--batch=16] [--new-tokens=8]
  python -m benchmarks.predict --memory [--images=2000]    the resident memory of a long run

A random PaliGemma 2 that both load, images of 640 x 480 as JPEG files, and questions about each.
Both begin with the files. transformers decodes, resizes and encodes the image of every question, in
batches, with its key-value cache, greedily. `predict` is the stage as a user runs it, which also
hashes the weights and writes every answer to disk. Its first run compiles, its second, in another
folder, does not. Prints JSON: questions per second and per second of processor time, their ratios,
and how many answers are equal.

The memory run prints the peak resident memory of a process of its own, and what of it is the model.
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from auditdm_jax.text.tokenizer import Tokenizer

_IMAGES = flags.DEFINE_integer("images", 100, "images")
_EACH = flags.DEFINE_integer("each", 5, "questions about an image")
_BATCH = flags.DEFINE_integer("batch", 16, "questions of a batch of transformers")
_TOKENS = flags.DEFINE_integer("new-tokens", 8, "of an answer")
_MEMORY = flags.DEFINE_bool("memory", False, "measure memory instead")
_FOLDER = flags.DEFINE_string("folder", "", "of the memory run's own process")

WORDS = [f"w{i}" for i in range(8_000)]
SIDE, PATCH = 224, 14
SLOTS = (SIDE // PATCH) ** 2
TEXT: dict[str, Any] = dict(
  model_type="gemma2",
  hidden_size=256,
  intermediate_size=1024,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=1,
  head_dim=64,
  sliding_window=512,
  max_position_embeddings=1024,
)
VISION: dict[str, Any] = dict(
  hidden_size=192,
  intermediate_size=768,
  num_hidden_layers=4,
  num_attention_heads=3,
  image_size=SIDE,
  patch_size=PATCH,
  vision_use_head=False,
)


def make_model(folder: pathlib.Path) -> Tokenizer:
  """Writes a random checkpoint as transformers writes one."""
  import torch
  import transformers

  words = Tokenizer.word_level(WORDS)
  config = transformers.PaliGemmaConfig(
    text_config=TEXT | dict(vocab_size=words.vocab_size),
    vision_config=VISION,
    projection_dim=TEXT["hidden_size"],
    image_token_index=words.image_id,
  )
  torch.manual_seed(0)
  model = transformers.PaliGemmaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.normal_(0.0, 0.2 if "norm" in name else 1.5 * p.shape[-1] ** -0.5)
  model.generation_config.eos_token_id = words.id("<eos>")
  model.save_pretrained(folder)
  words.save(folder)
  return words


def make_data(folder: pathlib.Path, *, images: int, each: int) -> list[dict[str, str]]:
  """Writes images and questions; returns the questions, those of an image apart from each other."""
  rng = np.random.default_rng(0)
  place = folder / "test"
  place.mkdir(parents=True)
  base = rng.integers(0, 256, (60, 80, 3), np.uint8)
  for i in range(images):
    tilted = Image.fromarray(np.roll(base, i, axis=1)).resize((640, 480))
    tilted.save(place / f"{i:05d}.jpg")
  rows = [
    {
      "image": f"{k % images:05d}.jpg",
      "question": " ".join(rng.choice(WORDS, rng.integers(6, 14))),
      "answer": "w0",
    }
    for k in range(images * each)
  ]
  (place / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  return rows


def config_of(model: pathlib.Path, data: pathlib.Path) -> ConfigDict:
  """Returns the config of the stage."""
  own = dict(name="own", scorer="auditdm_jax.bench.scorers:exact_match", max_tokens=_TOKENS.value)
  entry = dict(path=str(data), spec=own, split="test")
  return ConfigDict(dict(models=dict(baseline=str(model)), benchmarks=dict(own=entry)))


@dataclasses.dataclass(frozen=True)
class Clock:
  """Seconds of the wall, and of the processor for this process."""

  wall: float
  cpu: float

  @classmethod
  def now(cls) -> "Clock":
    return cls(time.perf_counter(), time.process_time())

  def since(self, other: "Clock") -> "Clock":
    return Clock(self.wall - other.wall, self.cpu - other.cpu)


def ours(model: pathlib.Path, data: pathlib.Path, workdir: pathlib.Path) -> tuple[Clock, dict]:
  """Runs the stage; returns its seconds and the answers by question."""
  from auditdm_jax.stages import predict

  start = Clock.now()
  predict.main(config_of(model, data), workdir)
  seconds = Clock.now().since(start)
  rows = [json.loads(line) for line in (workdir / "predictions-0.jsonl").open()]
  return seconds, {row["item"]: row["prediction"] for row in rows}


def theirs(
  folder: pathlib.Path, data: pathlib.Path, rows: list[dict[str, str]], words: Tokenizer
) -> tuple[Clock, list[str]]:
  """Runs transformers; returns its seconds, without loading, and the answers in order."""
  import torch
  import transformers

  model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder).eval()
  process = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, resample=3)
  start, answers = Clock.now(), []
  for k in range(0, len(rows), _BATCH.value):
    batch = rows[k : k + _BATCH.value]
    images = [Image.open(data / "test" / row["image"]).convert("RGB") for row in batch]
    pixels = process(images, return_tensors="pt")["pixel_values"]
    prompts = [
      [words.image_id] * SLOTS + [words.id("<bos>")] + words.encode(row["question"] + "\n")
      for row in batch
    ]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
      out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=torch.zeros_like(ids),
        pixel_values=pixels,
        max_new_tokens=_TOKENS.value,
        do_sample=False,
      )
    answers += [words.decode(row.tolist()).strip() for row in out[:, longest:]]
  return Clock.now().since(start), answers


def compare(root: pathlib.Path) -> dict[str, Any]:
  """Asks both."""
  words = make_model(root / "model")
  rows = make_data(root / "data", images=_IMAGES.value, each=_EACH.value)
  cold, _ = ours(root / "model", root / "data", root / "cold")
  warm, said = ours(root / "model", root / "data", root / "warm")
  other, answers = theirs(root / "model", root / "data", rows, words)
  again, _ = ours(root / "model", root / "data", root / "again")
  n = len(rows)
  per_image: dict[str, int] = {}
  equal = 0
  for row, answer in zip(rows, answers, strict=True):
    j = per_image[row["image"]] = per_image.get(row["image"], -1) + 1
    equal += said[f"test/{int(row['image'][:5])}/{j}"] == answer
  return {
    "questions": n,
    "images": _IMAGES.value,
    "per_second": {
      "ours_with_compiling": n / cold.wall,
      "ours": [n / warm.wall, n / again.wall],
      "transformers": n / other.wall,
    },
    "per_cpu_second": {
      "ours_with_compiling": n / cold.cpu,
      "ours": [n / warm.cpu, n / again.cpu],
      "transformers": n / other.cpu,
    },
    "ratio_with_compiling": other.wall / cold.wall,
    "ratio": other.wall / max(warm.wall, again.wall),
    "cpu_ratio_with_compiling": other.cpu / cold.cpu,
    "cpu_ratio": other.cpu / max(warm.cpu, again.cpu),
    "equal": equal,
  }


def memory(root: pathlib.Path) -> dict[str, Any]:
  """Runs the stage in a process of its own."""
  make_model(root / "model")
  rows = make_data(root / "data", images=_IMAGES.value, each=_EACH.value)
  command = [sys.executable, "-m", "benchmarks.predict", f"--folder={root}", *sys.argv[1:]]
  done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
  size = sum(p.stat().st_size for p in (root / "model").glob("*.safetensors"))
  return {
    "questions": len(rows),
    "model_mb": size / 1e6,
    **json.loads(done.stdout.splitlines()[-1]),
  }


def child(root: pathlib.Path) -> dict[str, Any]:
  """The memory run itself; torch is not loaded here."""
  import auditdm_jax.stages.predict  # noqa: F401

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  seconds, said = ours(root / "model", root / "data", root / "run")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "imports_mb": before / 1e3,
    "peak_mb": peak / 1e3,
    "per_second": len(said) / seconds.wall,
  }


def main(_: list[str]) -> None:
  if _FOLDER.value:
    print(json.dumps(child(pathlib.Path(_FOLDER.value))))
    return
  with tempfile.TemporaryDirectory() as root:
    print(json.dumps((memory if _MEMORY.value else compare)(pathlib.Path(root)), indent=2))


if __name__ == "__main__":
  app.run(main)
