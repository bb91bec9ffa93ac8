# SPDX-License-Identifier: Apache-2.0
"""What the stages share: a config's models, pools, world, image service and files, opened once."""

from collections import Counter
import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit import skills
from auditdm_jax.audit.answer import FeatureCache, ModelBank
from auditdm_jax.audit.judge import Judge
from auditdm_jax.core import manifest, runtime, store
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError, build
from auditdm_jax.images import process
from auditdm_jax.images.client import ImageClient
from auditdm_jax.models import sharding
from auditdm_jax.models.multimodal import Params
from auditdm_jax.stages import sections, shared
from auditdm_jax.stages.paging import Paged, Turns
from auditdm_jax.stages.talking import Talking
from auditdm_jax.stages.worlds import World, open_world
from auditdm_jax.text import styles
from auditdm_jax.vlm import Vlm, load_vlm


class InMemoryPool:
  """A pool whose rows are read once, as far as they fit; ids are hashed once.

  Of several processes each reads its share of the rows; it reads others where they are needed.
  """

  def __init__(self, pool: pool_lib.ImagePool, *, cache_bytes: int):
    self.split, self._pool = pool.split, pool
    self._images: dict[int, np.ndarray] = {}
    self._asked: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    ids, room = [], cache_bytes
    for i in runtime.mine(range(len(pool))):
      image = pool.image(i)
      ids.append(store.Images.id_of(image))
      self._asked[i] = pool.questions(i), pool.answers(i)
      room -= image.nbytes
      if room >= 0:
        self._images[i] = image
    shares = runtime.gather(ids)
    self._ids = [shares[i % len(shares)][i // len(shares)] for i in range(len(pool))]

  def __len__(self) -> int:
    return len(self._ids)

  def image(self, i: int) -> np.ndarray:
    return self._images[i] if i in self._images else self._pool.image(i)

  def image_id(self, i: int) -> str:
    return self._ids[i]

  def questions(self, i: int) -> tuple[str, ...]:
    return self._asked[i][0] if i in self._asked else self._pool.questions(i)

  def answers(self, i: int) -> tuple[str, ...]:
    return self._asked[i][1] if i in self._asked else self._pool.answers(i)


class ImageSource:
  """image_id -> u8[H,W,3] from the pools, else from the store of made images."""

  def __init__(self, made: store.Images):
    self.made = made
    self._known: dict[str, np.ndarray] = {}
    self._rows: dict[str, tuple[InMemoryPool, int]] = {}

  def add_pool(self, pool: InMemoryPool) -> None:
    self._rows |= {pool.image_id(i): (pool, i) for i in range(len(pool))}

  def put(self, image: np.ndarray) -> str:
    """Stores a made image and returns its id."""
    image_id = self.made.put(image)
    self._known[image_id] = image
    return image_id

  def __call__(self, image_id: str) -> np.ndarray:
    if image_id in self._rows:
      pool, i = self._rows[image_id]
      return pool.image(i)
    found = self._known.get(image_id)
    return self.made.get(image_id) if found is None else found


class Context:
  """Everything a stage opens, from one config and one workdir, whose manifest it writes."""

  def __init__(self, config: ConfigDict, workdir: str | os.PathLike, stage: str):
    self.config, self.workdir, self._stage = config, store.as_path(workdir), stage
    self.workdir.mkdir(parents=True, exist_ok=True)
    self.settings = build(sections.AuditConfig, config, name="config")
    self.models = self.settings.models
    self.world: World = open_world(self.settings.world.name, self.settings.world.gaps)
    self.images = ImageSource(store.Images(self.workdir / "images"))
    self._stack = contextlib.ExitStack()
    self._turns = Turns()
    self._pools: dict[str, InMemoryPool] = {}
    self._true_answers: dict[tuple[str, str], str | None] = {}
    self._banks: list[ModelBank] = []
    self._start = time.perf_counter()

  def __enter__(self) -> "Context":
    if runtime.is_main():
      self._lock()
      models = dataclasses.asdict(self.models)
      self._manifest.record(
        self._stage, config=self.config.to_dict(), seeds={"seed": self.settings.seed},
        models={role: models[role] for role in ("auditor", "target", "references", "sibling")},
        devices=runtime.describe_devices(),
      )  # fmt: skip
    return self

  def __exit__(self, *exc) -> None:
    self._stack.close()
    if runtime.is_main():
      cost: Counter[str] = Counter()
      for bank in self._banks:
        cost.update({f"answers/{model}": n for model, n in bank.computed.items()})
        for model, kinds in bank.kinds.items():
          cost.update({f"{kind}/{model}": n for kind, n in kinds.items() if kind != "answer"})
      seconds = round(time.perf_counter() - self._start, 1)
      self._manifest.add_cost(self._stage, **cost, seconds=seconds)
      asked = {name: m.style for bank in self._banks for name, m in bank.vlms.items()}
      self._manifest.note(self._stage, "styles", asked)

  def _lock(self) -> None:
    """Until the end nobody else on this machine writes here."""
    if store.is_remote(self.workdir):
      return
    lock = self._stack.enter_context(open(self.workdir / ".lock", "w"))
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(f"{self.workdir}: another process is at work there") from e
    except OSError:  # Some network file systems have no locks.
      pass

  @functools.cached_property
  def _manifest(self) -> manifest.Manifest:
    return manifest.Manifest(self.workdir)

  @functools.cached_property
  def judge(self) -> Judge:
    return Judge(self.settings.judge)

  @functools.cached_property
  def cache(self) -> FeatureCache:
    """Image features of every tower in use."""
    return FeatureCache(self.settings.bank.feature_bytes)

  @functools.cached_property
  def auditor(self) -> Vlm:
    """Its parameters are the fp32 masters' first values, whatever it computes in.

    The tower is on the devices; the rest, of which a learner has copies, waits on the host.
    """
    vlm = load_vlm(self.models.auditor, mesh=self.rollout_mesh)
    rest = {part: runtime.fetch(x) for part, x in vlm.params.items() if part != "img"}
    vlm = vlm.with_params({**vlm.params, **rest})
    return dataclasses.replace(vlm, cfg=vlm.cfg.with_dtype(self.models.dtype))

  @functools.cached_property
  def target(self) -> Vlm:
    return self.load(self.models.target)

  @functools.cached_property
  def sibling(self) -> Vlm | None:
    return self.load(self.models.sibling) if self.models.sibling else None

  @functools.cached_property
  def references(self) -> dict[str, Vlm | Paged | Talking]:
    loaded = [
      self.answering(self.load(path, int8=self.models.int8)) for path in self.models.references
    ]
    return {vlm.name: vlm for vlm in loaded}

  def load(self, path: str | os.PathLike, *, int8: bool = False) -> Vlm:
    """A model that answers: on the devices, or on the host if models take turns."""
    vlm = load_vlm(path, mesh=self.rollout_mesh, dtype=self.models.dtype)
    vlm = dataclasses.replace(vlm, style=self.settings.bank.style_of(vlm.name, vlm.style))
    vlm = vlm.with_int8() if int8 else vlm
    return vlm.with_params(runtime.fetch(vlm.params)) if self.models.paged else vlm

  def answering(self, vlm: Vlm | Paged | Talking) -> Vlm | Paged | Talking:
    """A model as it is to be asked: in its turn, if models take turns; talking, if models talk."""
    if self.models.paged and isinstance(vlm, Vlm):
      vlm = Paged(vlm, self._turns)
    voice = self.settings.world.talk
    if isinstance(vlm, Talking) or not voice.talks:
      return vlm
    return Talking(vlm, voice, self.settings.bank.style_of(vlm.name, styles.BARE))

  def bank(self, target: Vlm | None = None) -> ModelBank:
    """The references and `target` (default: the config's)."""
    target = target or self.target
    bank = ModelBank(
      {target.name: self.answering(target), **self.references}, target.name, list(self.references),
      judge=self.judge, config=self.settings.bank, cache=self.cache,
    )  # fmt: skip
    self._banks.append(bank)
    return bank

  def true_answer(self, image_id: str, question: str) -> str | None:
    """What the world's oracle says; it is asked once per image and question."""
    key = image_id, question
    if key not in self._true_answers:
      self._true_answers[key] = self.world.oracle(self.images(image_id), question)
    return self._true_answers[key]

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh | None:
    """The mesh of the config; None on one device."""
    mesh = mesh_lib.make_mesh(self.settings.mesh)
    return mesh if mesh.size > 1 else None

  @functools.cached_property
  def rollout_mesh(self) -> Mesh | None:
    """The same devices for sampling and answering, in a layout of their own if the config has one;
    None on one device.
    """
    shape = self.settings.rollout_mesh
    return mesh_lib.reshaped(self.mesh, shape) if shape and self.mesh else self.mesh

  def place(self, params: Params) -> Params:
    """An auditor's parameters from the host to the devices, as the sampler has them."""
    mesh = self.rollout_mesh
    if mesh is None:
      return jax.device_put(params)
    whole = mesh_lib.row_axes(mesh) if mesh is not self.mesh else ()
    return runtime.place(params, sharding.shardings(mesh, params, whole=whole))

  @functools.cached_property
  def seeds(self) -> skills.Seeds:
    path = self.settings.taxonomy.skills
    return skills.load_seeds(path) if path else skills.Seeds(())

  def pool(self, name: str) -> InMemoryPool:
    """The split that config.pool.<name> (images, heldout, fresh) names."""
    if name not in self._pools:
      section = self.settings.pool
      split = dataclasses.asdict(section)[name]
      pool = pool_lib.open_pool(self._dataset(section), split)
      self._pools[name] = InMemoryPool(pool, cache_bytes=section.cache_bytes)
      self.images.add_pool(self._pools[name])
    return self._pools[name]

  def _dataset(self, section: sections.PoolConfig) -> pathlib.Path:
    data_dir = pathlib.Path(section.data_dir) if section.data_dir else self._local / "data"
    directory = data_dir / section.dataset
    if section.builder:
      data_dir.mkdir(parents=True, exist_ok=True)
      with open(data_dir / ".lock", "w") as lock:  # One process of this machine prepares it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "dataset_info.json").is_file():
          self._prepare(section, data_dir)
    return directory

  @functools.cached_property
  def _local(self) -> pathlib.Path:
    """Where this machine's own files go: the workdir, or with a remote one a temporary folder."""
    if not store.is_remote(self.workdir):
      return self.workdir
    return pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))

  def _prepare(self, section: sections.PoolConfig, data_dir: pathlib.Path) -> None:
    print(f"preparing {section.dataset} in {data_dir}", flush=True)
    env = dict(
      os.environ, PYTHONPATH=os.pathsep.join(p or "." for p in sys.path), JAX_PLATFORMS="cpu"
    )
    command = [sys.executable, section.builder, f"--data_dir={data_dir}"]
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    if done.returncode:
      raise UserError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")

  @functools.cached_property
  def client(self) -> ImageClient:
    """A client of the running image service, or of one started, and kept alive, for this run."""
    section = self.settings.images
    address = section.address
    if not address:
      # One per process.
      suffix = f"_{runtime.index()}" if runtime.count() > 1 else ""
      folder = self._local
      config_path = folder / f"images_config{suffix}.py"
      rows = {"port": 0} | self.config.images.to_dict()
      store.write_bytes(
        config_path,
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"  return ConfigDict({{'images': {rows!r}}})\n".encode(),
      )
      log = folder / f"images{suffix}.log"
      try:
        service = process.keep(str(config_path), log=log, ready_s=section.ready_s)
      except process.NotStarted as error:
        raise UserError(str(error)) from error
      self._stack.callback(service.stop)
      address = service.address
    try:
      client = ImageClient(address, config=section.client)
      self._stack.callback(client.close)
      client.wait_ready(section.ready_s)
    except (OSError, ValueError) as error:  # Nobody there, or an address or a file that is none.
      raise UserError(f"config.images: {error}") from error
    return client

  def done(self, stage: str) -> dict | None:
    """What `finish` wrote for a stage of this workdir, or None. Another config is an error."""
    path = self.workdir / stage / "done.json"
    record = shared.read_json(path)
    if record is None:
      return None
    if record["config"] != self.config_hash:
      raise UserError(
        f"{path.parent} was made with another config; use another --workdir, or remove that folder"
      )
    return record["result"]

  def finish(self, stage: str, result: dict) -> dict:
    """Marks a stage as done, atomically, with its result."""
    shared.write_json(
      self.workdir / stage / "done.json", {"config": self.config_hash, "result": result}
    )
    return result

  def records(self, name: str) -> shared.Records:
    """The records in a folder of the workdir."""
    return shared.Records(self.workdir / name)

  @functools.cached_property
  def config_hash(self) -> str:
    return store.canonical_hash(self.config.to_dict())
