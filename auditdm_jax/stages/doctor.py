# SPDX-License-Identifier: Apache-2.0
"""doctor: says whether a config would run here, without training anything.

  python -m auditdm_jax doctor --config=configs/scenes.py

Prints versions, devices, memory and disk, then does what every run does first (preflight): the
weights, the image service, and some questions to all models. It always looks anew. Without
--workdir it works in a temporary folder; with one, prepared data stays there for the run.

Reads:  the config, the weights, the images.
Writes: nothing without --workdir; with one, prepared data.
Costs:  config.preflight.questions answers of each model, and the programs' compilation.
"""

import pathlib
import platform
import shutil
import tempfile

from ml_collections import ConfigDict

from auditdm_jax.core import machine, manifest, paths, runtime
from auditdm_jax.stages import preflight
from auditdm_jax.stages.context import Context


def main(config: ConfigDict, workdir: pathlib.Path | None) -> int:
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) if workdir is None else workdir
    if runtime.is_main():
      print("\n".join(describe(folder)), flush=True)
    with Context(config, folder, "doctor") as ctx:
      preflight.check(ctx)
  if runtime.is_main():
    print("nothing is wrong")
  return 0


def describe(folder: pathlib.Path) -> list[str]:
  """Returns a line each of versions, devices, memory and the disk of a folder."""
  versions = {"python": platform.python_version()} | manifest.packages()
  per_device = machine.device_memory()
  devices = ", ".join(runtime.describe_devices())
  lines = [
    "  ".join(f"{name} {version}" for name, version in versions.items()),
    f"devices: {devices}" + (f", {_gib(per_device)} each" if per_device else ""),
    f"memory: {_gib(machine.host_memory())}",
  ]
  if not paths.is_remote(folder):
    lines.append(f"disk: {_gib(shutil.disk_usage(folder).free)} free at {folder}")
  return lines


def _gib(size: int) -> str:
  return f"{size / 2**30:.1f} GiB"
