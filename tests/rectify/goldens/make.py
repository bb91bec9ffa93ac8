# SPDX-License-Identifier: Apache-2.0
"""Makes the goldens beside this file with big_vision, of which nothing is changed.

  pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 einops overrides sentencepiece clu \
    tensorflow-cpu tensorflow-datasets ml_collections editdistance psutil pillow importlib_resources
  BIG_VISION=/path/to/big_vision python tests/rectify/goldens/make.py

For each of `STEPS` the trainer itself (`python -m big_vision.trainers.proj.paligemma.train`) takes
five steps with the transfer's own `get_config` and `sweep_best`. What differs is what makes a run
small: model, data, text length, batch and number of steps. This file is the config of these runs as
well; as such it registers the small decoder and writes down the batches that pass.

  steps.npz      batches, losses, parameters before and after, keys of the dropout
  recipes.json   the settings of all transfers, and values of the learning rate's schedule
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
TRANSFERS = "big_vision.configs.proj.paligemma.transfers"
# Ours -> (the module, its argument).
NAMES = {
  **{name: (name, 224) for name in ("vqav2", "gqa", "okvqa", "ai2d", "docvqa", "chartqa")},
  **{name: (name, 224) for name in ("cococap", "forkme")},
  **{f"{n}-448": (n, 448) for n in ("vqav2", "gqa", "okvqa", "ai2d", "docvqa", "chartqa")},
  **{f"{n}-448": (n, 448) for n in ("cococap", "forkme")},
  **{f"{n}-896": (n, 896) for n in ("docvqa", "chartqa", "forkme")},
  "refcoco": ("refcoco_seg", 224),
  "refcoco-448": ("refcoco_seg", 448),
  "refcoco-896": ("refcoco_seg", 896),
}
STEPS = ("vqav2", "chartqa", "refcoco", "gqa-448", "forkme")
NUM_STEPS, BATCH, TEXT_LEN, RES, VOCAB = 5, 4, 16, 16, 96
VISION = {"width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "patch_size": (4, 4)}
TEXT = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
SCHEDULES = ((5, 0.05), (50, 0.05), (70, 0.05), (97, 0.1), (30, 0.0))  # (steps, warm-up)
_WORDS = "what color is the left car red blue large striped umbrella near two trees yes no".split()


def settings(name: str):
  """Returns the config of a transfer with the values of its `sweep_best`, if it has some."""
  module_name, res = NAMES[name]
  module = importlib.import_module(f"{TRANSFERS}.{module_name}")
  best = []
  if "sweep_best" in vars(module):
    module.sweep_best(lambda **values: best.append(values))
  values = next((dict(v) for v in best if v["res"] == res), {"config_arg": f"res={res}"})
  config = module.get_config(values.pop("config_arg"))
  config.update_from_flattened_dict(values)
  return config


def get_config(name: str):
  """Returns the config of a small run; a process of the trainer calls it."""
  folder = pathlib.Path(os.environ["GOLDEN_FOLDER"])
  np.random.seed(0)
  _register()
  _write_down_batches(folder / f"{name}.batches.npz")
  config = settings(name)
  common = importlib.import_module(f"{TRANSFERS}.common")
  common.TOKENIZER = f'gemma(model="{folder}/tokenizer.model")'
  antialias = ", antialias=True" if "antialias=True" in _pp(config) else ""
  config.input = {
    "data": {
      "name": "bv:jsonl",
      "fname": f"{folder}/train.jsonl",
      "fopen_keys": {"image": str(folder)},
    },
    "pp": "|".join(
      [
        f"decode|resize({RES}{antialias})|value_range(-1, 1)",
        common.combine_and_keep_train(TEXT_LEN),
      ]
    ),
    "batch_size": BATCH,
  }
  del config.total_epochs
  config.total_steps = NUM_STEPS
  config.evals = {}
  config.model = {
    "img": {**VISION, "pool_type": "none", "scan": True},
    "llm": {
      "variant": "tiny",
      "vocab_size": VOCAB,
      "dropout": config.model.llm.dropout,
      "final_logits_softcap": 0.0,
    },
  }
  config.model_init = f"{folder}/init.npz"
  config.log_training_steps, config.ckpt_steps = 1, NUM_STEPS
  config.pp_modules = ["ops_general", "ops_image", "ops_text", "proj.paligemma.ops"]
  return config


def _pp(config) -> str:
  """Returns the preprocessing of a transfer's first data set."""
  if "pp" in config.input:
    return config.input.pp
  return config.input[next(iter(config.input.data))].pp


def _register() -> None:
  """Adds the small decoder to big_vision's, and what it asks of an older jax."""
  import jax
  import ml_collections

  gemma = importlib.import_module("big_vision.models.ppp.gemma")
  tiny = TEXT | {
    "variant": "tiny",
    "norm_eps": 1e-6,
    "vocab_size": VOCAB,
    "final_logits_softcap": 30.0,
    "attn_logits_softcap": 50.0,
    "post_norms": True,
    "scan": True,
    "remat_policy": "nothing_saveable",
  }
  gemma.get_config = lambda variant: ml_collections.ConfigDict(tiny)
  if "PositionalSharding" not in dir(jax.sharding):

    def one_axis(devices):
      mesh = jax.sharding.Mesh(np.asarray(devices), ("all",))
      return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))

    jax.sharding.PositionalSharding = one_axis


def _write_down_batches(path: pathlib.Path) -> None:
  pipeline = importlib.import_module("big_vision.input_pipeline")
  start, seen = pipeline.start_global, []

  def start_global(data, *args, **options):
    def noted():
      for batch in data:
        seen.append({name: np.asarray(x) for name, x in batch.items()})
        np.savez(path, **{f"{i}/{n}": x for i, b in enumerate(seen) for n, x in b.items()})
        yield batch

    class Noted:
      element_spec = data.element_spec

      def __iter__(self):
        return noted()

    return start(Noted(), *args, **options)

  pipeline.start_global = start_global


def _data(folder: pathlib.Path) -> None:
  """Writes rows with labels of one to nine words, four pictures, and a tokenizer of the words."""
  from PIL import Image
  import sentencepiece

  rng = np.random.default_rng(0)
  for i in range(4):
    y, x = np.mgrid[0:24, 0:24]
    waves = [np.sin(x * a + y * b + i) for a, b in rng.uniform(0.1, 0.7, (3, 2))]
    Image.fromarray(np.uint8(np.stack(waves, -1) * 100 + 120)).save(folder / f"{i}.png")
  rows = [
    {
      "image": f"{i % 4}.png",
      "prefix": " ".join(rng.choice(_WORDS, rng.integers(1, 5))),
      "suffix": " ".join(rng.choice(_WORDS, (1, 2, 5, 9)[i % 4])),
    }
    for i in range(NUM_STEPS * BATCH)
  ]
  (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "words.txt").write_text("\n".join(_WORDS * 20))
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "words.txt"),
    model_prefix=str(folder / "tokenizer"),
    model_type="word",
    vocab_size=len(_WORDS) + 6,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    user_defined_symbols=["\n"],
  )


def _init(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Writes parameters that are all drawn, those that big_vision starts at zero too."""
  import big_vision.utils as u
  import jax

  _register()
  module = importlib.import_module("big_vision.models.proj.paligemma.paligemma")
  model = module.Model(
    img={**VISION, "pool_type": "none", "scan": True},
    llm={"variant": "tiny", "vocab_size": VOCAB},
  )
  image, text = np.zeros((1, RES, RES, 3), np.float32), np.zeros((1, TEXT_LEN), np.int32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), image, text, text))["params"]
  rng = np.random.default_rng(0)
  params = {}
  for name, leaf in u.tree_flatten_with_names(shapes)[0]:
    # Logits up to 20 or so: a cap at 30 would be seen.
    std = 1.5 if name.endswith("input_embedding") else 0.3
    at = 1.0 if name.startswith("img/") and name.endswith("scale") else 0.0
    params[name] = np.float32(at + rng.normal(0, std, leaf.shape))
  np.savez(folder / "init.npz", **{f"params/{name}": x for name, x in params.items()})
  return params


def _run(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  """Lets the trainer run and returns what it left."""
  workdir = folder / f"run-{name}"
  command = [sys.executable, "-m", "big_vision.trainers.proj.paligemma.train"]
  command += [f"--config={pathlib.Path(__file__).absolute()}:{name}", f"--workdir={workdir}"]
  subprocess.run(command, check=True, env=os.environ | {"GOLDEN_FOLDER": str(folder)})
  return _read(folder, name)


def _read(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  """Returns a run's batches, losses and last parameters."""
  import big_vision.utils as u

  workdir = folder / f"run-{name}"
  batches = np.load(folder / f"{name}.batches.npz")
  found = {}
  for key in ("text", "mask_ar", "mask_loss", "image"):
    values = np.stack([batches[f"{i}/{key}"] for i in range(NUM_STEPS)])
    if key == "image":
      raw = np.round((values + 1) * 127.5).astype(np.uint8)
      assert np.array_equal(raw.astype(np.float32) / 255 * 2 - 1, values)
      values = raw
    found[key] = values.astype(np.uint8)
  lines = (workdir / "big_vision_metrics.txt").read_text().splitlines()
  steps = [step for step in map(json.loads, lines) if "training_loss" in step]
  for key in ("training_loss", "l2_grads", "global_schedule"):
    found[key] = np.array([step[key] for step in steps[:NUM_STEPS]])  # The last is there twice.
  loaded = u.tree_flatten_with_names(u.load_params(str(workdir / "checkpoint.bv")))[0]
  found |= {f"after/{key}": np.asarray(x, np.float32) for key, x in loaded}
  return found


def _dropout_keys(seed: int) -> np.ndarray:
  """Returns u32[steps,L,2,2]: the keys that flax hands to a block's two dropouts in each step."""
  import flax.linen as nn
  import jax

  class Drop(nn.Module):
    @nn.compact
    def __call__(self):
      return self.make_rng("dropout")

  class Block(nn.Module):
    def setup(self):
      self.drop = Drop()

    def __call__(self, carry, _):
      return carry, jax.numpy.stack([self.drop(), self.drop()])

  class Decoder(nn.Module):
    @nn.compact
    def __call__(self):
      layers = self.scope.push("layers")
      block = nn.remat(Block, prevent_cse=False)
      scanned = nn.scan(block, split_rngs={"dropout": True}, length=TEXT["depth"])
      return scanned(parent=layers)((), None)[1]

  class Model(nn.Module):
    @nn.compact
    def __call__(self):
      return Decoder(name="llm")()

  rng, _ = jax.random.split(jax.random.PRNGKey(seed))
  _, rng_loop = jax.random.split(rng, 2)
  keys = []
  for step in range(NUM_STEPS):
    _, rng_model = jax.random.split(jax.random.fold_in(rng_loop, step), 2)
    keys.append(np.asarray(Model().apply({}, rngs={"dropout": rng_model})))
  return np.stack(keys)


def _settings_of(name: str) -> dict:
  """Returns what `recipes` must say of a transfer."""
  config = settings(name)
  pp, schedule = _pp(config), config.schedule
  if isinstance(schedule, list | tuple):
    parts = [(regex, None if value is None else dict(value)) for regex, value in schedule]
  else:
    parts = [(".*", dict(schedule))]
  return {
    "epochs": config.total_epochs,
    "batch_size": config.input.batch_size,
    "optax": [config.optax_name, dict(config.get("optax", {}))],
    "lr": config.lr,
    "wd": config.wd,
    "clip": config.grad_clip_norm,
    "label_smoothing": config.label_smoothing,
    "llm_dropout": config.model.llm.dropout,
    "parts": parts,
    "res": int(re.search(r"resize\((\d+)", pp)[1]),
    "antialias": "antialias=True" in pp,
    "text_len": int(re.search(r"tolen\((\d+)", pp)[1]) - 1,
    "pp": pp.partition("|tok(")[0],
  }


def _schedules() -> list:
  import big_vision.utils as u

  found = []
  for total, warmup in SCHEDULES:
    at = u.create_learning_rate_schedule(total, decay_type="cosine", warmup_percent=warmup or None)
    found.append([total, warmup, [float(at(step)) for step in range(total + 1)]])
  return found


def main() -> None:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  root = os.environ["BIG_VISION"]
  os.environ["PYTHONPATH"] = root
  sys.path.insert(0, root)
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    _data(folder)
    before = _init(folder)
    out = {f"before/{name}": x for name, x in before.items()}
    for name in STEPS:
      for key, value in _run(folder, name).items():
        if not key.startswith("after/") or not np.array_equal(value, before[key[6:]]):
          out[f"{name}/{key}"] = value
    out["dropout_keys"] = _dropout_keys(seed=0)
  np.savez_compressed(HERE / "steps.npz", **out)
  text = json.dumps(
    {"recipes": {name: _settings_of(name) for name in NAMES}, "schedules": _schedules()}, indent=1
  )
  (HERE / "recipes.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
