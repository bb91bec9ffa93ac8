# SPDX-License-Identifier: Apache-2.0
"""Text of the big_vision config that export writes next to its data; export fills in `$names`."""

import string

BV_CONFIG = string.Template('''\
"""Fine-tunes PaliGemma 2 on the examples beside this file, with big_vision.

  python -m big_vision.trainers.proj.paligemma.train --config $here/bv_config.py --workdir WORKDIR

Written by auditdm_jax; recipe "$recipe_name". Values that one may want to change are below.
"""

import os

import big_vision.configs.common as bvcc
import big_vision.configs.proj.paligemma.transfers.common as transfers
import jax
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL_INIT = $model_init  # An f32 npz: at lr 1e-5 most bf16 weights would not move.
TOKENIZER = $tokenizer
LLM_VARIANT = $llm_variant
RES = $res
TEXT_LEN = $text_len  # The longest row has $longest; beyond this a row loses its suffix silently.

if "PositionalSharding" not in dir(jax.sharding):  # Newer jax; big_vision asks for it.

  def _one_axis(devices):
    mesh = jax.sharding.Mesh(np.asarray(devices), ("all",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))

  jax.sharding.PositionalSharding = _one_axis


def _source(split):
  return dict(
    name="bv:jsonl",
    fname=os.path.join(HERE, f"{split}.jsonl"),
    fopen_keys={"image": os.path.join(HERE, "images")},
  )


def _image(res):
  return f"decode|resize({res}, antialias=True)|value_range(-1, 1)"


def get_config(arg=None):
  c = bvcc.parse_arg(arg, res=RES, text_len=TEXT_LEN, batch_size=$batch_size)
  transfers.TOKENIZER = TOKENIZER  # Read when the strings below are made.

  c.input = {}
  c.input.data = _source("train")
  c.input.pp = "|".join([_image(c.res), transfers.combine_and_keep_train(c.text_len)])
  c.input.batch_size = c.batch_size
  c.input.shuffle_buffer_size = 50_000
  c.input.cache_raw = True
  $length_line

  c.optax_name = "scale_by_adam"
  c.lr = $lr
  c.wd = $wd
  c.grad_clip_norm = $clip
  c.label_smoothing = $label_smoothing
  schedule = dict(decay_type="cosine", warmup_percent=$warmup)
  c.schedule = $schedules  # None = not trained.
  c.lr_mults = $lr_mults

  c.evals = {}
  if $has_val:
    # A suffix left in the row would be fed to the model as the start of its answer.
    hide = 'copy("suffix", "answer")|drop("suffix")'
    keep = ("id", "answer")
    c.evals["val/predictions"] = dict(
      type="proj.paligemma.transfers.storepreds",
      pred="decode",
      pred_kw={"max_decode_len": c.text_len},
      log_percent=0.5,
      tokenizer=TOKENIZER,
      data=_source("val"),
      pp_fn="|".join([_image(c.res), hide, transfers.combine_and_keep_eval(c.text_len, keep=keep)]),
    )

  c.model_name = "proj.paligemma.paligemma"
  c.model = {}
  c.model.img = dict(variant="So400m/14", pool_type="none", scan=True)
  c.model.llm = dict(
    variant=LLM_VARIANT,
    vocab_size=256_000 + 1024 + 128,
    dropout=$llm_dropout,
    final_logits_softcap=0.0,
  )
  c.model_init = MODEL_INIT

  c.mesh = [("data", -1)]
  c.sharding_strategy = [(".*", 'fsdp(axis="data")')]
  c.sharding_rules = [("act_batch", ("data",))]
  c.log_training_steps = 10
  c.ckpt_steps = 1000
  c.pp_modules = ["ops_general", "ops_image", "ops_text", "proj.paligemma.ops"]
  c.seed = 0
  return c
''')
