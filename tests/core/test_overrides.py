# SPDX-License-Identifier: Apache-2.0
"""Overrides on the command line."""

import dataclasses
import pathlib
from typing import Any

from absl import flags
import pytest

from auditdm_jax.core import described, overrides
from auditdm_jax.core.config import Named, UserError, build
from auditdm_jax.stages.benchmarks import BenchmarksConfig
from auditdm_jax.stages.sections import AuditConfig

ROOT = pathlib.Path(__file__).parents[2]
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


@dataclasses.dataclass(frozen=True)
class Client:
  deadline_s: float = 1.0
  token: str = ""
  tries: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Known(Named):
  name: str = ""
  steps: int = 0


@dataclasses.dataclass(frozen=True)
class Images:
  port: int
  client: Client = Client()
  clients: dict[str, Client] = dataclasses.field(default_factory=dict)
  known: Known = Known()
  maybe: Client | None = None
  sides: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sections:
  images: Images
  prompts: dict[str, int]
  optim: Any
  models: Any
  harvest: tuple[int, ...]
  name: str
  rest: Images | None = None


@pytest.fixture
def parse(tmp_path):
  """Parses arguments as the command line does; returns the config as a dict."""
  (tmp_path / "c.py").write_text(CONFIG)

  def run(*args, separate=False, sections=None):
    values = flags.FlagValues()
    holder = overrides.define("", flag_values=values)
    given = ["--config", f"{tmp_path}/c.py:a"] if separate else [f"--config={tmp_path}/c.py:a"]
    assert overrides.parse_flags(values, [*given, *args, "word"], sections) == ["word"]
    assert holder.value.is_locked
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
  ("args", "section", "want"),
  [
    (["client.token=7"], "images", {"port": 0, "client": {"token": "7"}}),
    (["client.deadline-s=7"], "images", {"port": 0, "client": {"deadline_s": 7.0}}),
    (["client.tries=1,2"], "images", {"port": 0, "client": {"tries": (1, 2)}}),
    (["clients.my-name.token=x"], "images", {"port": 0, "clients": {"my-name": {"token": "x"}}}),
    (["clients['a/b'].token=x"], "images", {"port": 0, "clients": {"a/b": {"token": "x"}}}),
    (["maybe.token=x"], "images", {"port": 0, "maybe": {"token": "x"}}),
    (
      ["known=quick", "known.steps=3"],
      "images",
      {"port": 0, "known": {"name": "quick", "steps": 3}},
    ),
    (["maybe=none"], "images", {"port": 0, "maybe": None}),
    (["sides.a=3", "sides.b=1e3"], "images", {"port": 0, "sides": {"a": 3, "b": 1000}}),
    (
      ["client={'token': 'x'}", "client.tries=3"],
      "images",
      {"port": 0, "client": {"token": "x", "tries": (3,)}},
    ),
  ],
)
def test_the_dataclass_says_what_a_key_is(parse, args, section, want):
  got = parse(*(f"--config.{section}.{arg}" for arg in args), sections=Sections)[section]
  assert got == want


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("--config.optm.lr=1", "config has no key 'optm' .did you mean 'optim'"),
    ("--config.optim.lr=x", "--config.optim.lr=x: expected a number"),
    ("--config.name.x=1", r"--config.name.x: config.name is 'a', not a section"),
    ("--config..x=1", "keys are written --config.a.b=value"),
    ("--config[x=1", "keys are written --config.a.b=value"),
    ("--config.prompts['a.b']=1", "dots in field names"),
  ],
)
def test_a_mistake_is_told(parse, arg, message):
  with pytest.raises(UserError, match=message):
    parse(arg)


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("images.client.tokn=1", "config.images.client has no key 'tokn' .did you mean 'token'.*=help"),
    ("images.clint.token=1", "config.images has no key 'clint' .did you mean 'client'"),
    ("images.port.x=1", "config.images.port is 0, not a section"),
    ("images.client.token.x=1", "config.images.client.token is a str, not a section"),
    ("images.sides.a=x", "--config.images.sides.a=x: expected a whole number"),
    ("images.clients.a=5", "a section with keys"),
  ],
)
def test_a_mistake_is_told_by_the_dataclass(parse, arg, message):
  with pytest.raises(UserError, match=message):
    parse(f"--config.{arg}", sections=Sections)


def test_forms_of_an_argument(parse, capsys):
  assert parse("--config.optim.lr", "3")["optim"]["lr"] == 3.0
  assert parse("--config.optim.lr", "-3")["optim"]["lr"] == -3.0
  assert parse("-config.optim.lr=3", separate=True)["optim"]["lr"] == 3.0
  assert parse("--config.optim.remat", "--config.optim.lr=2")["optim"]["remat"] is True
  capsys.readouterr()
  assert parse("--config.optim.lr=3")["name"] == "a"
  assert capsys.readouterr().out == "read\n"  # A config file is run once.


def test_a_change_of_no_config_is_refused():
  values = flags.FlagValues()
  overrides.define("", flag_values=values)
  with pytest.raises(UserError, match="--config.x changes a config; --config is missing"):
    overrides.parse_flags(values, ["--config.x=1"])


def keys_and_values(cls, path=""):
  """Yields every key of a section and of those in it, with a value of its default or like it."""
  for key in described.keys_of(cls):
    name = f"{path}.{key.name}"
    if key.section is not None:
      yield from keys_and_values(
        key.section, name if described.value_hint(key.hint) is None else f"{name}.some-name"
      )
    elif key.default != "required":
      yield name, key.default


@pytest.mark.parametrize(
  ("sections", "config"),
  [
    (AuditConfig, "configs/scenes.py"),
    (AuditConfig, "configs/paligemma2.py"),
    (AuditConfig, "configs/gemma3.py"),
    (BenchmarksConfig, "configs/benchmarks.py:run=runs/x"),
  ],
)
def test_every_key_can_be_given_to_every_config(sections, config):
  """Also those that a file leaves out; each takes its own default as text."""
  for dashes in (False, True):
    given = [
      f"--config{key.replace('_', '-') if dashes else key}={value}"
      for key, value in keys_and_values(sections)
    ]
    assert len(given) > 20
    read = overrides.read(f"{ROOT}/{config}", given, sections)
    if sections is AuditConfig:
      for key in described.keys_of(AuditConfig):
        if key.section is not None and key.name in read and key.name not in ("endpoints",):
          with_defaults(build, key, read[key.name])


def with_defaults(build, key, section):
  """Builds a section; what its values say together is not looked at."""
  try:
    build(key.section, section.to_dict(), name=key.name)
  except UserError as e:
    assert not any(word in str(e) for word in ("unknown key", "expected")), e
