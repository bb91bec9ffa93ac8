# SPDX-License-Identifier: Apache-2.0
"""What a stage opens from one config and one workdir, whose manifest it writes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import time
from typing import Any, TypeVar

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit import skills
from auditdm_jax.audit.judging import model as judge_model
from auditdm_jax.audit.looks import Gallery
from auditdm_jax.core import jsonio, paths, runtime
from auditdm_jax.core.config import build
from auditdm_jax.images.client import ImageClient
from auditdm_jax.stages import outsiders, sections, service
from auditdm_jax.stages.models import Models
from auditdm_jax.stages.pools import ImageSource, Pools
from auditdm_jax.stages.remote import Remotes, without_limits
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.truth import Oracle
from auditdm_jax.stages.worlds import World, open_world

T = TypeVar("T")


class Context:
  """A run as a stage sees it: its folder, models, pools, world, judge and image service."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: str | os.PathLike,
    stage: str,
    *,
    answers: str | os.PathLike | None = None,
  ):
    """Opens a run.

    Args:
      config: all of it.
      workdir: the folder of the run.
      stage: what opens it, for the manifest.
      answers: folder of what endpoints answer; None = the run's, where nothing is asked twice.
    """
    self.config, self._stage = config, stage
    self.settings = build(sections.AuditConfig, config, name="config")
    decides = without_limits(config.to_dict())
    self.folder = RunFolder(workdir, config_hash=jsonio.canonical_hash(decides))
    self.world: World = open_world(self.settings.world.name, self.settings.world.gaps)
    self.remotes = Remotes(
      self.settings.endpoints,
      cache=self.folder.path / "endpoints" if answers is None else answers,
      known=_endpoints_of(self.folder.manifest.read()),
    )
    self.models = Models(
      self.settings, remotes=self.remotes, replies=self.folder.path / "judge.jsonl"
    )
    self.judge = self.models.judge
    outsiders.check(self.settings, self.models)
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
    self.remotes.close()
    self._stack.close()
    if runtime.is_main():
      seconds = round(time.perf_counter() - self._start, 1)
      manifest = self.folder.manifest
      manifest.add_cost(self._stage, **self._costs(), seconds=seconds)
      manifest.note(self._stage, "styles", self.models.styles())
      if facts := self.remotes.facts():
        manifest.note(self._stage, "endpoints", facts)
      if (model := self.judge.model) is not None:
        facts = {"model": self.settings.judge.model, "identity": model.identity}
        prompt = jsonio.canonical_hash(judge_model.PROMPT)
        manifest.note(self._stage, "judge", {**facts, "prompt": prompt})

  def spent(self) -> Counter[str]:
    """Returns what all stages have cost so far, this one included, as the manifest names it."""
    spent = Counter(self._costs())
    for stage in self.folder.manifest.read()["stages"].values():
      spent.update({k: v for k, v in stage.get("cost", {}).items() if k != "seconds"})
    return spent

  def _costs(self) -> dict[str, int]:
    """Returns what has been spent since the start, which the manifest learns at the end."""
    return {**self.models.answers(), **self.remotes.usage(), **self._judged()}

  def _judged(self) -> dict[str, int]:
    """Counts of the judge's model by "judge/WHAT"."""
    model = self.judge.model
    return {} if model is None else {f"judge/{what}": n for what, n in model.counts.items()}

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
    naming = self.settings.taxonomy
    seeds = skills.load_seeds(naming.skills) if naming.skills else skills.Seeds(())
    if not naming.kinds:
      return seeds
    return dataclasses.replace(seeds, kinds={**seeds.kinds, **skills.load_kinds(naming.kinds)})

  @functools.cached_property
  def gallery(self) -> Gallery:
    """What images look like, to modes that are about images."""
    config, seed = self.settings.taxonomy.looks, self.settings.seed
    return Gallery(self.images, self._features, config=config, seed=seed)

  def _features(self, image_ids: Sequence[str]) -> np.ndarray:
    """Features of the tower of the target, or of the first other model that has one here."""
    models = self.models
    answering = (models.target, *models.references.values())
    model = next((m for m in answering if m.takes == "features"), models.auditor)
    return models.cache.features(model, image_ids, self.images)

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


def _endpoints_of(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Returns what the stages of a manifest say of endpoints, by identity; the last one counts."""
  return {
    facts["identity"]: facts
    for stage in manifest.get("stages", {}).values()
    for facts in stage.get("endpoints", {}).values()
    if "fingerprint" in facts
  }
