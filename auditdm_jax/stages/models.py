# SPDX-License-Identifier: Apache-2.0
"""The models of a run: folders, loaded when they are first asked for, and endpoints."""

from collections import Counter
from collections.abc import Mapping
import copy
import dataclasses
import functools
import os
import pathlib

import jax
from jax.sharding import Mesh

from auditdm_jax.audit.answer import FeatureCache, Heard, ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.judge import Judge, open_judge
from auditdm_jax.audit.judging.model import TextModel
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import paths, runtime
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.models import sharding
from auditdm_jax.models.multimodal import Params
from auditdm_jax.models.weights import content_hash
from auditdm_jax.stages.noisy import Noisy
from auditdm_jax.stages.paging import Paged, Turns
from auditdm_jax.stages.remote import Remote, Remotes, RemoteText
from auditdm_jax.stages.sections import AuditConfig, ModelsConfig
from auditdm_jax.stages.talking import Talking
from auditdm_jax.text import styles
from auditdm_jax.vlm import Vlm, load_vlm

_TINY = 1 << 23  # Bytes of a model's files.

Local = Vlm | Paged | Talking
Answering = Local | Noisy | Remote


class Models:
  """Auditor, target, references, sibling and judge; and the banks that ask them.

  Attributes:
    config: config.models.
    cache: image features of every tower in use.
    judge: decides whether answers are the same.
  """

  def __init__(self, settings: AuditConfig, *, remotes: Remotes, replies: pathlib.Path):
    """Opens the judge; the others are opened when they are first asked for.

    Args:
      settings: the config.
      remotes: the endpoints that roles may name.
      replies: where those of the judge's model are kept.

    Raises:
      UserError: a role names neither a folder nor an endpoint, or one of the wrong kind.
    """
    self.config: ModelsConfig = settings.models
    self.cache = FeatureCache(settings.bank.feature_bytes)
    self._bank: BankConfig = settings.bank
    self._mesh, self._rollout_mesh = settings.mesh, settings.rollout_mesh
    self._repair_mesh = settings.repair_mesh
    self._turns = Turns()
    self._voice, self._noise = settings.world.talk, settings.world.noise
    self._banks: list[ModelBank] = []
    self._counted: Counter[str] = Counter()  # Of banks that are no longer there.
    self._styles: dict[str, styles.Style] = {}
    self._remotes, self._heldout = remotes, settings.rollout.gauges.heldout
    self._reader = settings.rollout.surrogate.reader
    self._outside = settings.verify.model
    self._named_by = _named_by(settings)
    if all(map(_is_tiny, self._named_by)):
      runtime.use_one_thread()
    self.judge = self._open_judge(settings, replies)

  def with_target(self, settings: AuditConfig) -> "Models":
    """Returns the models of a later round of the run, whose target and auditor are others.

    Target and auditor of this one make room for them, and are loaded again if they are asked for.
    """
    _ = self.references  # All rounds have the same.
    self._counted, self._styles, self._banks = self.answers(), self.styles(), []
    for role in ("auditor", "reader", "weights", "target"):  # The auditor may be the reader.
      vars(self).pop(role, None)
    other = copy.copy(self)
    other.config, other._bank, other._banks = settings.models, settings.bank, []
    other._counted, other._styles, other._named_by = Counter(), {}, _named_by(settings)
    return other

  @functools.cached_property
  def auditor(self) -> Vlm:
    """Its parameters are the fp32 masters' first values, whatever it computes in.

    The tower is on the devices; the rest, of which a learner has copies, waits on the host.
    """
    with paths.reading(self.config.auditor) as local:
      vlm = load_vlm(local, mesh=self.rollout_mesh)
    rest = {part: runtime.fetch(x) for part, x in vlm.params.items() if part != "img"}
    vlm = vlm.with_params({**vlm.params, **rest})
    return dataclasses.replace(vlm, config=vlm.config.with_dtype(self.config.dtype))

  @functools.cached_property
  def weights(self) -> Vlm:
    """The target with its weights, to repair it.

    Raises:
      UserError: it is an endpoint.
    """
    if self.target_is_remote:
      raise UserError(
        f"config.models.target: {self.config.target} is an endpoint, which can be audited but not"
        " repaired; a repair needs the folder of its weights"
      )
    return self.load(self.config.target)

  @property
  def target_is_remote(self) -> bool:
    """Whether the target is an endpoint, whose weights are not here."""
    return self.config.target in self._remotes

  @property
  def target_name(self) -> str:
    """What records and tables call the target."""
    return self.name_of(self.config.target)

  def name_of(self, spec: str) -> str:
    """Returns what a model is called: an endpoint by its name, a folder by its last part."""
    return _name(spec)

  @property
  def sibling_name(self) -> str:
    """What tables call the sibling; "" if there is none."""
    return _name(self.config.sibling) if self.config.sibling else ""

  @functools.cached_property
  def target(self) -> Answering:
    if self.target_is_remote:
      return self._remotes.open(self.config.target)
    return self.answering(self.weights)

  @functools.cached_property
  def sibling(self) -> Answering | None:
    return self.open(self.config.sibling) if self.config.sibling else None

  @functools.cached_property
  def references(self) -> dict[str, Answering]:
    opened = [self.open(spec, int8=self.config.int8) for spec in self.config.references]
    return {model.name: self._erring(model) for model in opened}

  @functools.cached_property
  def heldout(self) -> Answering | None:
    """The model outside the ensemble that the gauges of training ask."""
    return self.open(self._heldout) if self._heldout else None

  @functools.cached_property
  def reader(self) -> Vlm | None:
    """The model in whose states the surrogate finds questions alike; None where a net picks."""
    spec = self.config.auditor if self._reader == "auditor" else self._reader
    return self.load(spec) if spec else None

  def _erring(self, model: Answering) -> Answering:
    """Returns a reference that errs as the config says; endpoints err by themselves."""
    if isinstance(model, Vlm | Paged) and self._noise.errs:
      return Noisy(model, self._noise, self.cache)
    return model

  def open(self, spec: str, *, int8: bool = False) -> Answering:
    """Opens a model as it is to be asked.

    Args:
      spec: a folder, or the name of an endpoint.
      int8: the decoder of a folder gets int8 weights; an endpoint has its own.

    Raises:
      UserError: it is neither.
    """
    if spec in self._remotes:
      return self._remotes.open(spec)
    return self.answering(self.load(spec, int8=int8))

  def identity(self, spec: str) -> str:
    """Returns what tells models apart: of weights, or of an endpoint, its model and revision."""
    if spec in self._remotes:
      return self._remotes.identity(spec)
    self.check_is_there(spec)
    return content_hash(spec)

  def prepare(self) -> None:
    """Proves all endpoints that roles name, before anything is spent.

    Those that are asked about images must see them, and all must answer.

    Raises:
      BlindEndpoint: one does not see.
      EndpointDown, EndpointRefused, BudgetSpent: see `endpoints.failures`.
    """
    ensemble = (self.config.target, *self.config.references)
    models = (*ensemble, self.config.sibling, self._heldout, self._outside)
    for name in filter(self._remotes.__contains__, models):
      _ = self._remotes.open(name).proof
    if self.judge.config.model in self._remotes:
      _ = self._remotes.open(self.judge.config.model).text_proof

  def _open_judge(self, settings: AuditConfig, replies: pathlib.Path) -> Judge:
    """Opens the judge; the replies of one with a model of its own are kept.

    Raises:
      UserError: its model is one of those that are audited, and the config does not allow it.
    """
    config, models = settings.judge, settings.models
    if not config.model:
      return open_judge(config)
    roles = {"target": models.target, "auditor": models.auditor}
    roles |= {f"reference {spec}": spec for spec in models.references}
    remote = config.model in self._remotes
    # An endpoint is none of the folders, whose weights need not be read then.
    alike = {role: s for role, s in roles.items() if (s in self._remotes) == remote}
    identity = self.identity(config.model)
    return open_judge(
      config,
      model=self.text_model(config.model),
      identity=identity,
      audited={role: self.identity(spec) for role, spec in alike.items()},
      kept=replies,
    )

  def text_model(self, spec: str) -> TextModel:
    """Opens a model that answers prompts without images: a folder, or the name of an endpoint."""
    if spec in self._remotes:
      return RemoteText(self._remotes.open(spec))
    self.check_is_there(spec)
    return load_vlm(spec, mesh=self.rollout_mesh, dtype=self.config.dtype)

  def check_is_there(self, spec: str | os.PathLike) -> None:
    """Checks that a folder is there.

    Raises:
      UserError: it is not, and no endpoint has this name either.
    """
    if not paths.as_path(spec).exists():
      names = self._remotes.names()
      known = f"the endpoints are {', '.join(names)}" if names else "there are no endpoints"
      keys = ", ".join(self._named_by.get(os.fspath(spec), ())) or "config"
      raise UserError(
        f"{keys}: the model {os.fspath(spec)!r} is neither a folder nor an endpoint of"
        f" config.endpoints{did_you_mean(os.fspath(spec), names)}; {known}"
      )

  def load(self, path: str | os.PathLike, *, int8: bool = False) -> Vlm:
    """Loads a folder's model that answers: on the devices, or on the host if models take turns."""
    self.check_is_there(path)
    with paths.reading(path) as local:
      vlm = load_vlm(local, mesh=self.rollout_mesh, dtype=self.config.dtype)
    vlm = dataclasses.replace(vlm, style=self._bank.style_of(vlm.name, vlm.style))
    vlm = vlm.with_int8() if int8 else vlm
    return vlm.with_params(runtime.fetch(vlm.params)) if self.config.paged else vlm

  def auditor_params(self, folder: os.PathLike | None, *, dtype: str = "float32") -> Params:
    """Loads the parameters of a stored auditor, or of the untrained one (None), on the devices.

    They are split as those of the models that answer.
    """
    with paths.reading(self.config.auditor if folder is None else folder) as local:
      return load_vlm(local, mesh=self.rollout_mesh, dtype=dtype).params

  def answering(self, vlm: Local) -> Local:
    """Returns a model as it is to be asked: in its turn, or talking, if models do so."""
    if self.config.paged and isinstance(vlm, Vlm):
      vlm = Paged(vlm, self._turns)
    if isinstance(vlm, Talking) or not self._voice.talks:
      return vlm
    return Talking(vlm, self._voice, self._bank.style_of(vlm.name, styles.BARE))

  def bank(self, target: Answering | None = None, *, heard: Heard | None = None) -> ModelBank:
    """Returns a bank of the references and `target` (default: the config's), see `prepare`.

    What `heard` has, which these models answered elsewhere, they are not asked again.
    """
    self.prepare()
    asked = self.target if target is None else target
    asked = asked if isinstance(asked, Remote | Noisy) else self.answering(asked)
    bank = ModelBank(
      {asked.name: asked, **self.references},
      asked.name,
      list(self.references),
      judge=self.judge,
      config=self._bank,
      cache=self.cache,
      heard=heard,
    )
    self._banks.append(bank)
    return bank

  def answers(self) -> Counter[str]:
    """Returns counts by "answers/MODEL", and by "KIND/MODEL" of replies that were no answers."""
    counts = Counter(self._counted)
    for bank in self._banks:
      counts.update({f"answers/{model}": n for model, n in bank.computed.items()})
      for model, kinds in bank.kinds.items():
        counts.update({f"{kind}/{model}": n for kind, n in kinds.items() if kind != "answer"})
    return counts

  def styles(self) -> dict[str, styles.Style]:
    """Returns how each model was asked."""
    own = {name: model.style for bank in self._banks for name, model in bank.vlms.items()}
    return self._styles | own

  @functools.cached_property
  def mesh(self) -> Mesh | None:
    """The mesh of the config; None on one device."""
    mesh = mesh_lib.make_mesh(self._mesh)
    return mesh if mesh.size > 1 else None

  @functools.cached_property
  def rollout_mesh(self) -> Mesh | None:
    """The same devices for sampling and answering, in a layout of their own if the config has one;
    None on one device.
    """
    return self._in_layout(self._rollout_mesh)

  @functools.cached_property
  def repair_mesh(self) -> Mesh | None:
    """Likewise for the repair."""
    return self._in_layout(self._repair_mesh)

  def _in_layout(self, shape: Mapping[str, int]) -> Mesh | None:
    """The devices of `mesh` with other axes, or `mesh` if there are none."""
    if self.mesh is None or not shape:
      return self.mesh
    return mesh_lib.reshaped(self.mesh, shape)

  def place(self, params: Params) -> Params:
    """Puts an auditor's parameters from the host on the devices, as the sampler has them."""
    mesh = self.rollout_mesh
    if mesh is None:
      return jax.device_put(params)
    return runtime.place(params, sharding.shardings(mesh, params))


def _named_by(settings: AuditConfig) -> dict[str, list[str]]:
  """Returns the keys of the config that name each model."""
  models, verify = settings.models, settings.verify
  named = [
    ("models.auditor", models.auditor),
    ("models.target", models.target),
    *(("models.references", spec) for spec in models.references),
    ("models.sibling", models.sibling),
    ("rollout.gauges.heldout", settings.rollout.gauges.heldout),
    ("rollout.surrogate.reader", settings.rollout.surrogate.reader),
    ("judge.model", settings.judge.model),
    ("verify.model", verify.model),
    ("verify.paraphraser", verify.paraphraser),
  ]
  keys: dict[str, list[str]] = {}
  for key, spec in named:
    keys.setdefault(spec, []).append(f"config.{key}")
  return keys


def _is_tiny(spec: str) -> bool:
  """Returns whether no large model is loaded for what a role names."""
  if not spec or paths.is_remote(spec):
    return not spec
  path = pathlib.Path(spec)
  files = path.iterdir() if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files if file.is_file()) < _TINY


def _name(spec: str) -> str:
  """Returns what a model is called: an endpoint by its name, a folder by its last part."""
  return pathlib.Path(spec).resolve().name
