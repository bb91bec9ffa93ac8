# SPDX-License-Identifier: Apache-2.0
"""The sections of an audit's config: for each a dataclass, whose docstring says what its keys mean.

They are read when a run starts, so that a mistake in the last stage's section ends the first one.
`config.mesh` and `config.rollout_mesh` are {axis: size}, `config.rules` rows of (regex, axes).
"""

import dataclasses
import pathlib
from typing import Any

from auditdm_jax.audit.answer import BankConfig
from auditdm_jax.audit.arms import ArmsConfig
from auditdm_jax.audit.compare import CompareConfig
from auditdm_jax.audit.judge import JudgeConfig
from auditdm_jax.audit.taxonomy import TaxonomyConfig
from auditdm_jax.audit.verify import VerifyConfig
from auditdm_jax.core.config import UserError, check
from auditdm_jax.images.config import ImagesConfig
from auditdm_jax.plan.steps import PlanConfig
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify import recipes
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.reward import RewardConfig
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.rl.trainer import TrainConfig


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
  """The models.

  Attributes:
    auditor: its folder.
    target: its folder.
    references: their folders.
    sibling: a model that is only evaluated, for comparison; "" = none.
    dtype: of the computation, and of the parameters of target and references.
    int8: the references' decoders have int8 weights.
    paged: target and references take turns on the devices and wait in the host's memory.
  """

  auditor: str
  target: str
  references: tuple[str, ...]
  sibling: str = ""
  dtype: str = "float32"
  int8: bool = False
  paged: bool = False

  def __post_init__(self):
    by_name: dict[str, str] = {}
    for folder in (self.target, *self.references):
      name = pathlib.Path(folder).resolve().name
      if name in by_name:
        raise UserError(
          f"config.models: {by_name[name]} and {folder} have one name, {name}; target and"
          " references are told apart by it"
        )
      by_name[name] = folder


@dataclasses.dataclass(frozen=True)
class PoolConfig:
  """Where images come from.

  Attributes:
    builder: script that prepares the TFDS data set if it is not there; "" = none.
    data_dir: where it lies; "" = <workdir>/data.
    dataset: name/config/version of a TFDS data set under data_dir, or a folder there that has a
      folder of images for each split (`core.pool.FolderPool`).
    images: split the auditor looks at.
    heldout: split of the benchmark.
    fresh: split for the rates of known modes.
    cache_bytes: of decoded images that are kept, per split; others are read when they are needed.
  """

  builder: str
  data_dir: str
  dataset: str
  images: str
  heldout: str
  fresh: str
  cache_bytes: int = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class NamingConfig:
  """How failures get their names.

  Attributes:
    skills: YAML file of named skills, see `audit.skills`; "" = none, so that modes are named by
      their words alone.
    modes: when a slice of the probes is a mode.
  """

  skills: str = ""
  modes: TaxonomyConfig = TaxonomyConfig()


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """The world that images come from.

  Attributes:
    name: "scenes" for the drawn world, which has an oracle; "" for real images.
    gaps: planted gaps of the target: "", "easy", "rare", "half" or "seed:N".
  """

  name: str = ""
  gaps: str = ""


@dataclasses.dataclass(frozen=True)
class DiscoverConfig:
  """How much is asked.

  Attributes:
    probes: of the sweep, over all arms.
    batch: probes between two decisions on who asks.
    search_probes: for the search success of the untrained and of the trained auditor, each.
    arms: how the budget moves.
  """

  probes: int
  batch: int
  search_probes: int
  arms: ArmsConfig = ArmsConfig()

  def __post_init__(self):
    if min(self.probes, self.batch, self.search_probes) < 1:
      raise ValueError("probes, batch and search_probes must be at least 1")


@dataclasses.dataclass(frozen=True)
class LimitedVerifyConfig(VerifyConfig):
  """How finds are verified.

  Attributes:
    limit: most finds that are looked at, evenly over families of modes.
  """

  limit: int = 4_000


@dataclasses.dataclass(frozen=True)
class RectifyConfig:
  """How the target is repaired.

  Attributes:
    recipe: of the fine-tuning.
    length: tokens of an example: image, question and label.
    suffix: tokens of a label.
    curate: which failures become examples.
  """

  recipe: recipes.Recipe
  length: int
  suffix: int
  curate: curate_lib.Config = curate_lib.Config()

  def __post_init__(self):
    check(vars(self), "rectify", "length", "suffix", least=1)


@dataclasses.dataclass(frozen=True)
class Round2Config:
  """The second round.

  Attributes:
    enabled: whether the loop has one.
    steps: of GRPO against the repaired target.
    compare: what counts as a change of a known mode.
  """

  steps: int
  enabled: bool = True
  compare: CompareConfig = CompareConfig()

  def __post_init__(self):
    check(vars(self), "round2", "steps", least=int(self.enabled))


@dataclasses.dataclass(frozen=True)
class AuditConfig:
  """The whole config of an audit.

  Attributes:
    seed: of everything that is drawn.
    mesh: {axis: size} of training, -1 = the rest of the devices; see `core.mesh`.
    rollout_mesh: the same devices for sampling and answering; empty = as in training.
    rules: (regex, mesh axes per array axis) of the auditor's masters; () = `models.sharding`'s.
  """

  seed: int
  models: ModelsConfig
  world: WorldConfig
  pool: PoolConfig
  images: ImagesConfig
  bank: BankConfig
  judge: JudgeConfig
  rollout: RolloutConfig
  grpo: GrpoConfig
  reward: RewardConfig
  optim: OptimConfig
  checkpoints: TrainConfig
  discover: DiscoverConfig
  verify: LimitedVerifyConfig
  taxonomy: NamingConfig
  rectify: RectifyConfig
  round2: Round2Config
  mesh: dict[str, int]
  rules: tuple[Any, ...]
  rollout_mesh: dict[str, int] = dataclasses.field(default_factory=dict)
  plan: PlanConfig = PlanConfig()

  def __post_init__(self):
    check(vars(self), "config", "seed", least=0)
