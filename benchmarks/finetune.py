# SPDX-License-Identifier: Apache-2.0
"""Memory and speed of fine-tuning on a CPU.

COMMAND
  python -m benchmarks.finetune memory [--images=20000]   peak memory by number of images
  python -m benchmarks.finetune speed [--steps=4]         beside transformers' Trainer
  python -m benchmarks.finetune step                      CPU seconds of a step at scenes size

Memory: distinct JPEG files of 448 x 448 pixels, rows in a JSONL file, one pass over them with a
tiny PaliGemma of that resolution, its tower frozen or trained. Each run is a process of its own,
with a tenth of the images and with all of them, and has one arena of malloc: those that glibc makes
for threads keep some hundred MiB of what was freed. Prints JSON: MiB of resident memory before and
at the peak, and MiB that the features of all images take on disk.

Speed: a random PaliGemma 2 of 100 M parameters with the vocabulary of the released ones, JPEG files
of 640 x 480, batches of 8 rows, fp32, AdamW. Both begin with the files, and take their turns with
the tower frozen and trained. The Trainer gets its rows from a map-style data set. Prints JSON:
tokens per second after a first step that compiles, ratios, the share of the step that waits for
input, and GFLOP/s of the steps.

Step: 64 questions to the scenes' target, with the recipe of a scenes repair. Prints JSON: CPU
milliseconds of a step, median of 5 times 5, which other programs on the machine change less than
the clock; tokens per CPU second; GFLOP/s of it, and of a large matrix product. Two builds are
compared by turns.
"""

from collections.abc import Callable
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags, logging
import numpy as np
from PIL import Image

from auditdm_jax.text.tokenizer import Tokenizer
from benchmarks import own_flags

_FLAGS = flags.FlagValues()
_IMAGES = flags.DEFINE_integer("images", 20_000, "images of the memory run", flag_values=_FLAGS)
_STEPS = flags.DEFINE_integer("steps", 4, "steps of the speed run that count", flag_values=_FLAGS)
_FOLDER = flags.DEFINE_string("folder", "", "of the memory run's own processes", flag_values=_FLAGS)
_TRAINED = flags.DEFINE_bool("trained", False, "whether their tower trains", flag_values=_FLAGS)

ROWS = 8
WORDS = [f"w{i}" for i in range(1_000)]
VOCABULARY = 257_152
TEXT: dict[str, Any] = dict(
  model_type="gemma2",
  vocab_size=VOCABULARY,
  hidden_size=256,
  intermediate_size=1024,
  num_hidden_layers=6,
  num_attention_heads=4,
  num_key_value_heads=1,
  head_dim=64,
  sliding_window=512,
  max_position_embeddings=1024,
)
VISION: dict[str, Any] = dict(
  hidden_size=512,
  intermediate_size=2048,
  num_hidden_layers=9,
  num_attention_heads=8,
  image_size=224,
  patch_size=14,
  vision_use_head=False,
)


def write_data(folder: pathlib.Path, *, images: int, size: tuple[int, int]) -> None:
  """Writes distinct pictures and one question about each, as an export has them."""
  (folder / "images").mkdir(parents=True)
  rng = np.random.default_rng(0)
  with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
    for i in range(images):
      small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
      name = f"{i:06d}.jpg"
      small.resize(size, Image.Resampling.BILINEAR).save(folder / "images" / name, quality=85)
      prefix = " ".join(rng.choice(WORDS, 12))
      row = {
        "id": str(i),
        "image": name,
        "prefix": prefix,
        "suffix": " ".join(rng.choice(WORDS, 2)),
      }
      file.write(json.dumps(row) + "\n")


# ------------------------------------------------------------------------------------- memory


def resident(field: str) -> float:
  """Returns MiB of this process, VmRSS or the peak VmHWM."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field):
      return int(line.split()[1]) / 1024
  raise RuntimeError(f"no {field} here")


def tune_tiny(folder: pathlib.Path, *, trained: bool) -> dict[str, float]:
  """One pass over all images with a tiny model of 448 pixels; returns MiB."""
  import jax

  from auditdm_jax.models import gemma, multimodal, preprocess, siglip
  from auditdm_jax.rectify import examples, features, finetune, recipes, rows

  words = Tokenizer.word_level(WORDS)
  vision = siglip.SiglipConfig(
    width=128, depth=1, mlp_dim=128, num_heads=2, patch_size=56, image_size=448
  )
  text = gemma.GemmaConfig(
    vocab_size=words.vocab_size,
    width=32,
    depth=1,
    mlp_dim=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
  )
  config = multimodal.VlmConfig("paligemma", text, vision, words.image_id)
  params = jax.jit(multimodal.init, static_argnums=0)(config, jax.random.key(0))
  run = jax.jit(functools.partial(multimodal.encode_images, config))

  def encode(pictures):
    padded = [*pictures, *[pictures[-1]] * (-len(pictures) % 32)]
    return np.asarray(run(params, preprocess.preprocess(padded, size=448)))[: len(pictures)]

  encode([np.zeros((448, 448, 3), np.uint8)])
  source = examples.JsonlExamples(folder / "train.jsonl")
  parts = recipes.EVERYTHING if trained else recipes.NO_TOWER
  before = resident("VmRSS")
  finetune.finetune(
    *(config, params, recipes.Recipe(epochs=1, batch_size=32, lr=1e-4, parts=parts)),
    layout=rows.RowLayout(
      *(words, "{image}<bos>{text}\n", config.num_image_tokens, words.id("<eos>")),
      length=config.num_image_tokens + 24,
      suffix=4,
    ),
    new=source,
    eye=features.Eye(preprocess.Pixels(), encode, "tiny"),
    seed=0,
    workdir=folder / f"run-{trained}",
  )
  stored = len(source) * features.row_bytes((vision.num_patches, vision.width)) / 2**20
  return {"before": before, "peak": resident("VmHWM"), "features": 0.0 if trained else stored}


def memory() -> dict[str, Any]:
  out: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as scratch:
    for images in (_IMAGES.value // 10, _IMAGES.value):
      folder = pathlib.Path(scratch) / str(images)
      write_data(folder, images=images, size=(448, 448))
      for trained in (False, True):
        flag = f"--{'' if trained else 'no'}trained"
        command = [
          sys.executable,
          "-m",
          "benchmarks.finetune",
          "memory",
          f"--folder={folder}",
          flag,
        ]
        start = time.perf_counter()
        env = os.environ | {"MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        found = json.loads(done.stdout.splitlines()[-1])
        found["seconds"] = time.perf_counter() - start
        name = f"{images} images, tower {'trained' if trained else 'frozen'}"
        out[name] = {k: round(v, 1) for k, v in found.items()}
        print(name, out[name], file=sys.stderr, flush=True)
  return out


# -------------------------------------------------------------------------------------- speed


def make_model(folder: pathlib.Path) -> None:
  """Writes a random checkpoint as transformers writes one."""
  import torch
  import transformers

  words = Tokenizer.word_level(WORDS)
  config = transformers.PaliGemmaConfig(
    text_config=TEXT,
    vision_config=VISION,
    projection_dim=TEXT["hidden_size"],
    image_token_index=words.image_id,
    image_token_id=words.image_id,
  )
  torch.manual_seed(0)
  model = transformers.PaliGemmaForConditionalGeneration(config)
  model.save_pretrained(folder)
  words.save(folder)


def ours(
  folder: pathlib.Path, data: pathlib.Path, scratch: pathlib.Path, *, trained: bool
) -> dict[str, float]:
  """Tokens per second, share of waiting and GFLOP/s of our fine-tuning."""
  from auditdm_jax.models import flops
  from auditdm_jax.rectify import examples, features, finetune, recipes, rows
  from auditdm_jax.rectify.tune import TuneConfig
  from auditdm_jax.vlm import load_vlm

  vlm = load_vlm(folder)
  steps = _STEPS.value + 1
  recipe = recipes.Recipe(
    steps=steps,
    batch_size=ROWS,
    lr=1e-5,
    parts=recipes.EVERYTHING if trained else recipes.NO_TOWER,
  )
  name = "trained" if trained else "frozen"
  finetune.finetune(
    *(vlm.config, vlm.params, recipe),
    layout=rows.RowLayout.of(vlm, length=vlm.config.num_image_tokens + 24, suffix=4),
    new=examples.JsonlExamples(data / "train.jsonl"),
    eye=features.Eye(vlm.pixels, vlm.encode, vlm.tower_id),
    seed=0,
    tune=TuneConfig(validation=0.0, log_every=steps),
    workdir=scratch / name,
    name=name,
  )
  rows_of = (scratch / name / "metrics" / f"{name}.jsonl").read_text().splitlines()
  found = json.loads(rows_of[-1])
  rate = found["machine/tokens_per_s"]
  length = vlm.config.num_image_tokens + 16  # <bos>, 12 words, "\n", 2 more words.
  work = flops.decoder(vlm.config.text, tokens=length, context=length, predictions=3)
  work += flops.tower(vlm.config.tower) if trained else 0.0
  return {
    "tokens_per_s": rate,
    "waiting": found["machine/waiting"],
    "gflops": 3 * work / length * rate / 1e9,
  }


class TorchRows:
  """The data set of the Trainer: its rows tokenised, its pictures files."""

  def __init__(self, data: pathlib.Path, slots: int):
    self._words, self._slots = Tokenizer.word_level(WORDS), slots
    lines = (data / "train.jsonl").read_text().splitlines()
    self._rows, self._images = [json.loads(line) for line in lines], data / "images"

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, Any]:
    row, encode = self._rows[i], self._words.encode
    prefix = [self._words.image_id] * self._slots + [self._words.id("<bos>")]
    prefix += encode(row["prefix"] + "\n")
    suffix = [*encode(row["suffix"]), self._words.id("<eos>")]
    with Image.open(self._images / row["image"]) as image:
      return {"image": image.convert("RGB"), "prefix": prefix, "suffix": suffix}


def collate(processor: Any, made: list[dict[str, Any]]) -> dict[str, Any]:
  """A batch for transformers' PaliGemma."""
  import torch

  ids = [x["prefix"] + x["suffix"] for x in made]
  longest = max(map(len, ids))

  def padded(rows: list[list[int]], value: int) -> Any:
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

  return {
    "input_ids": padded(ids, 0),
    "attention_mask": padded([[1] * len(x) for x in ids], 0),
    "token_type_ids": padded([[0] * len(x["prefix"]) + [1] * len(x["suffix"]) for x in made], 0),
    "labels": padded([[-100] * len(x["prefix"]) + x["suffix"] for x in made], -100),
    "pixel_values": processor([x["image"] for x in made], return_tensors="pt")["pixel_values"],
  }


def theirs(
  folder: pathlib.Path, data: pathlib.Path, scratch: pathlib.Path, *, trained: bool
) -> dict[str, float]:
  """Tokens per second of transformers' Trainer."""
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    folder, dtype=torch.float32
  )
  for name, p in model.named_parameters():
    p.requires_grad_(trained or "vision_tower" not in name)
  ends: list[float] = []

  class Clock(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
      del args, state, control, kwargs
      ends.append(time.perf_counter())

  side = VISION["image_size"]
  processor = transformers.SiglipImageProcessor(size={"height": side, "width": side})
  trainer = transformers.Trainer(
    model=model,
    args=transformers.TrainingArguments(
      output_dir=str(scratch / "trainer"),
      per_device_train_batch_size=ROWS,
      max_steps=_STEPS.value + 1,
      learning_rate=1e-5,
      use_cpu=True,
      report_to=[],
      save_strategy="no",
      remove_unused_columns=False,
      disable_tqdm=True,
    ),
    train_dataset=TorchRows(data, (side // VISION["patch_size"]) ** 2),
    data_collator=functools.partial(collate, processor),
    callbacks=[Clock()],
  )
  trainer.train()
  length = (side // VISION["patch_size"]) ** 2 + 1 + 12 + 1 + 2
  return {"tokens_per_s": ROWS * length * _STEPS.value / (ends[-1] - ends[0])}


def speed() -> dict[str, Any]:
  out: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as made:
    scratch = pathlib.Path(made)
    folder, data = scratch / "model", scratch / "data"
    make_model(folder)
    write_data(data, images=ROWS * (_STEPS.value + 1), size=(640, 480))
    for trained in (False, True):
      name = "trained" if trained else "frozen"
      sides: dict[str, Callable[..., dict[str, float]]] = {"ours": ours, "trainer": theirs}
      out[name] = {k: run(folder, data, scratch, trained=trained) for k, run in sides.items()}
      out[name]["ratio"] = out[name]["ours"]["tokens_per_s"] / out[name]["trainer"]["tokens_per_s"]
      print(name, out[name], file=sys.stderr, flush=True)
  out["trained to frozen, per FLOP"] = (
    out["trained"]["ours"]["gflops"] / out["frozen"]["ours"]["gflops"]
  )
  return out


# --------------------------------------------------------------------------------------- step

QUESTIONS = (
  ("is row two column four empty", "yes"),
  ("the lowest object is what shape", "triangle"),
  ("there are how many objects", "four"),
  ("what color is the largest circle", "red"),
)


def cpu_seconds(run: Callable[[], Any], *, times: int) -> float:
  """Returns CPU seconds of a call, of all threads: the median of 5 times so many calls."""
  import jax

  jax.block_until_ready(run())
  found = []
  for _ in range(5):
    start = time.process_time()
    jax.block_until_ready([run() for _ in range(times)][-1])
    found.append((time.process_time() - start) / times)
  return float(np.median(found))


def step() -> dict[str, Any]:
  """CPU time of a repair's step at the size of scenes."""
  import dataclasses

  import jax
  import jax.numpy as jnp

  from auditdm_jax.models import flops
  from auditdm_jax.rectify import recipes, rows, supervised, tuning
  from auditdm_jax.vlm import load_vlm

  vlm = load_vlm("data/scenes/weights/target_easy")
  recipe = dataclasses.replace(recipes.get("scenes"), micro_rows=8)
  asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(recipe.batch_size)]
  made = rows.RowLayout.of(vlm, length=28, suffix=3).rows(*zip(*asked))
  shape = (recipe.batch_size, vlm.config.num_image_tokens, vlm.config.tower.width)
  features = np.random.default_rng(0).normal(size=shape).astype(np.float16)
  batch = supervised.Batch(images=features, image=None, **made)
  tuned = tuning.Tuning(vlm.config, recipe, steps=1_000)
  state = [tuned.init(vlm.params)]

  def update() -> Any:
    state[0], metrics = tuned.update(state[0], batch)
    return metrics

  seconds = cpu_seconds(update, times=5)
  square = jnp.ones((1024, 1024))
  product = jax.jit(jnp.matmul)
  floor = 2 * 1024**3 / cpu_seconds(lambda: product(square, square), times=20)
  tokens, length = int(made["valid"].sum()), float(made["valid"].sum(1).mean())
  work = flops.decoder(vlm.config.text, tokens=length, context=length, predictions=2)
  return {
    "ms": seconds * 1e3,
    "tokens_per_cpu_s": tokens / seconds,
    "gflops": 3 * work * recipe.batch_size / seconds / 1e9,
    "floor_gflops": floor / 1e9,
  }


def main(argv: list[str]) -> None:
  modes = {"memory": memory, "speed": speed, "step": step}
  if len(argv) != 2 or argv[1] not in modes:
    raise app.UsageError("say memory, speed or step")
  logging.set_verbosity(logging.WARNING)  # Orbax says a lot.
  if _FOLDER.value:
    print(json.dumps(tune_tiny(pathlib.Path(_FOLDER.value), trained=_TRAINED.value)))
    return
  print(json.dumps(modes[argv[1]](), indent=2))


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
