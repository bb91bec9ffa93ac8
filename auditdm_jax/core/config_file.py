# SPDX-License-Identifier: Apache-2.0
"""A config file and what its `get_config` takes: PATH or PATH:ARGS, as --config has it."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import traceback
from types import ModuleType
from typing import Any

import ml_collections

from auditdm_jax.core.config import UserError, did_you_mean

_MODULE = "auditdm_config"  # What a config file finds as its __name__.


def read(spec: str) -> ml_collections.ConfigDict:
  """Runs a config file and returns what its `get_config` makes, not locked.

  Args:
    spec: the file, and after a colon what `get_config` takes.

  Raises:
    UserError: there is no such file, or it fails.
  """
  path, args = split(spec)
  made = _made(path, args)
  if isinstance(made, dict):
    return ml_collections.ConfigDict(made)
  if not isinstance(made, ml_collections.ConfigDict):
    raise UserError(f"{path}: get_config returns a {type(made).__name__}, not a ConfigDict")
  return made


def split(spec: str) -> tuple[pathlib.Path, list[str]]:
  """Returns the path of a config file and the arguments after it, one or none.

  A path may have colons of its own: it is the longest part before a colon that is a file.

  Raises:
    UserError: no part is a file.
  """
  spec = os.path.expanduser(spec)
  colons = [i for i, letter in enumerate(spec) if letter == ":"]
  for end in [len(spec), *reversed(colons)]:
    if os.path.isfile(spec[:end]):
      return pathlib.Path(spec[:end]), [spec[end + 1 :]] if end < len(spec) else []
  path = pathlib.Path(spec.partition(":")[0] or spec)
  near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
  kind = "a folder, not a config file" if path.is_dir() else "no such file"
  raise UserError(f"--config={path}: {kind}{did_you_mean(str(path), near)}")


def function(spec: str, name: str) -> Callable[..., Any] | None:
  """Returns a function of a config file beside its `get_config`; None if it has none of the name.

  What it raises is a UserError that names the line.

  Raises:
    UserError: there is no such file, or it fails.
  """
  path, _ = split(spec)
  with _of_the_user(path):
    found = vars(_module(path)).get(name)
  if found is None:
    return None

  def call(*args: Any) -> Any:
    with _of_the_user(path):
      return found(*args)

  return call


def _made(path: pathlib.Path, args: list[str]) -> Any:
  """Returns what `get_config` returns.

  Raises:
    UserError: it raises.
  """
  with _of_the_user(path):
    return _get_config(_module(path), path)(*args)


def _module(path: pathlib.Path) -> ModuleType:
  """Returns a config file that was run."""
  module = ModuleType(_MODULE)
  module.__file__ = str(path)
  exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
  return module


@contextlib.contextmanager
def _of_the_user(path: pathlib.Path) -> Iterator[None]:
  """Every error in the block is the user's, since the file is a program of theirs.

  Raises:
    UserError: the block raises; the text names the line of the file.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    said = " ".join(str(e).split())
    raise UserError(f"--config={path}:{_line(e, path)}: {type(e).__name__}: {said}") from e


def _get_config(module: ModuleType, path: pathlib.Path) -> Any:
  if "get_config" not in vars(module):
    raise UserError(f"--config={path}: it has no function get_config")
  return vars(module)["get_config"]


def _line(error: Exception, path: pathlib.Path) -> int:
  """Returns the last line of the file that an error passed; 1 if it passed none."""
  if isinstance(error, SyntaxError) and error.filename == str(path):
    return error.lineno or 1
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  return (lines or [1])[-1] or 1
