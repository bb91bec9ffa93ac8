# SPDX-License-Identifier: Apache-2.0
"""Paths of config files as people name them, and what is said of files that fail."""

import pytest

from auditdm_jax.core import config_file
from auditdm_jax.core.config import UserError

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg="default"):
  return ConfigDict({"arg": arg})
"""


@pytest.mark.parametrize(
  ("file", "args", "want"),
  [
    ("c.py", "", "default"),
    ("c.py", ":", ""),
    ("c.py", ":a=b,c=http://x:80", "a=b,c=http://x:80"),
    ("at 22:48 o'clock/c.py", "", "default"),
    ("at 22:48 o'clock/c.py", ":x:y", "x:y"),
    ('"quoted"/c $(x);.py', ":z", "z"),
    ("c.py:rare", "", "default"),  # A file of that name, beside c.py.
  ],
)
def test_a_path_is_the_longest_part_that_is_a_file(tmp_path, file, args, want):
  (tmp_path / "c.py").write_text("raise ValueError('another file')")
  path = tmp_path / file
  path.parent.mkdir(exist_ok=True)
  path.write_text(CONFIG)
  assert config_file.read(f"{path}{args}").arg == want


def test_a_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "c.py").write_text(CONFIG)
  assert config_file.read("~/c.py").arg == "default"


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("x = 1", "it has no function get_config"),
    ("\ndef get_config(:", r"c.py:2: SyntaxError: "),
    ("def get_config():\n  return 3", "get_config returns a int, not a ConfigDict"),
    ("def get_config():\n\n  return undefined", r"c.py:3: NameError: name 'undefined'"),
    ("def get_config():\n  raise ValueError('a\\nb')", "c.py:2: ValueError: a b"),
    ("import json\ndef get_config():\n  return json.loads('{')", "c.py:3: JSONDecodeError"),
  ],
)
def test_a_file_that_fails_is_one_line(tmp_path, source, message):
  (tmp_path / "c.py").write_text(source)
  with pytest.raises(UserError, match=message) as caught:
    config_file.read(str(tmp_path / "c.py"))
  assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path):
  (tmp_path / "scenes.py").write_text(CONFIG)
  with pytest.raises(UserError, match="scene.py: no such file .did you mean '.*scenes.py'"):
    config_file.read(f"{tmp_path}/scene.py:seed=1")
  with pytest.raises(UserError, match="a folder, not a config file"):
    config_file.read(str(tmp_path))
