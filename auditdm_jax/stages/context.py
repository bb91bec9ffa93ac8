# SPDX-License-Identifier: Apache-2.0
"""What a stage opens from one config and one workdir, whose manifest it writes."""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import time
from typing import TypeVar

from ml_collections import ConfigDict

from auditdm_jax.audit import skills
from auditdm_jax.audit.judge import Judge, open_judge
from auditdm_jax.core import jsonio, paths, runtime
from auditdm_jax.core.config import build
from auditdm_jax.images.client import ImageClient
from auditdm_jax.models.weights import content_hash
from auditdm_jax.stages import outsiders, sections, service
from auditdm_jax.stages.models import Models
from auditdm_jax.stages.pools import ImageSource, Pools
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.truth import Oracle
from auditdm_jax.stages.worlds import World, open_world
from auditdm_jax.vlm import load_vlm

T = TypeVar("T")


class Context:
  """A run as a stage sees it: its folder, models, pools, world, judge and image service."""

  def __init__(self, config: ConfigDict, workdir: str | os.PathLike, stage: str):
    self.config, self._stage = config, stage
    self.settings = build(sections.AuditConfig, config, name="config")
    self.folder = RunFolder(workdir, config_hash=jsonio.canonical_hash(config.to_dict()))
    self.world: World = open_world(self.settings.world.name, self.settings.world.gaps)
    self.judge = _open_judge(self.settings, self.folder)
    self.models = Models(self.settings, judge=self.judge)
    outsiders.check(self.settings)
    self.images = ImageSource(self.folder.images, cache_bytes=self.settings.pool.cache_bytes)
    self._stack = contextlib.ExitStack()
    self._start = time.perf_counter()

  def __enter__(self) -> "Context":
    if runtime.is_main():
      self._stack.enter_context(self.folder.locked())
      models = dataclasses.asdict(self.settings.models)
      self.folder.manifest.record(
        self._stage,
        config=self.config.to_dict(),
        seeds={"seed": self.settings.seed},
        models={role: models[role] for role in ("auditor", "target", "references", "sibling")},
        devices=runtime.describe_devices(),
      )
    return self

  def __exit__(self, *exc) -> None:
    self._stack.close()
    if runtime.is_main():
      seconds = round(time.perf_counter() - self._start, 1)
      self.folder.manifest.add_cost(self._stage, **self.models.answers(), seconds=seconds)
      self.folder.manifest.note(self._stage, "styles", self.models.styles())

  def stage(self, name: str, body: Callable[[], T]) -> T:
    """Runs a stage of several, with its name on the screen; its time goes into seconds.json."""
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    result = body()
    self.folder.add_seconds(name, time.perf_counter() - start)
    return result

  @functools.cached_property
  def pool(self) -> Pools:
    """`pool(role)` opens the split of a role: images, heldout or fresh."""
    return Pools(self.settings.pool, self.images, local=self._local)

  @functools.cached_property
  def oracle(self) -> Oracle:
    """What the world says of attempts; for reports only."""
    return Oracle(self.world, images=self.images, judge=self.judge)

  @functools.cached_property
  def seeds(self) -> skills.Seeds:
    """The named skills of the taxonomy."""
    path = self.settings.taxonomy.skills
    return skills.load_seeds(path) if path else skills.Seeds(())

  @functools.cached_property
  def client(self) -> ImageClient:
    """A client of the image service."""
    rows = self.config.to_dict()["images"]
    opened = service.connected(self.settings.images, rows, local=self._local)
    return self._stack.enter_context(opened)

  @functools.cached_property
  def _local(self) -> pathlib.Path:
    """Where this machine's own files go: the workdir, or with a remote one a temporary folder."""
    if not paths.is_remote(self.folder.path):
      return self.folder.path
    return pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))


def _open_judge(settings: sections.AuditConfig, folder: RunFolder) -> Judge:
  """Opens the judge; one with a model of its own keeps its replies in the run's folder.

  Raises:
    UserError: its model is one of those that are audited, and the config does not allow it.
  """
  config, models = settings.judge, settings.models
  if not config.model:
    return open_judge(config)
  roles = {"target": models.target, "auditor": models.auditor}
  roles |= {f"reference {path}": path for path in models.references}
  return open_judge(
    config,
    model=load_vlm(config.model, dtype=models.dtype),
    identity=content_hash(config.model),
    audited={role: content_hash(path) for role, path in roles.items()},
    kept=folder.path / "judge.jsonl",
  )
