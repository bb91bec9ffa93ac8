# SPDX-License-Identifier: Apache-2.0
"""The wheel has what the repository has, and `init` copies it out."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.stages import init

ROOT = pathlib.Path(__file__).parents[2]
_LEFT_OUT = {"__pycache__", "share"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of a copy of the sources, so that nothing is left behind in the repository."""
  pytest.importorskip("setuptools", minversion="77")
  folder = tmp_path_factory.mktemp("wheel")
  ignored = shutil.ignore_patterns("__pycache__")
  for name in ("auditdm_jax", *init.FOLDERS):
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copyfile(ROOT / name, folder / name)
  (folder / "data/vqav2/prepared").mkdir()
  (folder / "data/vqav2/prepared/large.png").write_bytes(b"x")
  code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
  subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
  with zipfile.ZipFile(next(folder.glob("dist/*.whl"))) as file:
    file.extractall(folder / "installed")
  return folder / "installed"


def _files(folder: pathlib.Path) -> set[str]:
  return {
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file() and not _LEFT_OUT & set(path.relative_to(folder).parts)
  }


def test_the_wheel_has_every_file_of_the_package(wheel):
  assert _files(wheel / "auditdm_jax") == _files(ROOT / "auditdm_jax")


def test_the_wheel_brings_configs_the_world_and_examples(wheel):
  share = wheel / "auditdm_jax/share"
  for name in ("configs", "examples", "data/scenes", "data/judge", "data/photos", "data/styles"):
    assert _files(share / name) == _files(ROOT / name), name
  assert {"skills.yaml", "kinds.yaml", "prepare.py"} <= _files(share / "data/vqav2")
  assert not (share / "data/vqav2/prepared").exists(), "a prepared data set went along"


def test_init_copies_and_leaves_what_differs(wheel, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(init, "shared", lambda: wheel / "auditdm_jax/share")
  mine = tmp_path / "mine"
  (mine / "configs").mkdir(parents=True)
  (mine / "configs/scenes.py").write_text("# mine")
  for _ in range(2):
    init.FLAGS(["init", f"--output={mine}"])
    assert init.main() == 0
    assert "kept as it was: " in capsys.readouterr().out
  assert (mine / "configs/scenes.py").read_text() == "# mine"
  for models in ("weights", "needle"):
    assert (mine / "data/scenes" / models / "auditor/model.safetensors").is_file()


def test_a_checkout_needs_no_init():
  init.FLAGS(["init", f"--output={ROOT}"])
  with pytest.raises(UserError, match="a checkout of the repository"):
    init.main()
