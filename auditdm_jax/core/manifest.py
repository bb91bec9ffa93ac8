# SPDX-License-Identifier: Apache-2.0
"""`<workdir>/manifest.json`: what made this run, per stage, and what it has cost so far."""

from collections.abc import Mapping, Sequence
import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

from auditdm_jax.core import jsonio, paths

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")


class Manifest:
  """The manifest of a workdir: config, code, models, prompts, seeds, versions, devices, cost."""

  def __init__(self, workdir: str | pathlib.Path):
    self.path = paths.as_path(workdir) / "manifest.json"

  def read(self) -> dict[str, Any]:
    """Returns the manifest; without one, an empty one."""
    return jsonio.read_json(self.path) if self.path.exists() else {"version": 1, "stages": {}}

  def record(
    self,
    stage: str,
    *,
    config: Any,
    seeds: Mapping[str, int],
    models: Mapping[str, Any] = {},  # noqa: B006  Never changed.
    prompts: Mapping[str, str] = {},  # noqa: B006
    devices: Sequence[str] = (),
  ) -> list[str]:
    """Writes down how `stage` runs this time; its costs go on from an earlier run.

    Args:
      stage: name of the stage.
      config: its whole config.
      seeds: every seed in use, by name.
      models: name → revision and weight hash.
      prompts: name → the prompt, verbatim.
      devices: `runtime.describe_devices()`.

    Returns:
      The dotted config keys that differ from the run being resumed; [] if there is none.
    """
    manifest = self.read()
    old = manifest["stages"].get(stage, {})
    new = {
      "config": jsonio.plain(config),
      "seeds": jsonio.plain(seeds),
      "models": jsonio.plain(models),
      "prompts": jsonio.plain(prompts),
      "devices": list(devices),
      "command": sys.argv,
      "git": _git_revision(),
      "python": platform.python_version(),
      "packages": packages(),
      "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "runs": old.get("runs", 0) + 1,
      "cost": old.get("cost", {}),
    }
    manifest["stages"][stage] = new
    jsonio.write_json(self.path, manifest)
    return _changed(old["config"], new["config"]) if old else []

  def note(self, stage: str, name: str, facts: Mapping[str, Any]) -> None:
    """Writes down what the stage learned only while it ran, such as how models were asked."""
    manifest = self.read()
    manifest["stages"][stage].setdefault(name, {}).update(jsonio.plain(facts))
    jsonio.write_json(self.path, manifest)

  def add_cost(self, stage: str, **counters: float) -> None:
    """Adds to the stage's counters, such as tokens, images or device_seconds."""
    manifest = self.read()
    cost = manifest["stages"][stage]["cost"]
    for name, value in counters.items():
      cost[name] = cost.get(name, 0) + value
    jsonio.write_json(self.path, manifest)


def packages() -> dict[str, str]:
  """Returns the versions of the packages that a run depends on most."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _git_revision() -> str:
  """Returns the commit of this code, with "-dirty" if it was changed; "" outside a checkout."""
  here = pathlib.Path(__file__).parent
  command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip()


def _changed(old: Any, new: Any, prefix: str = "") -> list[str]:
  if isinstance(old, dict) and isinstance(new, dict):
    keys = [*old, *(k for k in new if k not in old)]
    return [
      path
      for key in keys
      for path in _changed(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    ]
  return [] if old == new else [prefix]
