# SPDX-License-Identifier: Apache-2.0
"""What a stage opens from one config and one workdir, whose manifest it writes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import copy
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
from auditdm_jax.core import jsonio, machine, paths, runtime
from auditdm_jax.core.config import build
from auditdm_jax.images.client import ImageClient
from auditdm_jax.stages import outsiders, sections, service
from auditdm_jax.stages.models import Models
from auditdm_jax.stages.pools import ImageSource, Pools
from auditdm_jax.stages.remote import Remotes, config_hash
from auditdm_jax.stages.rounds import AuditRound
from auditdm_jax.stages.run import ROUNDS, RunFolder
from auditdm_jax.stages.truth import Oracle
from auditdm_jax.stages.worlds import World, open_world

T = TypeVar("T")


class Context:
  """A run as a stage sees it: its folder, models, pools, world, judge and image service.

  Attributes:
    round: which round of the run the folder holds.
    written: the config as it is written.
    settings: the config as it is meant in this round.
  """

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
      workdir: the folder of the run, or of one of its later rounds.
      stage: what opens it, for the manifest.
      answers: folder of what endpoints answer; None = the run's, where nothing is asked twice.
    """
    self.config, self._stage = config, stage
    self.written = build(sections.AuditConfig, config, name="config")
    self.round = AuditRound.of(workdir)
    self.settings = self.round.settings(self.written)
    self._hash = config_hash(config)
    self.folder = self._folder_of(self.round)
    self.world: World = open_world(self.settings.world.name, self.settings.world.gaps)
    root = self._folder_of(AuditRound(1, self.round.root))
    self.remotes = Remotes(
      self.settings.endpoints,
      cache=root.path / "endpoints" if answers is None else answers,
      known=_endpoints_of(root.manifest.read()),
    )
    self.models = Models(self.settings, remotes=self.remotes, replies=root.path / "judge.jsonl")
    self.judge = self.models.judge
    outsiders.check(self.settings, self.models)
    self.images = ImageSource(root.images, cache_bytes=self.settings.pool.cache_bytes)
    self._lock = root.locked
    self._outer: Context | None = None  # Whose round it is, if it was opened in another one.
    self._stack = contextlib.ExitStack()
    self._start = time.perf_counter()

  def _folder_of(self, which: AuditRound) -> RunFolder:
    return RunFolder(which.folder, config_hash=self._hash)

  def earlier(self) -> list[RunFolder]:
    """Returns the folders of the rounds before this one, from the first on."""
    return [self._folder_of(which) for which in self.round.earlier()]

  def later(self) -> dict[int, RunFolder]:
    """Returns the folders of the rounds after the first one, as far as there are any."""
    root = self.round.root / ROUNDS
    numbers = range(2, self.written.rounds.count + 1)
    return {
      n: self._folder_of(AuditRound(n, self.round.root))
      for n in numbers
      if (root / str(n)).exists()
    }

  @contextlib.contextmanager
  def opened(self, number: int) -> Iterator["Context"]:
    """A later round of this run, which shares all but the target and the auditor.

    Args:
      number: of the round.

    Raises:
      UserError: the round before it has not repaired its target.
    """
    other = copy.copy(self)
    other.round = AuditRound(number, self.round.root)
    other.settings = other.round.settings(self.written)
    other.folder = other._folder_of(other.round)
    other.models = self.models.with_target(other.settings)
    other._outer = self
    vars(other).update(pool=self.pool, oracle=self.oracle, _local=self._local)
    for own in ("gallery", "client"):
      vars(other).pop(own, None)
    other._record()
    start = time.perf_counter()
    try:
      yield other
    finally:
      if runtime.is_main():
        seconds = round(time.perf_counter() - start, 1)
        other.folder.manifest.add_cost(self._stage, **other.models.answers(), seconds=seconds)

  def __enter__(self) -> "Context":
    if runtime.is_main():
      self._stack.enter_context(self._lock())
    self._record()
    return self

  def _record(self) -> None:
    """Writes into the manifest how the stage is run."""
    if runtime.is_main():
      models = dataclasses.asdict(self.settings.models)
      self.folder.manifest.record(
        self._stage,
        config=self.config.to_dict(),
        seeds={"seed": self.settings.seed},
        models={role: models[role] for role in ("auditor", "target", "references", "sibling")},
        devices=runtime.describe_devices(),
      )

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
    """Returns what all stages have cost so far, this one included, see `RunFolder.spent`."""
    spent = self.folder.spent()
    spent.update(self._costs())
    return spent

  def _costs(self) -> dict[str, int]:
    """Returns what has been spent since the start, which the manifest learns at the end."""
    return {**self.models.answers(), **self.remotes.usage(), **self._judged()}

  def _judged(self) -> dict[str, int]:
    """Counts of the judge's model by "judge/WHAT"."""
    model = self.judge.model
    return {} if model is None else {f"judge/{what}": n for what, n in model.counts.items()}

  def stage(self, name: str, body: Callable[[], T]) -> T:
    """Runs a stage of several, with its name on the screen; its time goes into seconds.json.

    The next one begins without the memory that this one has freed.
    """
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    try:
      return body()
    finally:
      machine.trim_heap()
      self.folder.add_seconds(name, time.perf_counter() - start)

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
    if self._outer is not None:
      return self._outer.client
    rows = self.config.to_dict()["images"]
    # After the preflight the service was there once, and its address is right.
    known = (self.folder.path / "preflight" / "done.json").exists()
    opened = service.connected(self.settings.images, rows, local=self._local, known=known)
    return self._stack.enter_context(opened)

  @functools.cached_property
  def _local(self) -> pathlib.Path:
    """Where this machine's own files go: the workdir, or with a remote one a temporary folder."""
    if not paths.is_remote(self.round.root):
      return self.round.root
    return pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))


def _endpoints_of(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Returns what the stages of a manifest say of endpoints, by identity; the last one counts."""
  return {
    facts["identity"]: facts
    for stage in manifest.get("stages", {}).values()
    for facts in stage.get("endpoints", {}).values()
    if "fingerprint" in facts
  }
