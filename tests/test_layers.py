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
  "vlm_batching": 2,
  "vlm_programs": 2,
  "vlm_model": 3,
  "vlm": 4,
  "audit": 5,
  "endpoints": 5,
  "serving": 5,
  "bench": 6,  # Its table has the statistics of the audit.
  "rl": 6,
  "rectify": 6,
  "plan": 7,  # Compiles the programs of all of them.
  "stages": 8,
  "__main__": 9,
  "__init__": 9,
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


def stage_names() -> set[str]:
  """Returns the modules of stages/ that are programs: each has a `main`."""
  found = set()
  for path in sources(PACKAGE / "stages"):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body):
      found.add(path.stem)
  return found


def stage_errors(path: pathlib.Path, stages: set[str]) -> list[str]:
  names = [
    name.removeprefix("auditdm_jax.stages.").split(".")[0]
    for _, name in imports(path)
    if name.startswith("auditdm_jax.stages.")
  ]
  return [f"{path.stem} imports the stage {name}" for name in names if name in stages]


def test_a_stage_imports_no_stage_but_the_loop_and_the_audit():
  stages = stage_names()
  assert {"train", "discover", "verify", "rectify", "report", "reaudit", "loop"} <= stages
  others = [p for p in sources(PACKAGE / "stages") if p.stem not in ("loop", "audit")]
  assert [e for path in others for e in stage_errors(path, stages)] == []
  assert stage_errors(PACKAGE / "stages/loop.py", stages)


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


def test_endpoints_know_core_only_and_one_module_the_client_library():
  for path in sources(PACKAGE / "endpoints"):
    names = [name for _, name in imports(path)]
    ours = {name.split(".")[1] for name in names if name.startswith("auditdm_jax.")}
    assert ours <= {"core", "endpoints"}, f"{path} imports {ours}"
    library = [name for name in names if name.split(".")[0] in {"openai", "httpx2"}]
    assert not library or path.name == "wire.py", f"{path} imports {library}"


def test_image_server_starts_without_jax(run_python):
  run_python("""
    import sys
    from auditdm_jax import __main__
    from auditdm_jax.core import config, image_store, paths, records
    from auditdm_jax.stages import serve_images
    assert not {"jax", "jaxlib", "flax", "torch"} & sys.modules.keys()
  """)


def test_licence_header():
  folders = [PACKAGE, ROOT / "configs", ROOT / "data", ROOT / "tests"]
  for path in (p for folder in folders for p in sources(folder)):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
