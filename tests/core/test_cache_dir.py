# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs are kept."""

import pathlib

from jax._src import compilation_cache

from auditdm_jax.core import runtime

_ZSTD = bytes.fromhex("28b52ffd")


def test_the_folder_follows_how_jax_compresses(tmp_path, monkeypatch):
  """No public name of jax says it; without the package zstandard, it is a matter of Python's."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert runtime.default_cache_dir().parent == tmp_path / "auditdm_jax"
  if not compilation_cache.zstandard:
    packed = compilation_cache.compress_executable(b"program").startswith(_ZSTD)
    assert runtime.default_cache_dir().name == ("xla-zstd" if packed else "xla")
  monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name == "_zstd")
  assert runtime.default_cache_dir() == pathlib.Path(tmp_path, "auditdm_jax/xla-zstd")
