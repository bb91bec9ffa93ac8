# SPDX-License-Identifier: Apache-2.0
"""The public names of the package."""

import contextlib
import subprocess
import sys

import pytest

import auditdm_jax
from auditdm_jax.audit.summary import Summary
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import loop

CONFIG = """
import ml_collections

def get_config(arg="easy"):
  return ml_collections.ConfigDict({"grpo": {"lr": 1.0}, "names": ("a",), "arg": arg, "text": ""})
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return str(path)


def test_a_config_takes_arguments_and_overrides(file):
  assert auditdm_jax.load_config(file).arg == "easy"
  given = {"grpo.lr": 2, "names": ("b", "c"), "text": "a = 'b'", "absent.key": 3}
  config = auditdm_jax.load_config(f"{file}:rare", **given)
  assert config.to_dict() == {
    "grpo": {"lr": 2.0},
    "names": ("b", "c"),
    "arg": "rare",
    "text": "a = 'b'",
    "absent": {"key": 3},
  }
  assert config.is_locked


@pytest.mark.parametrize(
  ("path", "given", "message"),
  [
    ("nothing.py", {}, "nothing.py"),
    ("", {"grop.lr": 2}, "no key 'grop' .did you mean 'grpo'"),
    ("", {"grpo.lr": "fast"}, "--config.grpo.lr=fast: expected a number"),
    ("", {"grpo.lr.x": 1}, "not a section"),
  ],
)
def test_a_mistake_in_a_config_is_one_line(file, path, given, message):
  with pytest.raises(UserError, match=message) as caught:
    auditdm_jax.load_config(path or file, **given)
  assert "\n" not in str(caught.value)


def test_a_loop_runs_in_a_folder_that_is_made(file, tmp_path, monkeypatch):
  seen = []

  @contextlib.contextmanager
  def opened(config, workdir, stage):
    seen.append((config.arg, workdir, workdir.is_dir()))
    yield stage

  monkeypatch.setattr(loop, "Context", opened)
  monkeypatch.setattr(loop, "run", lambda ctx: Summary.__new__(Summary))
  found = auditdm_jax.run_loop(auditdm_jax.load_config(file), tmp_path / "a/run")
  assert isinstance(found, Summary) and seen == [("easy", tmp_path / "a/run", True)]
  with pytest.raises(UserError, match="no folder can be made"):
    auditdm_jax.run_loop(auditdm_jax.load_config(file), file)


def test_public_names_are_there_and_lazy():
  code = (
    "import sys, auditdm_jax\n"
    "assert not {'jax', 'absl'} & set(sys.modules)\n"
    "auditdm_jax.load_config\n"
    "assert 'jax' not in sys.modules\n"
    "print([getattr(auditdm_jax, name).__name__ for name in auditdm_jax.__all__])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
  )
  assert done.stdout.strip() == str(auditdm_jax.__all__)
