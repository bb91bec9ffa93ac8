# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from auditdm_jax.core import jsonio, paths
from auditdm_jax.core.config import UserError


def test_plain_and_hash():
  @dataclasses.dataclass(frozen=True)
  class Probe:
    image: str
    seeds: tuple

  plain = jsonio.plain({"a": Probe("x", (1, np.int64(2))), 1: np.float32(0.5), "n": float("nan")})
  assert plain == {"a": {"image": "x", "seeds": [1, 2]}, "1": 0.5, "n": None}
  assert jsonio.canonical_hash({"a": 1, "b": 2}) == jsonio.canonical_hash({"b": 2, "a": 1})
  assert jsonio.canonical_hash(["ab", "c"]) != jsonio.canonical_hash(["a", "bc"])
  # Ids are on disk: they must not change between releases.
  assert jsonio.canonical_hash(["x", "how many?"]) == "61f3dcbbbd5ec9ebb235595936263b0e"
  with pytest.raises(TypeError, match="object"):
    jsonio.plain(object())


def test_write_json_is_atomic(tmp_path, monkeypatch):
  path = tmp_path / "summary.json"
  jsonio.write_json(path, {"rate": 0.5})
  with pytest.raises(TypeError):
    jsonio.write_json(path, {"rate": object()})

  def full_disk(*_):
    raise OSError("disk full")

  monkeypatch.setattr(paths.os, "fsync", full_disk)
  with pytest.raises(OSError, match="disk full"):
    jsonio.write_json(path, {"rate": 0.7})
  assert jsonio.read_json(path) == {"rate": 0.5}
  assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
  for content in ("{", "[" * 200_000):
    path.write_text(content)
    with pytest.raises(UserError, match="not JSON"):
      jsonio.read_json(path)
