# SPDX-License-Identifier: Apache-2.0
"""Overrides on the command line, through ml_collections' own flags."""

import sys

from absl import flags
from ml_collections import config_flags
import pytest

from auditdm_jax.core import overrides
from auditdm_jax.core.config import OVERRIDES

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
  print("read")
  return ConfigDict({
    "prompts": {"edit-only": 1, "question": 2}, "optim": {"micro_rows": 4, "lr": 1.0},
    "models": {"references": ("x", "y"), "target": "t"}, "images": {"port": 0}, "harvest": (1, 2),
    "name": arg,
  })
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
  """Parses arguments as the command line does; returns the config as a dict."""
  (tmp_path / "c.py").write_text(CONFIG)

  def run(*args, separate=False):
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values, **OVERRIDES)
    given = ["--config", f"{tmp_path}/c.py:a"] if separate else [f"--config={tmp_path}/c.py:a"]
    monkeypatch.setattr("sys.argv", overrides.take(["stage", *given, *args]))
    values(sys.argv)
    return holder.value.to_dict()

  return run


@pytest.mark.parametrize(
  ("args", "section", "want"),
  [
    (["prompts.edit-only=0"], "prompts", {"edit-only": 0, "question": 2}),
    (["prompts.edit_only=0"], "prompts", {"edit-only": 0, "question": 2}),
    (["prompts['edit-only']=0"], "prompts", {"edit-only": 0, "question": 2}),
    (['prompts["edit-only"]=0'], "prompts", {"edit-only": 0, "question": 2}),
    (["prompts.edit-only=5", "prompts.edit_only=6"], "prompts", {"edit-only": 6, "question": 2}),
    (
      ["prompts.generate-only=3"],
      "prompts",
      {"edit-only": 1, "question": 2, "generate-only": 3},
    ),
    (["prompts={'question':16}"], "prompts", {"question": 16}),
    (["optim.micro-rows=8"], "optim", {"micro_rows": 8, "lr": 1.0}),
    (["optim.lr=-1e-3"], "optim", {"micro_rows": 4, "lr": -1e-3}),
    (["optim.remat=true"], "optim", {"micro_rows": 4, "lr": 1.0, "remat": True}),
    (["models.references=a,b/c-d"], "models", {"references": ("a", "b/c-d"), "target": "t"}),
    (["models.references=a"], "models", {"references": ("a",), "target": "t"}),
    (["models.references=('a,b',)"], "models", {"references": ("a,b",), "target": "t"}),
    (["models.references=()"], "models", {"references": (), "target": "t"}),
    (
      ["models.references=a", "models.references=b"],
      "models",
      {"references": ("a", "b"), "target": "t"},
    ),
    (["models.target=a,b"], "models", {"references": ("x", "y"), "target": "a,b"}),
    (["harvest=3,4"], "harvest", (3, 4)),
    (
      ["images.client.security.token=abc", "images.port=5", "images.client.deadline_s=8"],
      "images",
      {"port": 5, "client": {"security": {"token": "abc"}, "deadline_s": 8}},
    ),
    (
      ["images.client={'a': 1}", "images.client.b=[2]", "images.client.c=x=y"],
      "images",
      {"port": 0, "client": {"a": 1, "b": [2], "c": "x=y"}},
    ),
    (["plan.task-tokens=3"], "plan", {"task-tokens": 3}),
  ],
)
def test_an_override_means_what_it_says(parse, args, section, want):
  assert parse(*(f"--config.{arg}" for arg in args))[section] == want


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("--config.optm.lr=1", "optm"),
    ("--config.optim.lr=x", "could not convert string to float"),
    ("--config.name.x=1", r"--config.name.x: config.name is 'a', not a section"),
  ],
)
def test_a_mistake_is_left_to_be_told(parse, arg, message):
  with pytest.raises((KeyError, AttributeError, ValueError, flags.Error), match=message):
    parse(arg)


def test_other_forms_are_as_they_were(parse, capsys):
  assert parse("--config.optim.lr", "3")["optim"]["lr"] == 3.0
  assert parse("-config.optim.lr=3", separate=True)["optim"]["lr"] == 3.0
  capsys.readouterr()
  assert parse()["name"] == "a"
  assert capsys.readouterr().out == "read\n"  # Once, where nothing is overridden.


def test_a_file_that_cannot_be_read_is_told_about_by_the_flag(tmp_path):
  (tmp_path / "bad.py").write_text("def get_config():\n  raise ValueError('broken')\n")
  args = ["stage", f"--config={tmp_path}/bad.py", "--config.a-b.c=1"]
  assert overrides.take(args)[:2] == args[:2]
  assert overrides.take(["--config.x=1"]) == ["--config.x=1"]
  assert overrides.take([]) == []
