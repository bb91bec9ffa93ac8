# SPDX-License-Identifier: Apache-2.0
"""`sweep.json`: what a sweep runs, written by the stage `sweep` and read by `table`."""

from collections.abc import Mapping
import dataclasses
import os
import re

from auditdm_jax.core import jsonio, paths, typed
from auditdm_jax.core.config import UserError

FILE = "sweep.json"
# A cell names a folder, a file and, in other letters, a job of a cluster.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,47}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One setting of an ablation.

  Attributes:
    name: of its folder and its rows.
    arg: what `get_config` takes in addition, as name=value pairs with commas between them.
    overrides: arguments `--config.a.b=value`.
  """

  name: str
  arg: str = ""
  overrides: tuple[str, ...] = ()

  def __post_init__(self):
    if not _NAME.fullmatch(self.name) or ".." in self.name:
      raise UserError(
        f"sweep: {self.name!r:.80} names no cell; letters, digits and . _ + - are right, at most"
        " 48, with a letter or a digit first"
      )

  @property
  def said(self) -> str:
    """What the cell changes, as people read it; "" for nothing."""
    return " ".join(
      filter(None, [self.arg, *(x.removeprefix("--config.") for x in self.overrides)])
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """What a sweep runs.

  Attributes:
    config: its file, and after a colon what `get_config` takes in all cells.
    overrides: arguments `--config.a.b=value` of all cells.
    cells: the settings; the first one is the control.
    configs: hash of the config by run, which is CELL/SEED.
  """

  config: str
  overrides: tuple[str, ...]
  cells: tuple[Cell, ...]
  configs: Mapping[str, str]

  @property
  def seeds(self) -> tuple[int, ...]:
    """The seeds of its runs, in order."""
    return tuple(sorted({int(run.rpartition("/")[2]) for run in self.configs}))


def run_name(cell: str, seed: int) -> str:
  """What a run is called, and its folder in that of the sweep."""
  return f"{cell}/{seed}"


def read(folder: str | os.PathLike) -> Sweep | None:
  """Returns the sweep of a folder; None if it is none of a sweep.

  Raises:
    UserError: the file is damaged or of another version.
  """
  path = paths.as_path(folder) / FILE
  if not path.exists():
    return None
  data = jsonio.read_json(path)
  try:
    return typed.load(Sweep, data)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f"{path}: not what this version writes ({e}); use another --workdir") from e


def write(folder: str | os.PathLike, sweep: Sweep) -> None:
  """Writes the sweep of a folder; runs that were there before stay known.

  Raises:
    UserError: another sweep is there.
  """
  known = read(folder)
  if known is not None:
    if (known.config, known.overrides) != (sweep.config, sweep.overrides):
      said = " ".join((known.config, *known.overrides))
      raise UserError(f"{folder} is the sweep of {said}; use another --workdir for this one")
    sweep = dataclasses.replace(sweep, configs={**known.configs, **sweep.configs})
  jsonio.write_json(paths.as_path(folder) / FILE, sweep)
