# SPDX-License-Identifier: Apache-2.0
"""Which round of a run a folder holds, and what the config means there.

  WORKDIR             round 1: the target of the config
  WORKDIR/rounds/2    the target as round 1 repaired it, audited by the auditor that round 1 trained
  WORKDIR/rounds/3    the same of round 2

A round's folder is the folder of a run, and any stage takes it as --workdir. The rounds of a run
have one config. They share what lies in WORKDIR: made images, data, what endpoints answered, the
benchmark, and the lock.
"""

from collections.abc import Iterator
import dataclasses
import os
import pathlib
import re
from typing import Any

from auditdm_jax.audit.preflight import PreflightConfig
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.draws import Walk
from auditdm_jax.rl.stopping import NEVER
from auditdm_jax.stages.run import ROUNDS, TRAIN
from auditdm_jax.stages.sections import AuditConfig

_LATER = re.compile("round[0-9]+")


def is_training(arm: str) -> bool:
  """Whether an arm is the training of an auditor, in whichever round."""
  return arm == TRAIN or _LATER.fullmatch(arm) is not None


@dataclasses.dataclass(frozen=True)
class AuditRound:
  """A round of a run.

  Attributes:
    number: from 1 on.
    root: the folder of the run, which is that of round 1.
  """

  number: int
  root: Any  # A pathlib.Path, or etils' twin for an object store.

  @classmethod
  def of(cls, workdir: str | os.PathLike) -> "AuditRound":
    """Returns the round that a folder holds: RUN/rounds/N is round N of a run in RUN."""
    path = paths.as_path(workdir)
    number, root = path.name, path.parent.parent
    is_later = path.parent.name == ROUNDS and number.isdecimal() and int(number) > 1
    if is_later and (root / "manifest.json").exists():
      return cls(int(number), root)
    return cls(1, path)

  @property
  def is_first(self) -> bool:
    return self.number == 1

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the round."""
    return self.root if self.is_first else self.root / ROUNDS / str(self.number)

  def earlier(self) -> Iterator["AuditRound"]:
    """Yields the rounds before it, from the first on."""
    return (AuditRound(n, self.root) for n in range(1, self.number))

  @property
  def before(self) -> "AuditRound":
    """The round before it; the first has none."""
    return AuditRound(self.number - 1, self.root)

  @property
  def draws(self) -> str:
    """The name of its draws."""
    return TRAIN if self.is_first else f"round{self.number}"

  def walk(self, *walk: str | int) -> Walk:
    """Returns the name of a stream of this round."""
    return walk if self.is_first else (self.draws, *walk)

  def role(self, name: str) -> str:
    """Returns what the table of the benchmark calls a model that the round makes."""
    return name if self.is_first else f"{name}, round {self.number}"

  def target(self, config: AuditConfig) -> str:
    """Returns the folder of the target that it audits; in round 1 it may be an endpoint."""
    if self.is_first:
      return config.models.target
    return os.fspath(self.before.folder / "rectify" / "repaired")

  def steps(self, config: AuditConfig) -> int:
    """Returns the steps of GRPO in it."""
    return config.optim.steps if self.is_first else config.rounds.steps

  def auditor(self, config: AuditConfig) -> str:
    """Returns the folder of the auditor that it starts from: the last one that was trained."""
    for earlier in reversed(list(self.earlier())):
      if steps := earlier.steps(config):
        return os.fspath(earlier.folder / "auditors" / TRAIN / f"{steps:06d}")
    return config.models.auditor

  def settings(self, config: AuditConfig) -> AuditConfig:
    """Returns the config as it is meant in this round.

    In a later one the preflight is left out, and training does not give up: a repaired target fails
    seldom.

    Raises:
      UserError: the target was not repaired yet.
    """
    if self.is_first:
      return config
    target = self.target(config)
    if not (paths.as_path(target) / "config.json").exists():
      raise UserError(
        f"{self.folder}: round {self.number} audits the target that round {self.number - 1}"
        f" repairs, and {target} is not there yet; run the loop, or the stage rectify, first"
      )
    was, name = pathlib.Path(config.models.target).resolve().name, pathlib.Path(target).name
    styles = tuple((name if m == was else m, style) for m, style in config.bank.styles)
    order = tuple(name if m == was else m for m in config.bank.order)
    models = dataclasses.replace(config.models, target=target, auditor=self.auditor(config))
    return dataclasses.replace(
      config,
      models=models,
      bank=dataclasses.replace(config.bank, styles=styles, order=order),
      optim=dataclasses.replace(config.optim, steps=self.steps(config)),
      discover=dataclasses.replace(config.discover, probes=config.rounds.probes),
      preflight=PreflightConfig(enabled=False),
      stop=NEVER,
    )
