# SPDX-License-Identifier: Apache-2.0
"""An export obeys the rules of big_vision's reader, and its config says what the recipe says."""

import json
import sys
import types

import ml_collections
import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import config
from auditdm_jax.rectify import curate, export, recipes

_MODEL = export.BigVision(model_init="/ckpt/pt.npz", tokenizer="/tok/gemma.model", max_text_len=40)


def _example(i, *, question=None, label="red", image=None):
  return curate.TrainingExample(
    image_id=image or f"im{i}",
    question=question or f"what color is object {i}",
    label=label,
    provenance={"probe_id": f"p{i}"},
  )


@pytest.fixture
def images(tmp_path):
  folder = tmp_path / "store"
  folder.mkdir()
  for i in range(8):
    Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"im{i}.png")
  return lambda image_id: folder / f"{image_id}.png"


def _export(tmp_path, images, train, **options):
  options = {"recipe": recipes.get("chartqa"), "model": _MODEL, **options}
  return export.export(
    tmp_path / "out",
    train,
    image_path=images,
    count_tokens=lambda text: len(text.split()),
    recipe_name="chartqa",
    **options,
  )


def test_folder_and_rows(tmp_path, images):
  stats = _export(
    tmp_path, images, [_example(i) for i in range(4)], val=[_example(5), _example(5, question="q")]
  )
  out = tmp_path / "out"
  assert stats == {"rows": 6, "too_long": 0, "longest": 11, "text_len": 16}
  assert sorted(p.name for p in out.iterdir()) == [
    "bv_config.py",
    "images",
    "meta.jsonl",
    "stats.json",
    "train.jsonl",
    "val.jsonl",
  ]
  first = json.loads((out / "train.jsonl").read_text().splitlines()[0])
  assert first == {
    "id": "train-000000",
    "image": "im0.png",
    "prefix": "answer en what color is object 0",
    "suffix": "red",
  }
  assert len(list((out / "images").iterdir())) == 5
  assert json.loads((out / "meta.jsonl").read_text().splitlines()[0])["probe_id"] == "p0"
  export.check(out)
  _export(tmp_path, images, [_example(7)])
  assert len((out / "train.jsonl").read_text().splitlines()) == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "store"]


def test_long_rows_are_left_out_and_counted(tmp_path, images):
  stats = _export(tmp_path, images, [_example(0), _example(1, question="very " * 40)])
  assert (stats["rows"], stats["too_long"]) == (1, 1)


def test_other_formats_become_png(tmp_path, images):
  Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(images("webp"), format="WEBP")
  _export(tmp_path, images, [_example(0, image="webp")])
  with Image.open(tmp_path / "out" / "images" / "webp.png") as image:
    assert (image.format, image.mode) == ("PNG", "RGB")


@pytest.mark.parametrize(
  ("train", "options", "message"),
  [
    ([_example(0)], {"reserved_images": {"im0"}}, "evaluation images"),
    ([_example(0)], {"val": [_example(0)]}, "both train and val"),
    ([_example(0, image="gone")], {}, "no image file"),
    ([_example(0, label="")], {}, "train.jsonl:1: an empty"),
    ([_example(0), _example(1, question="a\nb")], {}, "train.jsonl:2: prefix has control"),
    ([_example(0, label="<loc0001>")], {}, "location"),
    ([], {}, "no rows"),
    ([_example(0)], {"recipe": recipes.get("scenes")}, "replay"),
  ],
)
def test_bad_examples_are_refused_and_leave_nothing(tmp_path, images, train, options, message):
  with pytest.raises(config.UserError, match=message):
    _export(tmp_path, images, train, **options)
  assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("\n", "train.jsonl:1: not JSON"),
    ('{"id": "a"}\n', "exactly the keys"),
    ('{"id": "a", "image": "im0.png", "prefix": "p", "suffix": 3}\n', "suffix is not a string"),
    ('{"id": "a", "image": "../../x", "prefix": "p", "suffix": "s"}\n', "no image"),
    ('\ufeff{"id": "a", "image": "im0.png", "prefix": "p", "suffix": "s"}\n', "byte order"),
    ('{"id": "a", "image": "im0.png", "prefix": "p", "suffix": "s"}\n' * 2, ":2: id 'a' is used"),
  ],
)
def test_check_names_row_and_rule(tmp_path, images, text, message):
  _export(tmp_path, images, [_example(0)])
  (tmp_path / "out" / "train.jsonl").write_text(text, encoding="utf-8")
  with pytest.raises(config.UserError, match=message):
    export.check(tmp_path / "out")


def _run_config(path, monkeypatch):
  """Runs a generated config with stand-ins for the two big_vision modules it imports."""
  common = types.ModuleType("big_vision.configs.common")
  common.parse_arg = lambda arg, **values: ml_collections.ConfigDict(values)
  transfers = types.ModuleType("big_vision.configs.proj.paligemma.transfers.common")
  transfers.TOKENIZER = "unset"
  transfers.combine_and_keep_train = lambda n: f"train({n},{transfers.TOKENIZER})"
  transfers.combine_and_keep_eval = lambda n, keep: f"eval({n},{keep})"
  for leaf in (common, transfers):
    parts = leaf.__name__.split(".")
    for i in range(1, len(parts)):
      name = ".".join(parts[:i])
      monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
    monkeypatch.setitem(sys.modules, leaf.__name__, leaf)
  for name in [n for n in sys.modules if n.startswith("big_vision.")]:
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, sys.modules[name])
  namespace = {"__file__": str(path), "__name__": "bv_config"}
  exec(compile(path.read_text(), str(path), "exec"), namespace)
  return namespace["get_config"]()


def test_config_has_the_values_of_the_recipe(tmp_path, images, monkeypatch):
  _export(tmp_path, images, [_example(0)], val=[_example(1)])
  c = _run_config(tmp_path / "out" / "bv_config.py", monkeypatch)
  assert (c.total_epochs, c.lr, c.wd, c.label_smoothing) == (30, 1e-5, 1e-6, 0.2)
  assert c.input.batch_size == 256 and c.input.data.fname == str(tmp_path / "out" / "train.jsonl")
  assert c.model.llm.variant == "gemma2_2b" and c.model.llm.dropout == 0.1
  assert c.model.llm.final_logits_softcap == 0.0 and c.model_init == "/ckpt/pt.npz"
  assert 'model="/tok/gemma.model"' in c.input.pp and "train(16," in c.input.pp
  assert c.schedule[0][1] == {"decay_type": "cosine", "warmup_percent": 0.05}
  hidden = c.evals["val/predictions"].pp_fn
  assert hidden.index('drop("suffix")') < hidden.index("eval(16,")


def test_frozen_parts_have_no_schedule_and_steps_replace_epochs(tmp_path, images, monkeypatch):
  recipe = recipes.Recipe(steps=7, batch_size=8, lr=1e-4, parts=recipes.NO_IMAGE_PART)
  _export(tmp_path, images, [_example(0)], recipe=recipe)
  c = _run_config(tmp_path / "out" / "bv_config.py", monkeypatch)
  assert c.schedule[0] == ("img/.*", None) and c.schedule[1][1] and c.total_steps == 7
  assert "total_epochs" not in c and not c.evals
