# SPDX-License-Identifier: Apache-2.0
"""The import rules of the project, read from the source."""

import ast
from collections.abc import Iterator
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "auditdm_jax"

# Imports go to a lower number only; packages of one number do not know each other.
LAYERS = {
  "core": 0,
  "models": 1,
  "text": 1,
  "images": 1,
  "scenes": 1,
  "vlm": 2,
  "bench": 3,
  "audit": 3,
  "serving": 3,
  "rl": 4,
  "rectify": 4,
  "plan": 5,  # Compiles the programs of all of them.
  "stages": 6,
  "__main__": 7,
  "__init__": 7,
}
TORCH = {"torch", "diffusers", "accelerate", "torchvision"}
TORCH_MODULE = "auditdm_jax/images/diffusers_backend.py"
# Programs that make a diffusion model; they run in the image server's environment.
TORCH_FOLDER = "data/scenes/diffusion/"
OUTSIDE = {"configs", "launch", "data", "tests"}


def sources(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.rglob("*.py"))


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields (line, dotted name) of every import, also of those inside functions."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: relative import"
      for alias in node.names:
        yield node.lineno, f"{node.module}.{alias.name}"


def part_of(path: pathlib.Path) -> str:
  """Returns which part of the package a file belongs to: "models", "vlm", …"""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_errors(path: pathlib.Path, part: str) -> list[str]:
  errors = []
  for line, name in imports(path):
    root, *rest = name.split(".")
    if root != "auditdm_jax":
      continue
    # `from auditdm_jax import models`; anything else there is a name of the package itself.
    target = rest[0] if rest and rest[0] in LAYERS else "__init__"
    if target != part and LAYERS[target] >= LAYERS[part]:
      errors.append(f"{path}:{line}: {part} must not import {name}")
  return errors


def test_every_part_has_a_layer():
  assert {part_of(p) for p in sources(PACKAGE)} <= LAYERS.keys()


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
  assert not layer_errors(path, part_of(path))
  outside = [n for _, n in imports(path) if n.split(".")[0] in OUTSIDE]
  assert not outside, f"the package must not import {outside}"


def test_a_violation_is_seen(tmp_path):
  path = tmp_path / "x.py"
  path.write_text("def f():\n  from auditdm_jax.rl import grpo\n")
  assert layer_errors(path, "audit")
  assert not layer_errors(path, "stages")
  path.write_text("from auditdm_jax import text\n")
  assert layer_errors(path, "models")
  path.write_text("import auditdm_jax\n")
  assert layer_errors(path, "stages")


def test_configs_import_nothing_of_the_package():
  for path in sources(ROOT / "configs"):
    names = [n for _, n in imports(path) if n.split(".")[0] in {"auditdm_jax", "jax", "flax"}]
    assert not names, f"{path} imports {names}"


def test_only_stages_serve():
  for path in sources(PACKAGE):
    if part_of(path) not in ("serving", "stages"):
      names = [n for _, n in imports(path) if n.startswith("auditdm_jax.serving")]
      assert not names, f"{path} imports {names}"


def test_only_the_diffusers_backend_imports_torch():
  for folder in (PACKAGE, ROOT / "configs", ROOT / "data"):
    for path in sources(folder):
      where = path.relative_to(ROOT).as_posix()
      names = [n for _, n in imports(path) if n.split(".")[0] in TORCH]
      allowed = where == TORCH_MODULE or where.startswith(TORCH_FOLDER)
      assert not names or allowed, f"{where} imports {names}"


def test_image_server_starts_without_jax(run_python):
  run_python("""
    import sys
    from auditdm_jax import __main__
    from auditdm_jax.core import config, store
    from auditdm_jax.stages import serve_images
    assert not {"jax", "jaxlib", "flax", "torch"} & sys.modules.keys()
  """)


def test_licence_header():
  folders = [PACKAGE, ROOT / "configs", ROOT / "data", ROOT / "tests"]
  for path in (p for folder in folders for p in sources(folder)):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
