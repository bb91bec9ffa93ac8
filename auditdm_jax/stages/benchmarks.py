# SPDX-License-Identifier: Apache-2.0
"""The config of benchmarks, and what `predict`, `score`, `table` and `logs` open of it.

One config serves all four, and any of them may be run again: what is done is not done twice.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import time

from ml_collections import ConfigDict

from auditdm_jax.bench import predict as predict_lib
from auditdm_jax.bench import specs
from auditdm_jax.bench.items import BenchmarkItem, Items
from auditdm_jax.bench.predict import Questions
from auditdm_jax.bench.predictions import AskedBenchmark, ModelId, PredictionStore
from auditdm_jax.bench.results import BenchResult, ResultStore, find_metric
from auditdm_jax.bench.scorers import Metric
from auditdm_jax.bench.specs import Family, MetricName, OwnBenchmark, PromptSpec
from auditdm_jax.core import jsonio, paths, runtime
from auditdm_jax.core.config import UserError, build, check, did_you_mean
from auditdm_jax.models import weights
from auditdm_jax.stages.remote import RemoteConfig, Remotes, check_names
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.vlm import describe_vlm

LOGS = ("lmms-eval", "inspect")
_MIX = re.compile(r"(?<![a-z0-9])mix(?![a-z0-9])")
# Whose prompts a model is asked by, in order of preference: not every benchmark has them all.
_TRANSFER = (Family.TRANSFER, Family.MIX)
_OF_MIX = (Family.MIX, Family.TRANSFER)
# In tables; a ConfigDict has its keys in alphabetical order. Roles of other names come after these.
_ROLES = (
  *("baseline", "repaired", "control", "control_random", "control_mined", "larger", "sibling"),
)
_CHAT = (Family.LMMS_EVAL, Family.VLMEVALKIT)


@dataclasses.dataclass(frozen=True)
class BenchmarkEntry:
  """A benchmark to ask.

  Attributes:
    path: its folder or file, in any of its layouts.
    spec: one of the benchmarks here by name, "module:NAME" of a `BenchmarkSpec`, or the section of
      an `OwnBenchmark`; "" = the entry's own key is the name.
    split: "" = the one that is reported.
    models: {role: folder or endpoint} for this benchmark, as PaliGemma's transfers are one per
      task.
    family: whose prompts all models get: paligemma-transfer, paligemma-mix, chat or
      chat-vlmevalkit; "" = as config.families says, or else as each model's origin does.
    limit: most items, whole images of them, drawn by the seed; 0 = all.
    max_tokens: of an answer; 0 = the prompt's.
    metric: a metric of `bench.scorers`, or "module:FUNCTION" of (prediction, references) -> [0, 1];
      "" = the prompt's.
    variant: whose rules the metric follows: official, lmms-eval, vlmevalkit, big_vision or ours;
      "" = the prompt's.
  """

  path: str
  spec: str | OwnBenchmark = ""
  split: str = ""
  models: dict[str, str] = dataclasses.field(default_factory=dict)
  family: str = ""
  limit: int = 0
  max_tokens: int = 0
  metric: str = ""
  variant: str = ""

  def __post_init__(self):
    check(vars(self), "benchmark", "limit", "max_tokens", least=0)
    if self.family:
      family_of(self.family, where="benchmark.family")


@dataclasses.dataclass(frozen=True)
class BenchmarksConfig:
  """The config of `predict`, `score`, `table` and `logs`.

  Attributes:
    models: {role: folder or endpoint}; the roles' names are free.
    benchmarks: {key: what to ask}.
    baseline: the role that others are compared with; "" = "baseline" if there is one, or the first.
    families: {role: whose prompts it gets}, where its origin does not say.
    endpoints: {NAME: section} of models behind endpoints.
    mesh: {axis: size}, -1 = the rest of the devices.
    dtype: of parameters and computation.
    batch_size: questions that are asked and stored together.
    feature_bytes: of image features that are kept in memory.
    vae: file of PaliGemma's VAE, for masks; "" = none.
    draws: of the bootstrap and of permutation tests.
    seed: of these draws, and of the part that a limit leaves.
    logs: formats that `logs` writes: lmms-eval, inspect.
  """

  models: dict[str, str]
  benchmarks: dict[str, BenchmarkEntry]
  baseline: str = ""
  families: dict[str, str] = dataclasses.field(default_factory=dict)
  endpoints: dict[str, RemoteConfig] = dataclasses.field(default_factory=dict)
  mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
  dtype: str = "float32"
  batch_size: int = 512
  feature_bytes: int = 512 * 2**20
  vae: str = ""
  draws: int = 2_000
  seed: int = 0
  logs: tuple[str, ...] = ("lmms-eval",)

  def __post_init__(self):
    check(vars(self), "config", "batch_size", "feature_bytes", least=1)
    check(vars(self), "config", "draws", least=100)
    check(vars(self), "config", "seed", least=0, below=2**32)
    check_names(self.endpoints)
    if not self.benchmarks:
      raise UserError("config.benchmarks is empty: name one at least")
    if not self.roles:
      raise UserError("config.models is empty: name one model at least")
    for name, spec in self.models.items():
      if not spec.strip():
        raise UserError(f"config.models.{name} is empty")
    for role, family in self.families.items():
      self.check_role(role, "config.families")
      family_of(family, where=f"config.families.{role}")
    unknown = [name for name in self.logs if name not in LOGS]
    if unknown:
      raise UserError(f"config.logs: no format {unknown[0]!r}; formats: {', '.join(LOGS)}")
    if self.baseline:
      self.check_role(self.baseline, "config.baseline")

  @property
  def roles(self) -> tuple[str, ...]:
    """All roles, those of single benchmarks too, in the order of a table."""
    own = (role for entry in self.benchmarks.values() for role in entry.models)
    named = dict.fromkeys((*self.models, *own))
    return (*(r for r in _ROLES if r in named), *(r for r in named if r not in _ROLES))

  @property
  def compared_with(self) -> str:
    """The role of the baseline."""
    return self.baseline or next(iter(self.roles))

  def check_role(self, role: str, where: str) -> None:
    """Raises a UserError if there is no such role."""
    if role not in self.roles:
      raise UserError(
        f"{where}: no model {role!r}{did_you_mean(role, self.roles)}; {', '.join(self.roles)}"
      )

  def models_of(self, key: str) -> dict[str, str]:
    """Returns {role: folder or endpoint} of a benchmark."""
    return {**self.models, **self.benchmarks[key].models}


def family_of(name: str, *, where: str) -> Family:
  """Returns the family of a name.

  Raises:
    UserError: there is none.
  """
  try:
    return Family(name)
  except ValueError:
    known = [str(x) for x in Family]
    raise UserError(
      f"{where}: no family {name!r}{did_you_mean(name, known)}; {', '.join(known)}"
    ) from None


def _identity(folder: str) -> str:
  """Returns what tells apart what models in folders say: weights, and how they are used."""
  model = describe_vlm(folder)
  ways = [model.config, model.template, model.stop_ids, model.pixels]
  files = weights.side_files(weights.side_folder(folder))
  side = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
  return jsonio.canonical_hash([weights.content_hash(folder), ways, side])


class BenchRun:
  """One config and one folder, whose manifest it writes."""

  def __init__(self, config: ConfigDict, workdir: str | os.PathLike, stage: str):
    """Reads the config and finds the benchmarks; opens no data and no model."""
    self.config, self._stage = config, stage
    self.settings = build(BenchmarksConfig, config, name="config")
    self.specs = {
      key: specs.find(entry.spec or key, where=f"config.benchmarks.{key}.spec")
      if isinstance(entry.spec, str)
      else entry.spec.spec()
      for key, entry in self.settings.benchmarks.items()
    }
    self.folder = RunFolder(workdir, config_hash=jsonio.canonical_hash(config.to_dict()))
    self.predictions = PredictionStore(self.folder.path)
    self.results = ResultStore(self.folder.path)
    self.remotes = Remotes(self.settings.endpoints, cache=self.folder.path / "endpoints")
    self._stack = contextlib.ExitStack()
    self._start = time.perf_counter()
    self._items = functools.cache(self._open)
    self._identity = functools.cache(_identity)
    self._metric = functools.cache(
      lambda name, where, part: find_metric(name, where=where, vae=self.settings.vae, part=part)
    )

  def __enter__(self) -> "BenchRun":
    if runtime.is_main():
      self._stack.enter_context(self.folder.locked())
      self.folder.manifest.record(
        self._stage,
        config=self.config.to_dict(),
        seeds={"seed": self.settings.seed},
        models={key: self.settings.models_of(key) for key in self.settings.benchmarks},
        devices=runtime.describe_devices(),
      )
    return self

  def __exit__(self, *exc: object) -> None:
    usage, facts = self.remotes.usage(), self.remotes.facts()
    self.remotes.close()
    self._stack.close()
    if runtime.is_main():
      seconds = round(time.perf_counter() - self._start, 1)
      self.folder.manifest.add_cost(self._stage, **usage, seconds=seconds)
      if facts:
        self.folder.manifest.note(self._stage, "endpoints", facts)

  def model(self, spec: str, *, where: str) -> ModelId:
    """Returns what tells a model apart; a folder's weights are read for it, once.

    Raises:
      UserError: it is neither a folder nor an endpoint.
    """
    if spec in self.remotes:
      return ModelId(name=spec, identity=self.remotes.identity(spec))
    if not paths.as_path(spec).exists():
      names = self.remotes.names()
      known = f"the endpoints are {', '.join(names)}" if names else "there are no endpoints"
      raise UserError(
        f"{where}: the model {spec!r} is neither a folder nor an endpoint of"
        f" config.endpoints{did_you_mean(spec, names)}; {known}"
      )
    return ModelId(name=pathlib.Path(spec).resolve().name, identity=self._identity(spec))

  def family(self, key: str, role: str, spec: str) -> Family:
    """Returns whose prompts a model gets at a benchmark."""
    entry, benchmark = self.settings.benchmarks[key], self.specs[key]
    said = entry.family or self.settings.families.get(role, "")
    if said:
      return family_of(said, where=f"config.families.{role}")
    known = _families(spec, is_remote=spec in self.remotes)
    return next((f for f in known if f in benchmark.prompts), known[0])

  def questions(
    self, key: str, family: Family, *, asked: AskedBenchmark | None = None
  ) -> Questions:
    """Returns what is asked of a benchmark.

    Args:
      key: of config.benchmarks.
      family: whose prompt.
      asked: what was asked; the same items and limit are opened again. None = as the config says.

    Raises:
      UserError: the data is not there, or the benchmark has no prompt for this family.
    """
    entry, spec = self.settings.benchmarks[key], self.specs[key]
    split = asked.split if asked else entry.split or spec.split
    limit, seed = (asked.limit, asked.seed) if asked else (entry.limit, self.settings.seed)
    items, total = self._items(key, split, limit, seed)
    prompt = asked.prompt if asked else spec.prompt(family)
    return Questions(
      entry=key,
      spec=spec,
      items=items,
      split=split,
      total=total,
      family=family,
      prompt=prompt,
      max_tokens=asked.max_tokens if asked else entry.max_tokens or prompt.max_tokens,
      limit=limit,
      seed=seed,
    )

  def opened(self, key: str, split: str = "") -> Items:
    """Returns the items of a split, all of them."""
    entry, spec = self.settings.benchmarks[key], self.specs[key]
    if not entry.path.strip():
      raise UserError(f"config.benchmarks.{key}.path is empty: name the folder of the data")
    return spec.open(entry.path, split or entry.split or spec.split)

  def metric_name(self, key: str, prompt: PromptSpec) -> MetricName:
    """Returns how a benchmark is scored: as its prompt says, but for what the config overrides."""
    entry = self.settings.benchmarks[key]
    own = MetricName(name=entry.metric, variant="own") if ":" in entry.metric else prompt.metric
    return MetricName(name=entry.metric or own.name, variant=entry.variant or own.variant)

  def metric(self, key: str, name: MetricName, *, part: bool) -> Metric:
    """Returns a metric by name; of a part of a split, CIDEr is another."""
    return self._metric(name, f"config.benchmarks.{key}.metric", part)

  def _open(
    self, key: str, split: str, limit: int, seed: int
  ) -> tuple[Sequence[BenchmarkItem], int]:
    items = self.opened(key, split)
    places = predict_lib.part(items, limit, spec=self.specs[key], seed=seed)
    return (items if len(places) == len(items) else PartOfItems(items, places)), len(items)

  def latest(self) -> list[dict[str, BenchResult]]:
    """Returns per row of the table the latest result of each role, of the model that it has now.

    A benchmark has a row for the metrics of its prompts, and one for each metric that the config
    once named instead.

    Raises:
      UserError: nothing is scored.
    """
    found: dict[tuple[str, str], dict[str, BenchResult]] = {}
    now = {(x.entry, x.role): x.what for x in self.predictions.asked() if self.has(x)}
    for head in self.results.heads():
      if now.get((head.asked.entry, head.asked.role)) == head.asked.what:
        label = f"{head.metric.name}/{head.metric.variant}" if head.override else ""
        found.setdefault((head.asked.entry, label), {})[head.asked.role] = head
    if not found:
      raise UserError(f"{self.folder.path}: nothing of this config is scored; run score first")
    known = [spec.name for spec in (*specs.SPECS, *specs.SUITE)]

    def place(key: tuple[str, str]) -> tuple[int, str, str]:
      name = self.specs[key[0]].name
      return known.index(name) if name in known else len(known), *key

    return [found[key] for key in sorted(found, key=place)]

  def has(self, asked: AskedBenchmark) -> bool:
    """Returns whether the config names a benchmark and the role of its model."""
    known = self.settings.benchmarks
    return asked.entry in known and asked.role in self.settings.models_of(asked.entry)

  def entries(self) -> Iterator[tuple[str, str, str]]:
    """Yields (key of the benchmark, role, folder or endpoint), the same model in a row."""
    rows = [
      (key, role, spec)
      for key in self.settings.benchmarks
      for role, spec in self.settings.models_of(key).items()
    ]
    order = list(dict.fromkeys(spec for _, _, spec in rows))
    yield from sorted(rows, key=lambda row: order.index(row[2]))


class PartOfItems(Sequence[BenchmarkItem]):
  """Some of the items of a split."""

  def __init__(self, items: Sequence[BenchmarkItem], places: Sequence[int]):
    self._items, self._places = items, places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, i):
    if isinstance(i, slice):
      return PartOfItems(self._items, self._places[i])
    return self._items[self._places[i]]


def _families(spec: str, *, is_remote: bool) -> tuple[Family, ...]:
  """Returns the families of a model by its origin; an endpoint is a chat model."""
  if is_remote or weights.open_model(spec).config.kind != "paligemma":
    return _CHAT
  name = pathlib.Path(spec).resolve().name.lower()
  return _OF_MIX if _MIX.search(name) else _TRANSFER
