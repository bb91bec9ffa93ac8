# SPDX-License-Identifier: Apache-2.0
"""An export obeys the rules of big_vision's reader, and its config says what the recipe says."""

import dataclasses
import json
import sys
import types

import ml_collections
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.models import variants
from auditdm_jax.rectify import recipes
from auditdm_jax.rectify.writers import big_vision
from auditdm_jax.rectify.writers.big_vision import StartModel, Transfer
from auditdm_jax.text import styles
from tests.rectify.exporting import collect, sourced

CHARTQA = Transfer(
  name="chartqa", style=styles.BARE, evaluator="chartqa", to_lower=True, answer_len=48
)
MODEL = StartModel(
  config=variants.VARIANTS["paligemma2_3b_224"],
  init="/ckpt/pt.npz",
  tokenizer="/tok/gemma.model",
  tokensets=("loc", "seg"),
  count_tokens=lambda text: len(text.split()),
  write_init=lambda path: path.write_bytes(b"weights"),
)


def write(folder, exported, *, recipe="chartqa", transfer=CHARTQA, model=MODEL):
  folder.mkdir()
  recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
  return big_vision.write(folder, exported, recipe=recipe, transfer=transfer, model=model)


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_folder_and_rows(tmp_path):
  exported = collect()
  facts = write(tmp_path / "out", exported, model=dataclasses.replace(MODEL, init=""))
  assert facts == {"text_len": 16, "longest": 9}
  out = tmp_path / "out"
  assert sorted(p.name for p in out.iterdir()) == [
    *("bv_config.py", "images", "model.npz", "train.jsonl", "val.jsonl")
  ]
  first = exported.rows[0]
  assert _rows(out / "train.jsonl")[0] == {
    "id": "train-000000",
    "image": first.image,
    "prefix": first.question,
    "suffix": "red",
  }
  assert len(_rows(out / "train.jsonl")) == 9 and len(_rows(out / "val.jsonl")) == 3
  assert len(list((out / "images").iterdir())) == 12
  assert (out / "model.npz").read_bytes() == b"weights"


def test_long_rows_are_refused(tmp_path):
  exported = collect([sourced(0), sourced(1, question="very " * 199)], val_share=0)
  left = big_vision.fitting(exported, CHARTQA, MODEL)
  assert len(left.rows) == 2
  model = dataclasses.replace(MODEL, count_tokens=len)
  left = big_vision.fitting(exported, CHARTQA, model)
  assert len(left.rows) == 1 and [r.kind for r in left.refused] == ["too long"]
  assert "1001 tokens, at most 256" in left.refused[0].why
  with pytest.raises(UserError, match="no example is left"):
    big_vision.fitting(collect([exported.rows[1].sourced]), CHARTQA, model)


def test_replay_is_not_exported(tmp_path):
  with pytest.raises(UserError, match="it replays, and an export holds no replay"):
    write(tmp_path / "out", collect(), recipe="scenes")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("\n", "train.jsonl:1: not JSON"),
    ('{"id": "a"}\n', "exactly the keys"),
    ('{"id": "a", "image": "IMAGE", "prefix": "p", "suffix": 3}\n', "suffix is not a string"),
    ('{"id": "a", "image": "IMAGE", "prefix": "p", "suffix": ""}\n', "an empty prefix or suffix"),
    ('{"id": "a", "image": "../../x", "prefix": "p", "suffix": "s"}\n', "no image"),
    ('\ufeff{"id": "a", "image": "IMAGE", "prefix": "p", "suffix": "s"}\n', "byte order"),
    ('{"id": "a", "image": "IMAGE", "prefix": "p", "suffix": "s"}\n' * 2, ":2: id 'a' is used"),
  ],
)
def test_check_names_row_and_rule(tmp_path, text, message):
  exported = collect()
  write(tmp_path / "out", exported)
  path = tmp_path / "out" / "train.jsonl"
  path.write_text(text.replace("IMAGE", exported.rows[0].image), encoding="utf-8")
  with pytest.raises(UserError, match=message):
    big_vision.check(tmp_path / "out")


# ------------------------------------------------------------------------------------ the config

# What big_vision's evaluators take to the CPU; any other text in their batches ends the run.
KEPT_ON_CPU = {
  "vqa": {"answers", "answer", "question_id"},
  "chartqa": {"answer", "question_id"},
  "storepreds": {"id"},
}
NUMBERS = {"image", "text", "mask_ar", "mask_loss", "mask_input"}


@pytest.fixture
def run_config(monkeypatch):
  """Runs a generated config with stand-ins for the big_vision modules that it imports."""
  common = types.ModuleType("big_vision.configs.common")
  common.parse_arg = lambda arg, **values: ml_collections.ConfigDict(values)
  transfers = types.ModuleType("big_vision.configs.proj.paligemma.transfers.common")
  transfers.combine_and_keep_train = lambda n: (
    f"train({n},{transfers.TOKENIZER})|keep('image', 'text', 'mask_ar', 'mask_loss')"
  )
  transfers.combine_and_keep_eval = lambda n, keep: (
    f"eval({n})|keep{('image', 'text', 'mask_ar', 'mask_input', *keep)}"
  )
  gemma = types.ModuleType("big_vision.models.ppp.gemma")
  gemma.get_config = lambda variant: {"variant": variant, "published": True}
  for leaf in (common, transfers, gemma):
    parts = leaf.__name__.split(".")
    for i in range(1, len(parts)):
      name = ".".join(parts[:i])
      monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
    monkeypatch.setitem(sys.modules, leaf.__name__, leaf)
  for name in [n for n in sys.modules if n.startswith("big_vision.")]:
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, sys.modules[name])

  def run(folder):
    path = folder / "bv_config.py"
    namespace = {"__file__": str(path), "__name__": "bv_config"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace["get_config"]()

  return run


def test_config_has_the_values_of_the_recipe(tmp_path, run_config):
  write(tmp_path / "out", collect())
  c = run_config(tmp_path / "out")
  assert (c.total_epochs, c.lr, c.wd, c.label_smoothing) == (30, 1e-5, 1e-6, 0.2)
  assert c.input.batch_size == 256 and c.input.data.fname == str(tmp_path / "out" / "train.jsonl")
  assert c.model.llm.variant == "gemma2_2b" and c.model.llm.dropout == 0.1
  assert c.model.llm.final_logits_softcap == 0.0 and c.model_init == "/ckpt/pt.npz"
  assert c.model.llm.vocab_size == 257_152 and c.model.img.variant == "So400m/14"
  assert "model='/tok/gemma.model'" in c.input.pp and "train(16," in c.input.pp
  assert "tokensets=('loc', 'seg')" in c.input.pp
  assert c.input.pp.startswith("decode|resize(224, antialias=True)|value_range(-1, 1)|")
  assert c.schedule[0][1] == {"decay_type": "cosine", "warmup_percent": 0.05}


@pytest.mark.parametrize("evaluator", KEPT_ON_CPU)
def test_no_text_of_a_batch_goes_to_the_devices(tmp_path, run_config, evaluator):
  transfer = dataclasses.replace(CHARTQA, evaluator=evaluator)
  write(tmp_path / "out", collect(), transfer=transfer)
  evals = run_config(tmp_path / "out").evals
  answers = evals["val/answers"]
  assert answers.type == f"proj.paligemma.transfers.{evaluator}"
  for one, allowed in ((answers, KEPT_ON_CPU[evaluator]), (evals["val/pplx"], set())):
    kept = set(eval(one.pp_fn.rpartition("|keep")[2]))
    assert kept <= NUMBERS | allowed and "image" in kept
  # A suffix that stays in the row would be the start of the model's answer.
  assert answers.pp_fn.index('drop("suffix")') < answers.pp_fn.index("eval(16)")
  outfile = answers.preds_outfile if evaluator == "storepreds" else answers.outfile
  assert outfile == "{workdir}/val_answers.json"
  assert dict(answers.pred_kw) == {"max_decode_len": 48} and answers.pred == "decode"


def test_a_transfer_may_resize_otherwise_and_search(tmp_path, run_config):
  transfer = Transfer(
    name="cococap",
    style=styles.PALIGEMMA,
    evaluator="storepreds",
    antialias=True,
    antialias_eval=False,
    beam=2,
  )
  write(tmp_path / "out", collect(), transfer=transfer)
  c = run_config(tmp_path / "out")
  assert "resize(224, antialias=True)" in c.input.pp and "|resize(224)|" in (
    c.evals["val/answers"].pp_fn
  )
  assert c.evals["val/answers"].pred == "beam_decode"
  assert dict(c.evals["val/answers"].pred_kw) == {"beam_size": 2, "max_decode_len": 32}
  assert _rows(tmp_path / "out/train.jsonl")[0]["prefix"].startswith("answer en what color")


def test_frozen_parts_have_no_schedule_and_steps_replace_epochs(tmp_path, run_config):
  recipe = recipes.Recipe(steps=7, batch_size=8, lr=1e-4, parts=recipes.NO_IMAGE_PART)
  write(tmp_path / "out", collect(val_share=0), recipe=recipe)
  c = run_config(tmp_path / "out")
  assert c.schedule[0] == ("img/.*", None) and c.schedule[1][1] and c.total_steps == 7
  assert "lr_mults" not in c
  recipe = dataclasses.replace(recipe, parts=(("img/.*", None), ("llm/.*", 0.5)))
  write(tmp_path / "slow", collect(val_share=0), recipe=recipe)
  assert list(run_config(tmp_path / "slow").lr_mults) == [("llm/.*", 0.5)]
  assert "total_epochs" not in c and not c.evals


def test_a_model_of_other_sizes_is_described(tmp_path, run_config):
  config = MODEL.config
  text = dataclasses.replace(config.text, depth=3, layer_is_local=())
  config = dataclasses.replace(
    config, text=text, vision=dataclasses.replace(config.tower, depth=2, image_size=28)
  )
  write(tmp_path / "out", collect(), model=dataclasses.replace(MODEL, config=config))
  c = run_config(tmp_path / "out")
  assert c.model.img.depth == 2 and tuple(c.model.img.patch_size) == (14, 14)
  get_config = sys.modules["big_vision.models.ppp.gemma"].get_config
  own = get_config(c.model.llm.variant)
  assert (own.depth, own.width, own.attn_logits_softcap) == (3, 2304, 50.0)
  assert get_config("gemma2_9b") == {"variant": "gemma2_9b", "published": True}
