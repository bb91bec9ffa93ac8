# SPDX-License-Identifier: Apache-2.0
"""The models of a run, each loaded when it is first asked for, on the meshes of the config."""

from collections import Counter
import dataclasses
import functools
import os

import jax
from jax.sharding import Mesh

from auditdm_jax.audit.answer import FeatureCache, ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.judge import Judge
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import paths, runtime
from auditdm_jax.models import sharding
from auditdm_jax.models.multimodal import Params
from auditdm_jax.stages.paging import Paged, Turns
from auditdm_jax.stages.sections import AuditConfig, ModelsConfig
from auditdm_jax.stages.talking import Talking
from auditdm_jax.text import styles
from auditdm_jax.vlm import Vlm, load_vlm

Answering = Vlm | Paged | Talking


class Models:
  """Auditor, target, references and sibling; and the banks that ask them.

  Attributes:
    config: config.models.
    cache: image features of every tower in use.
  """

  def __init__(self, settings: AuditConfig, *, judge: Judge):
    self.config: ModelsConfig = settings.models
    self.cache = FeatureCache(settings.bank.feature_bytes)
    self._bank: BankConfig = settings.bank
    self._mesh, self._rollout_mesh = settings.mesh, settings.rollout_mesh
    self._judge, self._turns = judge, Turns()
    self._voice = settings.world.talk
    self._banks: list[ModelBank] = []

  @functools.cached_property
  def auditor(self) -> Vlm:
    """Its parameters are the fp32 masters' first values, whatever it computes in.

    The tower is on the devices; the rest, of which a learner has copies, waits on the host.
    """
    vlm = load_vlm(self.config.auditor, mesh=self.rollout_mesh)
    rest = {part: runtime.fetch(x) for part, x in vlm.params.items() if part != "img"}
    vlm = vlm.with_params({**vlm.params, **rest})
    return dataclasses.replace(vlm, config=vlm.config.with_dtype(self.config.dtype))

  @functools.cached_property
  def target(self) -> Vlm:
    return self.load(self.config.target)

  @functools.cached_property
  def sibling(self) -> Vlm | None:
    return self.load(self.config.sibling) if self.config.sibling else None

  @functools.cached_property
  def references(self) -> dict[str, Answering]:
    loaded = [
      self.answering(self.load(path, int8=self.config.int8)) for path in self.config.references
    ]
    return {vlm.name: vlm for vlm in loaded}

  def load(self, path: str | os.PathLike, *, int8: bool = False) -> Vlm:
    """Loads a model that answers: on the devices, or on the host if models take turns."""
    vlm = load_vlm(path, mesh=self.rollout_mesh, dtype=self.config.dtype)
    vlm = dataclasses.replace(vlm, style=self._bank.style_of(vlm.name, vlm.style))
    vlm = vlm.with_int8() if int8 else vlm
    return vlm.with_params(runtime.fetch(vlm.params)) if self.config.paged else vlm

  def auditor_params(self, folder: os.PathLike | None, *, dtype: str = "float32") -> Params:
    """Loads the parameters of a stored auditor, or of the untrained one (None), on the devices.

    They are split as those of the models that answer.
    """
    if folder is None:
      return load_vlm(self.config.auditor, mesh=self.rollout_mesh, dtype=dtype).params
    with paths.reading(folder) as local:
      return load_vlm(local, mesh=self.rollout_mesh, dtype=dtype).params

  def answering(self, vlm: Answering) -> Answering:
    """Returns a model as it is to be asked: in its turn, or talking, if models do so."""
    if self.config.paged and isinstance(vlm, Vlm):
      vlm = Paged(vlm, self._turns)
    if isinstance(vlm, Talking) or not self._voice.talks:
      return vlm
    return Talking(vlm, self._voice, self._bank.style_of(vlm.name, styles.BARE))

  def bank(self, target: Vlm | None = None) -> ModelBank:
    """Returns a bank of the references and `target` (default: the config's)."""
    target = target or self.target
    bank = ModelBank(
      {target.name: self.answering(target), **self.references},
      target.name,
      list(self.references),
      judge=self._judge,
      config=self._bank,
      cache=self.cache,
    )
    self._banks.append(bank)
    return bank

  def answers(self) -> Counter[str]:
    """Returns counts by "answers/MODEL", and by "KIND/MODEL" of replies that were no answers."""
    counts: Counter[str] = Counter()
    for bank in self._banks:
      counts.update({f"answers/{model}": n for model, n in bank.computed.items()})
      for model, kinds in bank.kinds.items():
        counts.update({f"{kind}/{model}": n for kind, n in kinds.items() if kind != "answer"})
    return counts

  def styles(self) -> dict[str, styles.Style]:
    """Returns how each model was asked."""
    return {name: model.style for bank in self._banks for name, model in bank.vlms.items()}

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
    if self.mesh is None or not self._rollout_mesh:
      return self.mesh
    return mesh_lib.reshaped(self.mesh, self._rollout_mesh)

  def place(self, params: Params) -> Params:
    """Puts an auditor's parameters from the host on the devices, as the sampler has them."""
    mesh = self.rollout_mesh
    if mesh is None:
      return jax.device_put(params)
    whole = mesh_lib.row_axes(mesh) if mesh is not self.mesh else ()
    return runtime.place(params, sharding.shardings(mesh, params, whole=whole))
