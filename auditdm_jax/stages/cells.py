# SPDX-License-Identifier: Apache-2.0
"""A config file's cells, and the run of each with each seed.

A file that can be swept has, beside `get_config`, which takes `seed=N` among its args:

  def sweep(add, arg):                              # `arg` is what get_config takes in all cells.
    add("control")                                  # The first cell: others are compared with it.
    add("group-4", "group=4")                       # Args of get_config,
    add("std-none", **{"grpo.std": "none"})         # and values by key.

  def target(arg):                                  # Only where a seed has a target of its own:
    return "configs/pretrain_scenes.py:…" or ""     # by which config `pretrain` makes it.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import ml_collections

from auditdm_jax.bench.sweeps.record import Cell, Sweep, run_name
from auditdm_jax.core import config_file, overrides, paths, values
from auditdm_jax.core.config import UserError, build
from auditdm_jax.core.overrides import Override
from auditdm_jax.stages.remote import config_hash
from auditdm_jax.stages.sections import AuditConfig

TARGETS, DATA = "_targets", "_data"  # No cell can have these names.
STAGE = "loop"


@dataclasses.dataclass(frozen=True)
class CellRun:
  """A cell with a seed: one run, in a folder of its own.

  Attributes:
    name: CELL/SEED.
    cell: its cell.
    seed: of everything that is drawn.
    args: of the program, without the folder.
    target: by which config the target of the seed is made; "" = it is there.
    config: hash of its config.
  """

  name: str
  cell: Cell
  seed: int
  args: tuple[str, ...]
  target: str
  config: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """All runs of a sweep, seed by seed, so that what is finished early has its control."""

  sweep: Sweep
  runs: tuple[CellRun, ...]

  @property
  def targets(self) -> dict[int, str]:
    """The config that makes the target of a seed, for seeds with one of their own."""
    return {run.seed: run.target for run in self.runs if run.target}


def plan(
  spec: str, given: Sequence[str], *, seeds: Sequence[int], root: str, only: Sequence[str] = ()
) -> Plan:
  """Reads the cells of a config file and checks the config of every run.

  Args:
    spec: the file, and after a colon what `get_config` takes in all cells.
    given: overrides `--config.a.b=value` of all cells.
    seeds: one run each.
    root: the folder of the sweep, for targets and a data set that it makes.
    only: names of cells; () = all.

  Raises:
    UserError: the file has no cells, or one of them is wrong; the text names it.
  """
  path, args = config_file.split(spec)
  shared = args[0] if args else ""
  _check_args("seed=", shared, "give seeds by --seeds")
  cells = read_cells(spec)
  for cell in cells:
    _check_cell(cell, shared, given)
  if unknown := [name for name in only if name not in {cell.name for cell in cells}]:
    names = ", ".join(cell.name for cell in cells)
    raise UserError(f"--cells={','.join(only)}: no cell {unknown[0]!r}; {names}")
  # A control without its pair is no control.
  runs = [
    _run(cell, seed, path=path, shared=shared, given=given, root=root)
    for seed in seeds
    for cell in cells
  ]
  _check_targets(runs)
  sweep = Sweep(
    config=spec,
    overrides=tuple(given),
    cells=cells,
    configs={run.name: run.config for run in runs if not only or run.cell.name in only},
  )
  return Plan(sweep, tuple(run for run in runs if run.name in sweep.configs))


def read_cells(spec: str) -> tuple[Cell, ...]:
  """Returns the cells that the function `sweep` of a config file adds.

  Raises:
    UserError: there are none, or names are wrong or twice.
  """
  path, args = config_file.split(spec)
  fill = config_file.function(spec, "sweep")
  if fill is None:
    raise UserError(f"--config={path}: it has no function sweep(add, arg); see configs/ablations")
  cells: list[Cell] = []

  def add(name: str, arg: str = "", /, **changes: Any) -> None:
    given = tuple(f"--config.{key}={_typed(value)}" for key, value in changes.items())
    cells.append(Cell(name=name, arg=arg, overrides=given))
    _check_values(cells[-1], changes, spec)

  fill(add, args[0] if args else "")
  if not cells:
    raise UserError(f"--config={path}: its sweep adds no cell")
  names = [cell.name.lower() for cell in cells]  # Some disks take two cases for one.
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f"--config={path}: two cells are called {twice[0]!r}")
  return tuple(cells)


def _typed(value: Any) -> str:
  """Returns a value as one types it: `core.values` reads it back."""
  if isinstance(value, str):
    plain = (
      values.literal(value) == value and value[:1] not in ("'", '"') and value == value.strip()
    )
    return value if plain else repr(value)
  return repr(value)


def _check_values(cell: Cell, changes: dict[str, Any], spec: str) -> None:
  """Checks that the values of a cell are read back as they were given.

  Raises:
    UserError: a key or a value is wrong.
  """
  if not changes:
    return
  try:
    config = overrides.read(_joined(spec, cell.arg), cell.overrides, AuditConfig)
  except UserError as e:
    raise UserError(f"cell {cell.name}: {e}") from e
  _, parsed = overrides.split(cell.overrides)
  for override, value in zip(parsed, changes.values(), strict=True):
    found = _value_at(config, override)
    if found != value:
      raise UserError(
        f"cell {cell.name}: {override.where} is {value!r}, which is read as {found!r}"
      )


def _value_at(config: ml_collections.ConfigDict, override: Override) -> Any:
  """Returns the value of an override's key, whose dashes may be underscores."""
  found: Any = config
  for key in override.keys:
    same = [name for name in found if name.replace("-", "_") == key.replace("-", "_")]
    found = found[key if key in found else same[0]]
  return found.to_dict() if isinstance(found, ml_collections.ConfigDict) else found


def _check_cell(cell: Cell, shared: str, given: Sequence[str]) -> None:
  """Checks that nothing that a cell sets is given for all cells.

  Raises:
    UserError: something is.
  """
  _check_args("seed=", cell.arg, f"cell {cell.name} gives a seed; they are those of --seeds")
  why = f"cell {cell.name} sets it; leave it out of the command"
  _check_args(cell.arg, shared, why)
  _, ours = overrides.split(cell.overrides)
  _, theirs = overrides.split(given)
  for a in ours:
    for b in theirs:
      n = min(len(a.keys), len(b.keys))
      if a.keys[:n] == b.keys[:n]:
        raise UserError(f"{b.where}: {why}")


def _check_args(own: str, shared: str, why: str) -> None:
  names = {pair.partition("=")[0] for pair in filter(None, own.split(","))}
  for pair in filter(None, shared.split(",")):
    if pair.partition("=")[0] in names:
      raise UserError(f"--config=…:{shared}: {pair}: {why}")


def _check_targets(runs: Sequence[CellRun]) -> None:
  """Checks that a seed has one target, which its cells share.

  Raises:
    UserError: cells of a seed have several.
  """
  for seed in {run.seed for run in runs}:
    if len({run.target for run in runs if run.seed == seed}) > 1:
      raise UserError(f"seed {seed}: target(arg) of the config gives the cells different targets")


def _run(
  cell: Cell, seed: int, *, path: pathlib.Path, shared: str, given: Sequence[str], root: str
) -> CellRun:
  """Returns the run of a cell with a seed.

  Raises:
    UserError: its config is wrong.
  """
  arg = ",".join(filter(None, [shared, cell.arg, f"seed={seed}"]))
  spec = f"{path}:{arg}"
  made_by = config_file.function(spec, "target")
  target = made_by(arg) if made_by else ""
  texts = [*given, *cell.overrides]
  if target:
    texts.append(f"--config.models.target={root}/{TARGETS}/{seed}/models/target")
  try:
    config = overrides.read(spec, texts, AuditConfig)
    settings = build(AuditConfig, config, name="config")
    if settings.pool.builder and not settings.pool.data_dir and not paths.is_remote(root):
      texts.append(f"--config.pool.data_dir={root}/{DATA}")  # Prepared once for all runs.
      config = overrides.read(spec, texts, AuditConfig)
  except UserError as e:
    raise UserError(f"cell {cell.name}: {e}") from e
  if settings.seed != seed:
    raise UserError(
      f"cell {cell.name}: {spec} has the seed {settings.seed}; get_config is to take seed=N"
    )
  return CellRun(
    run_name(cell.name, seed),
    cell,
    seed,
    (STAGE, f"--config={spec}", *texts),
    target,
    config_hash(config),
  )


def _joined(spec: str, arg: str) -> str:
  """Returns a config's file with further args."""
  path, args = config_file.split(spec)
  both = ",".join(filter(None, [*args, arg]))
  return f"{path}:{both}" if both else str(path)
