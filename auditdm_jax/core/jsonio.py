# SPDX-License-Identifier: Apache-2.0
"""Objects as JSON: made plain, hashed by content, read and written as whole files."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import math
import os
from typing import Any

import ml_collections
import numpy as np

from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError


def plain(obj: Any) -> Any:
  """Returns `obj` in terms of JSON: numpy, dataclasses and paths made plain, NaN and ±inf null."""
  if obj is None or isinstance(obj, str | bool | int):
    return obj
  if isinstance(obj, float | np.floating):
    return float(obj) if math.isfinite(obj) else None
  if isinstance(obj, np.generic | np.ndarray):
    return plain(obj.tolist())
  if isinstance(obj, Mapping | ml_collections.ConfigDict):
    return {str(key): plain(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [plain(value) for value in obj]
  if isinstance(obj, set | frozenset):
    return sorted(plain(value) for value in obj)
  if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
    return {f.name: plain(vars(obj)[f.name]) for f in dataclasses.fields(obj)}
  if isinstance(obj, os.PathLike):
    return os.fspath(obj)
  raise TypeError(f"cannot be written as JSON: {type(obj).__name__} {obj!r}")


def canonical_hash(obj: Any) -> str:
  """Returns 32 hex digits that depend on the content of a JSON-like object, not on key order."""
  text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes JSON atomically, indented, keys in their order."""
  text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
  paths.write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is not JSON; a file that is not there stays a FileNotFoundError.
  """
  try:
    return json.loads(paths.as_path(path).read_bytes())
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: not JSON: {e}") from e
