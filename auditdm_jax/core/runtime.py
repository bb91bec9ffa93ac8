# SPDX-License-Identifier: Apache-2.0
"""jax, set up once per process, before its first use."""

import os
import pathlib

import jax


def setup(*, devices: int = 0, cache_dir: str | os.PathLike | None = None) -> None:
  """Turns on the compilation cache and, if asked, splits the CPU into several devices.

  Args:
    devices: how many CPU devices to show, to try a mesh without one; 0 leaves them alone.
    cache_dir: where compiled programs are kept between runs; by default what the variable
      JAX_COMPILATION_CACHE_DIR says, else a folder of the user's cache.

  Raises:
    RuntimeError: `devices` is given and jax is already in use.
  """
  if devices:
    jax.config.update("jax_num_cpu_devices", devices)
  folder = pathlib.Path(cache_dir or jax.config.jax_compilation_cache_dir or default_cache_dir())
  folder.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def default_cache_dir() -> pathlib.Path:
  """Returns auditdm_jax/xla in the user's cache folder."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "auditdm_jax" / "xla"


def describe_devices() -> list[str]:
  """Returns one line per kind of device, such as "8 × cpu (cpu)", for the manifest."""
  kinds = [f"{d.platform} ({d.device_kind})" for d in jax.devices()]
  return [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
