# SPDX-License-Identifier: Apache-2.0
"""The args of the configs: what is wrong teaches, and they are read from any working directory."""

import dataclasses
import importlib
import pathlib
import subprocess
import sys

import pytest

from auditdm_jax.rectify import recipes
from auditdm_jax.stages import plan

ROOT = pathlib.Path(__file__).parent.parent

CONFIG_ARGS = [
  ("scenes", "foo", "'foo': args are written name=value"),
  ("scenes", "foo=1", "unknown arg 'foo'; args: target, reward, seed"),
  ("scenes", "tagret=easy", r"unknown arg 'tagret' \(did you mean 'target'\?\); args: target,"),
  ("scenes", "targetrare", r"args are written name=value \(did you mean 'target'\?\); args: "),
  ("scenes", "seed=x", "seed='x', not a whole number"),
  ("scenes", "seed=-1", "seed='-1', not a whole number"),
  ("scenes", "error_rate=nan", "error_rate='nan', not a share like 0.1"),
  ("scenes", "error_rate=1.5", "error_rate='1.5', not a share"),
  ("scenes", "rounds=no", "rounds='no', not a whole number"),
  ("scenes", "target=rar", r"target='rar', not easy or rare \(did you mean 'rare'\?\)"),
  ("needle", "target=rare", "unknown arg 'target'"),
  ("needle", "gaps=seed:1", "gaps='seed:1', not a whole number"),
  ("pretrain_scenes", "world=hay", "world='hay', not scenes or needle"),
  ("paligemma2", "foo", "'foo': args are written name=value"),
  ("paligemma2", "chips=17", "chips=17, not a multiple of 4"),
  ("paligemma2", "chips=96", "above 64 of 64"),
  ("paligemma2", "chips=0", "chips=0, not a multiple"),
  ("paligemma2", "chips=-4", "chips='-4', not a whole number"),
  ("paligemma2", "prompts=x", "prompts='x', not a whole number"),
  ("paligemma2", "recipe=chart_qa", r"recipe='chart_qa', not vqav2, .*mean 'chartqa'"),
  ("paligemma2", "pixels=896", "pixels='896', not 448 or 224"),
  ("gemma3", "target=27b", "target='27b', not 4b or 12b"),
  ("gemma3", "recipe=vqav2", "unknown arg 'recipe'"),
  ("gemma3", "references=28b", "references='28b', not 12b or 27b"),
  ("gemma3", "chips=17", "chips=17, not a multiple of 4"),
  ("flux", "foo", "'foo': args are written name=value"),
  ("flux", "port=x", "port='x', not a whole number"),
  ("benchmarks", "vqa2=x", r"unknown arg 'vqa2' \(did you mean 'vqav2'\?\)"),
  ("benchmarks", "limit=x", "limit='x', not a whole number"),
  ("pretrain_scenes", "foo", "'foo': args are written name=value"),
  ("pretrain_scenes", "onyl=x", "unknown arg 'onyl'"),
  ("pretrain_scenes", "steps=x", "steps='x', not a whole number"),
  ("ablations.grpo", "foo", "'foo': args are written name=value"),
  ("ablations.grpo", "group=5", "group='5', not 8, 4 or 16"),
  ("ablations.grpo", "gruop=4", r"unknown arg 'gruop' \(did you mean 'group'\?\); args: "),
  ("ablations.reward", "preset=scene", r"preset='scene', not scenes, .*mean 'scenes'"),
  ("ablations.reward", "preset=gemma3,talk=all", "unknown arg 'talk'"),
  ("ablations.replay", "budget=huge", "budget='huge', not full, small, brief or tiny"),
]


@pytest.mark.parametrize(("name", "arg", "message"), CONFIG_ARGS)
def test_an_arg_of_a_config_that_is_none(name, arg, message):
  with pytest.raises(ValueError, match=f"configs/{name.replace('.', '/')}.py: .*{message}"):
    importlib.import_module(f"configs.{name}").get_config(arg)


def test_args_of_configs_that_are_right():
  for name, arg in [
    ("scenes", "target=rare,reward=plain,seed=1,error_rate=0.05,rounds=1"),
    ("scenes", "gaps=seed:3,error_rate=1.0"),
    ("needle", "gaps=3,seed=1,rounds=1,reward=plain,models=m"),
    ("pretrain_scenes", "world=needle,gaps=seed:4,only=target"),
    ("paligemma2", "on=v5e-16,chips=256,prompts=64"),
    ("paligemma2", "on=h200"),
    ("paligemma2", "recipe=docvqa,pixels=224"),
    ("gemma3", "on=v6e-8,references=27b"),
    ("gemma3", "target=12b"),
    ("pretrain_scenes", "only=ref_gemma3,steps=5,gaps=seed:4"),
    ("ablations.grpo", "group=4,seed=2,target=rare,budget=small"),
    ("ablations.references", "preset=paligemma2,on=h200,seed=2"),
    ("benchmarks", "baseline=a,repaired=b,vqav2=data/vqa,limit=500"),
    ("benchmarks", "run=runs/scenes,target=rare"),
  ]:
    importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize(
  ("name", "arg", "recipe", "length"),
  [
    ("paligemma2", "", "vqav2-448", 1024 + 64),
    ("paligemma2", "recipe=chartqa,pixels=224", "chartqa", 256 + 64),
    ("paligemma2", "recipe=ai2d,pixels=448", "ai2d-448", 1024 + 128),
    ("gemma3", "on=h200", "gemma3-4b", 256 + 128),
    ("gemma3", "target=12b", "gemma3-12b", 256 + 128),
  ],
)
def test_configs_name_recipes(name, arg, recipe, length):
  run = plan.read(importlib.import_module(f"configs.{name}").get_config(arg))
  known = recipes.get(recipe)
  same = dataclasses.replace(known, remat=run.recipe.remat, micro_rows=run.recipe.micro_rows)
  assert run.recipe == same and run.recipe.remat
  target = run.answering[run.target]
  assert known.format.res in (0, target.tower.image_size)
  # A row has room for the image and all text that a transfer has.
  section = importlib.import_module(f"configs.{name}").get_config(arg).rectify
  assert section.length == length >= target.num_image_tokens + known.format.text_len


def test_every_transfer_is_an_arg():
  args = importlib.import_module("configs.paligemma2").RECIPES
  assert {f"{name}{size}" for name in args for size in ("", "-448")} == {
    name for name in recipes.TRANSFERS if not name.endswith("-896")
  }


def test_args_have_the_types_of_their_defaults():
  parse = importlib.import_module("configs.common").parse
  known = {"kind": ("a", "b"), "n": 3, "share": 0.0, "name": "x", "chips": int}
  assert parse("f", "", known) == {"kind": "a", "n": 3, "share": 0.0, "name": "x", "chips": None}
  given = parse("f", "kind=b,n=07,share=.25,name=a=b,chips=8", known)
  assert given == {"kind": "b", "n": 7, "share": 0.25, "name": "a=b", "chips": 8}


LOAD = """
import sys
from absl import flags
from ml_collections import config_flags
for path in sys.argv[1:]:
  found = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=found)
  found(["x", "--config=" + path])
  print(len(found.config))
"""


def test_configs_load_by_path_from_anywhere(tmp_path):
  """Also where other modules have the names of those that the configs need."""
  (tmp_path / "common.py").write_text("raise ImportError")
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/__init__.py").write_text("raise ImportError")
  (tmp_path / "link").symlink_to(ROOT / "configs")
  paths = [
    *(str(p) for p in sorted(ROOT.glob("configs/**/*.py")) if p.name != "common.py"),
    "link/flux.py:port=1",
    "link/ablations/grpo.py:group=4",
  ]
  done = subprocess.run(
    [sys.executable, "-c", LOAD, *paths], cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.split()) == len(paths) == 22
