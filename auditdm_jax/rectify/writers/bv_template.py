# SPDX-License-Identifier: Apache-2.0
"""Text of the big_vision config that lies beside exported data; the writer fills in `$names`."""

import string

BV_CONFIG = string.Template('''\
"""Fine-tunes PaliGemma on the examples beside this file, with an unmodified big_vision.

  python -m big_vision.trainers.proj.paligemma.train --config HERE/bv_config.py --workdir WORKDIR

Written by auditdm_jax; recipe "$recipe_name". Values that one may want to change are below.
"""

import os

import big_vision.configs.common as bvcc
import big_vision.configs.proj.paligemma.transfers.common as transfers
import jax
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
# In f32: at lr 1e-5 most bf16 weights would not move.
MODEL_INIT = $model_init
TOKENIZER_FILE = $tokenizer
TOKENIZER = f"gemma(tokensets=$tokensets, model={TOKENIZER_FILE!r})"
RES = $res
TEXT_LEN = $text_len  # The longest row has $longest; beyond this a row loses its suffix silently.
ANSWER_LEN = $answer_len  # Tokens that an evaluated answer may have.
IMG = $img
LLM = $llm

if "PositionalSharding" not in dir(jax.sharding):  # Newer jax; big_vision asks for it.

  def _one_axis(devices):
    mesh = jax.sharding.Mesh(np.asarray(devices), ("all",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))

  jax.sharding.PositionalSharding = _one_axis
$sizes
def _source(split):
  return dict(
    name="bv:jsonl",
    fname=os.path.join(HERE, f"{split}.jsonl"),
    fopen_keys={"image": os.path.join(HERE, "images")},
  )


def _image(res, antialias):
  resize = f"resize({res}, antialias=True)" if antialias else f"resize({res})"
  return f"decode|{resize}|value_range(-1, 1)"


def get_config(arg=None):
  c = bvcc.parse_arg(arg, res=RES, text_len=TEXT_LEN, batch_size=$batch_size)
  transfers.TOKENIZER = TOKENIZER  # Read when the strings below are made.
  train_pp = "|".join([_image(c.res, $antialias), transfers.combine_and_keep_train(c.text_len)])

  c.input = {}
  c.input.data = _source("train")
  c.input.pp = train_pp
  c.input.batch_size = c.batch_size
  c.input.shuffle_buffer_size = 50_000
  c.input.cache_raw = True
  $length_line

  c.optax_name = "scale_by_adam"
  c.optax = dict(b2=0.999)
  c.lr = $lr
  c.wd = $wd
  c.grad_clip_norm = $clip
  c.label_smoothing = $label_smoothing
  schedule = dict(decay_type="cosine", warmup_percent=$warmup)
  $schedule_lines

  c.evals = {}
$evals
  c.model_name = "proj.paligemma.paligemma"
  c.model = {}
  c.model.img = dict(pool_type="none", scan=True, **IMG)
  c.model.llm = dict(dropout=$llm_dropout, final_logits_softcap=0.0, **LLM)
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

# Without these lines big_vision knows no Gemma but those that were published.
SIZES = string.Template("""
import big_vision.models.ppp.gemma as bv_gemma
import ml_collections

_published = bv_gemma.get_config


def _sizes(variant):
  own = dict(
$sizes
  )
  return ml_collections.ConfigDict(own) if variant == own["variant"] else _published(variant)


bv_gemma.get_config = _sizes

""")

# `keep` has what the evaluator takes to the CPU: any other text in a batch ends the run.
EVALS = string.Template("""\
  c.evals["val/pplx"] = dict(
    type="proj.paligemma.perplexity",
    pred="logits",
    key="text",
    shift_labels=True,
    log_percent=0.1,
    data=_source("val"),
    pp_fn=train_pp,
  )
  # A suffix left in the row would be fed to the model as the start of its answer.
  hide = $hide
  c.evals["val/answers"] = dict(
    type="proj.paligemma.transfers.$evaluator",
    pred=$pred,
    pred_kw=$pred_kw,
    log_percent=0.5,
    tokenizer=TOKENIZER,
    data=_source("val"),
    pp_fn="|".join([
      _image(c.res, $antialias),
      hide,
      transfers.combine_and_keep_eval(c.text_len, keep=$keep),
    ]),
$more  )
""")
