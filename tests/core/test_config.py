# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
import dataclasses
import sys
import types
from typing import Any, Literal

import ml_collections
import pytest

from auditdm_jax.core.config import UserError, build, did_you_mean, load_function, load_object


@dataclasses.dataclass(frozen=True)
class Optim:
  lr: float
  clip: float | None = None


@dataclasses.dataclass(frozen=True)
class Config:
  steps: int
  optim: Optim
  loss: Literal["grpo", "dr_grpo"] = "grpo"
  sizes: tuple[int, ...] = ()
  pair: tuple[str, float] = ("a", 1.0)
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  optims: tuple[Optim, ...] = ()
  rules: tuple = ()
  anything: Any = None
  reward: Callable[[str], float] | None = None

  def __post_init__(self):
    if self.steps < 0:
      raise ValueError("steps must not be negative")


def section(**changes: Any) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({"steps": 3, "optim": {"lr": 1}, **changes})


def test_builds_nested_values():
  config = build(
    Config,
    section(
      sizes=[1, 2],
      pair=("b", 2),
      weights={"a": 1},
      optims=({"lr": 1.0, "clip": 1},),
      rules=((".*", ("data", None)),),
      reward=len,
    ),
  )
  assert config == Config(
    3,
    Optim(1.0),
    sizes=(1, 2),
    pair=("b", 2.0),
    weights={"a": 1.0},
    optims=(Optim(1.0, 1.0),),
    rules=((".*", ("data", None)),),
    reward=len,
  )
  assert isinstance(config.optim.lr, float) and isinstance(config.weights["a"], float)
  assert build(Config, config) is config


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"stepps": 4}, r"config.grpo.stepps: unknown key \(did you mean 'steps'\?\); keys: steps, "),
    ({"optim": {"lrr": 1.0}}, r"config.grpo.optim.lrr: unknown key \(did you mean 'lr'\?\)"),
    ({"optim": {}}, r"config.grpo.optim.lr: missing key"),
    ({"steps": 3.0}, r"config.grpo.steps: expected int, got float 3.0"),
    ({"steps": True}, r"config.grpo.steps: expected int, got bool True"),
    ({"steps": "3"}, r"config.grpo.steps: expected int, got str '3'"),
    ({"steps": -1}, r"config.grpo: steps must not be negative"),
    ({"optim": {"lr": "x"}}, r"config.grpo.optim.lr: expected float, got str"),
    ({"optim": {"lr": 1, "clip": "x"}}, r"config.grpo.optim.clip: expected float"),
    ({"optim": 3}, r"config.grpo.optim: expected a section with keys, got 3"),
    ({"loss": "drgrpo"}, r"config.grpo.loss: 'drgrpo' is not one of .* \(did you mean 'dr_grpo'"),
    ({"sizes": 3}, r"config.grpo.sizes: expected a tuple, got 3"),
    ({"sizes": (1, "x")}, r"config.grpo.sizes\[1\]: expected int"),
    ({"pair": ("a",)}, r"config.grpo.pair: expected 2 values, got 1"),
    ({"weights": {"a": "x"}}, r"config.grpo.weights.a: expected float"),
    ({"reward": "len"}, r"config.grpo.reward: expected a function, got 'len'"),
  ],
)
def test_errors_name_section_and_key(changes, message):
  with pytest.raises(UserError, match=message):
    build(Config, section(**changes), name="config.grpo")


def test_missing_key_shows_what_was_written_instead():
  with pytest.raises(UserError, match="unknown key.*did you mean 'steps'"):
    build(Config, {"step": 3, "optim": {"lr": 1.0}})


def test_a_key_in_two_spellings_is_given_twice():
  for change in ({"weights": {"a-b": 1.0, "a_b": 2.0}}, {"pa-ir": 1, "pa_ir": 2}):
    with pytest.raises(UserError, match="are one key in two spellings"):
      build(Config, {"steps": 3, "optim": {"lr": 1.0}, **change}, name="config.grpo")
  build(Config, section(weights={"x/a-b": 1.0, "x/a_b": 2.0}))  # Paths may be keys.


def test_did_you_mean():
  assert did_you_mean("evalute", ["evaluate", "train"]) == " (did you mean 'evaluate'?)"
  assert did_you_mean("xyz", ["evaluate", "train"]) == ""


@pytest.fixture
def outside(monkeypatch):
  """A module that a user wrote."""
  module = types.ModuleType("outside_module")
  module.brevity, module.LIMIT = len, 3
  monkeypatch.setitem(sys.modules, "outside_module", module)


def test_an_object_of_a_users_module(outside):
  assert load_function("outside_module:brevity", where="x") is len
  assert load_object("outside_module:LIMIT", int, where="x") == 3
  with pytest.raises(UserError, match="x='outside_module:LIMIT': expected a str, got int"):
    load_object("outside_module:LIMIT", str, where="x")


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("outside_module", "written package.module:NAME"),
    ("outside module:NAME", "written package.module:NAME"),
    ("outside_module:", "written package.module:NAME"),
    ("../outside_module:brevity", "written package.module:NAME"),
    ("no_such_module_xyz:brevity", "no module 'no_such_module_xyz'"),
    ("outside_module:brevty", r"has no 'brevty' \(did you mean 'brevity'\?\)"),
    ("outside_module:LIMIT", "expected a function, got int"),
  ],
)
def test_an_import_path_that_names_nothing_is_explained(outside, path, message):
  with pytest.raises(UserError, match=f"reward.terms=.*{message}"):
    load_function(path, where="reward.terms")
