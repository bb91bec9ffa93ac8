# SPDX-License-Identifier: Apache-2.0
"""Putting the probes of a pack or of runs to a model that need not be of any run.

A model is named by a folder of weights, by the folder of a run, whose target is meant, or by
`endpoint:NAME` and `endpoint:FILE.yaml`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib

from ml_collections import ConfigDict
import numpy as np
import yaml

from auditdm_jax.audit import pack as pack_lib
from auditdm_jax.audit.answer import FeatureCache
from auditdm_jax.audit.ask import BankConfig, Model, ask
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.judge import Judge, JudgeConfig, open_judge
from auditdm_jax.audit.pack import Pack
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.audit.verify import default_jitter
from auditdm_jax.core import metrics, streams
from auditdm_jax.core.config import UserError, build
from auditdm_jax.models.weights import content_hash
from auditdm_jax.stages import asking
from auditdm_jax.stages import fresh as fresh_lib
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.remote import Remote, RemoteConfig, Remotes, RemoteText, check_names
from auditdm_jax.stages.results import Verified
from auditdm_jax.text.styles import Style
from auditdm_jax.vlm import load_vlm

ENDPOINT = "endpoint:"
_JITTERS = 4  # That `default_jitter` knows.
_MAX_YAML = 1 << 20


@dataclasses.dataclass(frozen=True)
class ReplayedProbe:
  """A probe of a comparison.

  Attributes:
    groups: its lines.
    unit: what probes that depend on one another share: their image, or the one it was made from.
    said: what the old model is known to say.
  """

  groups: tuple[str, ...]
  probe_id: str
  image_id: str
  unit: str
  question: str
  expected: str
  said: str


@dataclasses.dataclass(frozen=True)
class ProbeSet:
  """What two models are compared on.

  Attributes:
    rows: the probes.
    load: image_id -> u8[H,W,3].
    names: of modes.
    known: modes of the old model's audit; None = all.
    judge: compares answers.
    bank: how models are asked.
    style: of models in folders; None = their own.
    target: name and identity of the model that `said` is of.
    where: the probes are from.
  """

  rows: Sequence[ReplayedProbe]
  load: Callable[[str], np.ndarray]
  names: Mapping[str, str]
  known: Sequence[str] | None
  judge: Judge
  bank: BankConfig
  style: Style | None
  target: tuple[str, str]
  where: str


@dataclasses.dataclass(frozen=True)
class OpenedModel:
  """A model that can be asked."""

  name: str
  identity: str
  model: Model


def is_run(word: str) -> bool:
  """Whether an argument names the folder of a run."""
  return not word.startswith(ENDPOINT) and (pathlib.Path(word) / "manifest.json").is_file()


class Opener:
  """Opens the models that arguments name, each when it is needed."""

  def __init__(
    self, *, config: ConfigDict | None, runs: Mapping[str, Context], answers: str, dtype: str
  ):
    """Takes where endpoints are described.

    Args:
      config: has a section `endpoints`; None = no config.
      runs: the runs that are open, by their arguments.
      answers: folder of what endpoints answer.
      dtype: of models in folders.
    """
    self._runs, self._answers, self._dtype = runs, answers, dtype
    self._sections: dict[str, RemoteConfig] = {}
    for run in runs.values():
      self._sections |= run.settings.endpoints
    for name, section in (config.to_dict().get("endpoints", {}) if config else {}).items():
      self._sections[name] = build(RemoteConfig, section, name=f"config.endpoints.{name}")
    self._remotes: list[Remotes] = []

  def check(self, words: Sequence[str]) -> None:
    """Checks that arguments name something, before anything is loaded or asked.

    Raises:
      UserError: one does not.
    """
    for word in words:
      if word.startswith(ENDPOINT):
        self._section(word)
      elif word not in self._runs:
        self._check(word)

  def open(
    self, word: str, *, style: Style | None = None, as_in: Context | None = None
  ) -> OpenedModel:
    """Opens a model to ask it about images.

    Args:
      word: the argument.
      style: how a model in a folder is asked; None = as its origin says.
      as_in: a run as whose models it is asked.

    Raises:
      UserError: it names nothing, or an endpoint that cannot be used.
    """
    if word.startswith(ENDPOINT):
      remote = self._remote(word)
      _ = remote.proof
      return OpenedModel(remote.name, remote.identity, remote)
    if word in self._runs:
      models = self._runs[word].models
      return OpenedModel(models.target_name, models.identity(models.config.target), models.target)
    self._check(word)
    if as_in is not None:
      model = as_in.models.open(word)
      return OpenedModel(model.name, as_in.models.identity(word), model)
    vlm = load_vlm(word, dtype=self._dtype)
    vlm = vlm if style is None else dataclasses.replace(vlm, style=style)
    return OpenedModel(vlm.name, content_hash(word), vlm)

  def judge(self, config: JudgeConfig, word: str, audited: Mapping[str, str]) -> Judge:
    """Returns a judge by rules that asks the model which `word` names where they see a difference.

    Raises:
      UserError: as `open`, or it is one of the models whose answers are compared.
    """
    config = dataclasses.replace(config, model=word)
    if word.startswith(ENDPOINT):
      remote = self._remote(word)
      _ = remote.text_proof
      return open_judge(config, model=RemoteText(remote), identity=remote.identity, audited=audited)
    self._check(word)
    model = load_vlm(word, dtype=self._dtype)
    return open_judge(config, model=model, identity=content_hash(word), audited=audited)

  def close(self) -> None:
    """Closes the connections."""
    for remotes in self._remotes:
      remotes.close()

  def _remote(self, word: str) -> Remote:
    name, section = self._section(word)
    check_names({name: section})
    remotes = Remotes({name: section}, cache=self._answers)
    self._remotes.append(remotes)
    return remotes.open(name)

  def _section(self, word: str) -> tuple[str, RemoteConfig]:
    """The name and the section of an endpoint, of a config or of a file."""
    name = word.removeprefix(ENDPOINT)
    if name in self._sections:
      return name, self._sections[name]
    path = pathlib.Path(name)
    return path.stem, _read_section(path, self._sections)

  def _check(self, word: str) -> None:
    path = pathlib.Path(word)
    if (path / "pack.json").exists():
      raise UserError(f"{word} is a pack: --pack={word}, and MODEL as the argument")
    if not path.exists():
      raise UserError(
        f"{word}: no folder of a model or of a run; a model elsewhere is endpoint:NAME or"
        " endpoint:FILE.yaml"
      )


def _read_section(path: pathlib.Path, known: Mapping[str, RemoteConfig]) -> RemoteConfig:
  """Reads the file of an endpoint.

  Raises:
    UserError: there is none, or it is wrong.
  """
  if not path.is_file():
    names = f"; the config has {', '.join(known)}" if known else ""
    raise UserError(
      f"{ENDPOINT}{path}: no such file, and no endpoint of a config{names}; the file is YAML with"
      " the keys of config.endpoints.NAME, such as base_url and model"
    )
  try:
    with path.open(encoding="utf-8") as file:
      data = yaml.safe_load(file.read(_MAX_YAML))
  except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
    raise UserError(f"{path}: not YAML: {' '.join(str(e).split())[:200]}") from e
  return build(RemoteConfig, data, name=str(path))


# ------------------------------------------------------------------------------------- the probes


def from_pack(pack: Pack, *, where: str) -> ProbeSet:
  """Returns the probes of a pack, and as judge its rules."""
  header = pack.header
  return ProbeSet(
    rows=[
      ReplayedProbe(p.groups, p.probe_id, p.image_id, p.unit, p.question, p.expected, p.said)
      for p in pack.probes
    ],
    load=pack.load,
    names=pack.names,
    known=None,
    judge=open_judge(header.judge),
    bank=BankConfig(
      max_new_tokens=header.max_new_tokens, abstentions=header.abstentions, batch_size=128
    ),
    style=header.style,
    target=(header.target.name, header.target.identity),
    where=where,
  )


def from_runs(old: Context, new: Context | None) -> ProbeSet:
  """Returns the fresh probes of runs, in the modes of the first and in new ones of the second.

  They were drawn whatever the models say, so that neither is at an advantage. A mode of the second
  run counts if that confirmed it, and where no mode of the first covers its probes.

  Args:
    old: the run of the model that is compared with.
    new: a run of the other model; None = that model was not audited.

  Raises:
    UserError: there are no fresh probes.
  """
  runs = [old] if new is None or new is old else [old, new]
  taxonomies = [_verified(run).taxonomy for run in runs]
  counted = [{m.mode_id for m in taxonomies[0].modes}]
  counted += [
    {row.mode_id for row in _verified(run).modes if row.status == "confirmed"} for run in runs[1:]
  ]
  rows: dict[str, ReplayedProbe] = {}
  of: dict[str, Context] = {}  # The run that has an image.
  for run, taxonomy in zip(runs, taxonomies, strict=True):
    attempts, for_all = _fresh(run, taxonomy)
    groups = [pack_lib.CONTROLS if whatever else "" for whatever in for_all]
    for other, ids in [*zip(taxonomies, counted, strict=True)][::-1]:  # The first one's come last.
      found = other.match_attempts(attempts, run.gallery)
      groups = [m.mode_id if m and m.mode_id in ids else g for m, g in zip(found, groups)]
    for attempt, group in zip(attempts, groups, strict=True):
      if group and (row := _row(attempt, group)) is not None and row.probe_id not in rows:
        rows[row.probe_id] = row
        of.setdefault(row.image_id, run)
  if not rows:
    raise UserError(
      f"{old.folder.path}: no fresh probes to compare models on; with images in config.pool.fresh"
      " a run has them, and --pack=DIR needs none"
    )
  models = old.models
  return ProbeSet(
    rows=list(rows.values()),
    load=lambda image_id: of[image_id].images(image_id),
    names={m.mode_id: m.name for taxonomy in taxonomies[::-1] for m in taxonomy.modes},
    known=[pack_lib.CONTROLS, pack_lib.TOGETHER, *counted[0]],
    judge=old.judge,
    bank=old.settings.bank,
    style=None,
    target=(models.target_name, models.identity(models.config.target)),
    where=f"fresh questions of {', '.join(run.folder.path.name for run in runs)}",
  )


def _verified(run: Context) -> Verified:
  """What a run's stage verify found.

  Raises:
    UserError: nothing yet.
  """
  found = run.folder.done("verify", Verified)
  if found is None:
    raise UserError(f"{run.folder.path}: nothing is verified there yet")
  return found


def _fresh(run: Context, taxonomy: Taxonomy) -> tuple[list[Attempt], list[bool]]:
  """Fresh probes of a run, and whether each was asked whatever it is.

  They are asked now if the run asked none, as one without modes does.
  """
  if not run.settings.pool.fresh:
    return [], []
  run.pool("fresh")  # So that their images are found by id.
  drawn = fresh_lib.kept(run, run.folder, taxonomy)
  if drawn.attempts:
    return list(drawn.attempts), [p.for_all for p in drawn.probes]
  attempts = [a for a in asking.fresh_attempts(run) if a.verdict]
  return attempts, [True] * len(attempts)


def _row(attempt: Attempt, group: str) -> ReplayedProbe | None:
  """An attempt with a consensus as a probe of a line."""
  verdict, consensus, probe = attempt.verdict, attempt.consensus, attempt.probe
  if verdict is None or consensus is None:
    return None
  said = verdict.answers[verdict.target] or ""
  groups = (group,) if group == pack_lib.CONTROLS else (group, pack_lib.TOGETHER)
  return ReplayedProbe(
    groups, probe.probe_id, probe.image_id, probe.origin_id, probe.question, consensus, said
  )


# ------------------------------------------------------------------------------------- the answers


def answers(model: Model, probes: ProbeSet, *, jitter: Sequence[int] | None = None) -> list[str]:
  """Returns a model's short answer to each probe, "" where it gave none.

  Args:
    model: the model.
    probes: what it is asked.
    jitter: for each probe the number of the change that its image gets (`default_jitter`).
  """
  config, cache = probes.bank, FeatureCache(probes.bank.feature_bytes)
  ids = [
    row.image_id if jitter is None else f"{row.image_id}/{jitter[i]}"
    for i, row in enumerate(probes.rows)
  ]

  def load(image_id: str) -> np.ndarray:
    plain, _, change = image_id.partition("/")
    image = probes.load(plain)
    return default_jitter(image, int(change)) if change else image

  out: list[str] = []
  with metrics.Progress(len(ids), "answers") as progress:
    for start in range(0, len(ids), config.batch_size):
      rows = probes.rows[start : start + config.batch_size]
      seen = cache.seen(model, ids[start : start + config.batch_size], load)
      out += [a.text for a in ask(model, seen, [r.question for r in rows], config=config)]
      progress.update(len(out))
  return out


def two_jitters(probes: ProbeSet, *, seed: int) -> tuple[list[int], list[int]]:
  """Returns two changes for each image, never the same, drawn so that either may come first."""
  pairs: dict[str, tuple[int, int]] = {}
  for row in probes.rows:
    if row.image_id not in pairs:
      drawn = streams.rng(seed, "against itself", row.image_id).permutation(_JITTERS)
      pairs[row.image_id] = int(drawn[0]), int(drawn[1])
  first, second = zip(*(pairs[row.image_id] for row in probes.rows))
  return list(first), list(second)
