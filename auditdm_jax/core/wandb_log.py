# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases beside JSONL and TensorBoard, where the config names a project.

The package is not among the requirements, and is imported only then. A run in wandb is one series
of a workdir, such as `train`, and goes on under the same id when the workdir is resumed. wandb
refuses rows of steps that it has seen: rows therefore count by themselves, and are drawn over the
column `step`. Those that a resumed run writes again are there twice, the later ones on top.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import importlib
import os
import pathlib
from typing import Any, Literal

from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError


@dataclasses.dataclass(frozen=True)
class WandbConfig:
  """Whether the numbers of a run also go to Weights & Biases.

  Attributes:
    project: its name there; "" = they do not.
    entity: user or team; "" = the default of the account.
    mode: "online", or "offline" for a folder WORKDIR/wandb that `wandb sync` sends later.
  """

  project: str = ""
  entity: str = ""
  mode: Literal["online", "offline"] = "online"


def library(config: WandbConfig) -> Any:
  """Returns the package.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module("wandb")
  except ImportError as e:
    raise UserError(
      f"config.wandb.project={config.project!r}: the package wandb cannot be imported ({e}); pip"
      " install wandb, or leave config.wandb.project empty"
    ) from e


class WandbSeries:
  """One series of numbers in wandb."""

  def __init__(self, config: WandbConfig, workdir: str | os.PathLike, name: str):
    """Begins or continues it.

    Args:
      config: names the project, which is not empty.
      workdir: the folder of the run, which the id of the series depends on.
      name: of the series.

    Raises:
      UserError: the package is missing, or wandb does not take the run.
    """
    wandb = library(config)
    where = os.fspath(workdir) if paths.is_remote(workdir) else str(pathlib.Path(workdir).resolve())
    folder = None if paths.is_remote(workdir) else str(pathlib.Path(workdir))
    title = "/".join([*pathlib.PurePath(where).parts[-2:], name])
    try:
      self._run = wandb.init(
        project=config.project,
        entity=config.entity or None,
        mode=config.mode,
        dir=folder,
        id=hashlib.sha256(f"{where}\n{name}".encode()).hexdigest()[:16],
        name=title,
        resume="allow",
      )
    except wandb.errors.Error as e:
      said = " ".join(str(e).split())[:300].rstrip(".")
      raise UserError(
        f"config.wandb: {config.project}: {said}; log in with `wandb login`, or set"
        " config.wandb.mode=offline"
      ) from e
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Sends a row."""
    self._run.log({"step": step, **values})

  def close(self) -> None:
    """Returns when what was sent is there, or in its file."""
    self._run.finish()
