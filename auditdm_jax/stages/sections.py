# SPDX-License-Identifier: Apache-2.0
"""The sections of an audit's config: for each a dataclass, whose docstring says what its keys mean.

They are read when a run starts, so that a mistake in the last stage's section ends the first one.
`config.mesh`, `config.rollout_mesh` and `config.repair_mesh` are {axis: size}, `config.rules` rows
of (regex, axes).
"""

import dataclasses
import pathlib
import re
from typing import Any

from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.compare import CompareConfig
from auditdm_jax.audit.confirm import ConfirmConfig
from auditdm_jax.audit.judge import JudgeConfig
from auditdm_jax.audit.looks import LooksConfig
from auditdm_jax.audit.preflight import PreflightConfig
from auditdm_jax.audit.ranking import RankingConfig
from auditdm_jax.audit.taxonomy import TaxonomyConfig
from auditdm_jax.audit.verify import VerifyConfig
from auditdm_jax.core.config import UserError, check, did_you_mean
from auditdm_jax.core.pools.shares import Shares
from auditdm_jax.core.wandb_log import WandbConfig
from auditdm_jax.images.config import ImagesConfig
from auditdm_jax.plan.steps import PlanConfig
from auditdm_jax.rectify import curate as curate_lib
from auditdm_jax.rectify import recipes
from auditdm_jax.rectify.strategy import StrategyConfig
from auditdm_jax.rectify.tune import TuneConfig
from auditdm_jax.rl.answering import AnsweringConfig
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.reward import RewardConfig
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.rl.stopping import StopConfig
from auditdm_jax.rl.trainer import TrainConfig
from auditdm_jax.scenes.noise import Noise
from auditdm_jax.scenes.talk import Voice
from auditdm_jax.stages.remote import RemoteConfig, check_names


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
  """The models. Where a folder is said, the name of an endpoint may stand, except for the auditor.

  Attributes:
    auditor: its folder.
    target: its folder.
    references: their folders.
    sibling: folder of a model that is only evaluated, for comparison; "" = none.
    dtype: of the computation, and of the parameters of target and references.
    int8: the decoders of references that are folders have int8 weights.
    paged: target and references that are folders take turns on the devices and wait in the host's
      memory.
  """

  auditor: str
  target: str
  references: tuple[str, ...]
  sibling: str = ""
  dtype: str = "float32"
  int8: bool = False
  paged: bool = False

  def __post_init__(self):
    if not self.references:
      raise UserError("config.models.references is empty: name one folder at least")
    for key in ("auditor", "target", "references"):
      specs = vars(self)[key]
      if not all(spec.strip() for spec in ([specs] if isinstance(specs, str) else specs)):
        raise UserError(f"config.models.{key}: a name is empty in {specs!r}; a comma too many?")
    by_name: dict[str, str] = {}
    for folder in (self.target, *self.references):
      name = pathlib.Path(folder).resolve().name
      if by_name.get(name) == folder:
        raise UserError(f"config.models: {folder} is named twice among target and references")
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
    builder: script that prepares the TFDS data set if it is not there; "" = none. It is called with
      --data_dir, and with --config unless that of the data set is `default`.
    data_dir: where it lies; "" = <workdir>/data.
    dataset: what `core.pool.open_pool` can open, under data_dir or with a path of its own: a folder
      of images, a JSONL file, a Parquet folder, or name/config/version of a TFDS data set.
    images: split the auditor looks at.
    heldout: split of the benchmark.
    fresh: split for the rates of known modes; "" = none, and these rates are not measured.
    cache_bytes: of decoded images that are kept, per split; others are read when they are needed.
    questions: a JSONL file about the images of a folder; "" = its own questions.jsonl.
    shares: of `images`, `heldout` and `fresh` among the images of a data set without splits.
    share_seed: another one shares them out another way; the run's own seed does not.
  """

  builder: str
  data_dir: str
  dataset: str
  images: str
  heldout: str
  fresh: str
  cache_bytes: int = 8 * 2**30
  questions: str = ""
  shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
  share_seed: int = 0

  def __post_init__(self):
    self.split_shares()

  def split_shares(self) -> Shares:
    """The shares by split; splits of one name have the sum of their shares."""
    of: dict[str, float] = {}
    for name, share in zip((self.images, self.heldout, self.fresh), self.shares, strict=True):
      name = name or self.images  # Of a split that is not wanted, its share too.
      of[name] = of.get(name, 0.0) + share
    return Shares(of, self.share_seed)


@dataclasses.dataclass(frozen=True)
class FreshConfig(ConfirmConfig):
  """The probes that modes are measured and confirmed on.

  Attributes:
    proposer: "questions" or "auditor", who asks about the fresh images; "" = the data set's
      questions if it has any, else the auditor.
    rest: probes that are asked whatever they are; an auditor asks at most
      `discover.search_probes` of them.
    asks: most probes beyond these, about modes that have fewer than are planned.
    draws: most questions that are looked at for them.
  """

  proposer: str = ""
  rest: int = 4_000
  asks: int = 4_000
  draws: int = 20_000

  def __post_init__(self):
    if self.proposer not in ("", "questions", "auditor"):
      raise UserError(
        f"config.taxonomy.fresh.proposer: {self.proposer!r} is neither 'questions' nor 'auditor'"
      )
    check(vars(self), "taxonomy.fresh", "rest", least=1)
    check(vars(self), "taxonomy.fresh", "asks", "draws", least=0)


@dataclasses.dataclass(frozen=True)
class NamingConfig:
  """How failures get their names.

  Attributes:
    skills: YAML file of named skills, see `audit.skills`; "" = none, so that modes are named by
      their words alone.
    kinds: YAML file of words by kind of thing (`vehicle: [bus, car]`), which a mode may be about;
      "" = none but the categories of the skills file.
    modes: when a slice of the probes is a mode.
    looks: modes about what images look like.
    fresh: how modes are confirmed.
  """

  skills: str = ""
  kinds: str = ""
  modes: TaxonomyConfig = TaxonomyConfig()
  looks: LooksConfig = LooksConfig()
  fresh: FreshConfig = FreshConfig()


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """What is known in addition to the images.

  Attributes:
    name: "scenes" or "needle" for a drawn world, which has an oracle; "" for real images; or a
      `stages.worlds.World` of your own, package.module:NAME.
    gaps: planted gaps of the target: "" or "seed:N", and in scenes "easy", "rare" or "half".
    talk: how the models of the scenes world say their answers, to try `text.styles` on.
    noise: how often its references are wrong on purpose, to try what an audit is worth then.
  """

  name: str = ""
  gaps: str = ""
  talk: Voice = Voice()
  noise: Noise = Noise()

  def __post_init__(self):
    if self.noise.errs and self.talk.talks:
      raise UserError("config.world: its models either talk or err on purpose; leave one out")
    if self.noise.errs and self.name != "scenes":
      raise UserError("config.world.noise: only the models of scenes can err on purpose")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
  """How answers to held-out questions are scored.

  Attributes:
    scorer: import path of a function (prediction, references) -> [0, 1].
    groups: import path of a function `bench.items.BenchmarkItem` -> names of groups; "" = those of
      the world.
    leaks: files that the stage leaks made; a find that repeats one of their items is not verified.
  """

  scorer: str = "auditdm_jax.bench.scorers:normalized_match"
  groups: str = ""
  leaks: tuple[str, ...] = ()


SOURCES = TRAINED, UNTRAINED, RANDOM, MUTATED = ("trained", "untrained", "random", "mutated")


@dataclasses.dataclass(frozen=True)
class DiscoverConfig:
  """How much is asked.

  Attributes:
    probes: queries of the sweep, over all arms; 0 = none, and the finds are those of GRPO.
    again: whether a disagreement of the sweep is asked once more in other words, which is a query
      too, and is no find if it does not return. Where the world does not word it, the model of
      `verify.paraphraser` does, which is on the devices through the sweep.
    batch: probes between two fits of the surrogate that ranks them.
    search_probes: for the search success of the untrained and of the trained auditor, each.
    proposals: questions that are proposed for each one of the sweep that is asked; 0 or 1 = none
      is left out.
    drafts: captions or instructions that an auditor writes for each image that is made for the
      sweep, of which the one that says what was said least is carried out (`rl.drafts`).
    start: fits of the surrogate to what training asked, before the first batch.
    fits: its fits after each batch.
    ranking: how a batch is chosen from the proposals.
    sources: who proposes: "trained" (all stored auditors together), "untrained" (the auditor
      before training), "random" (the data set's questions) and "mutated" (finds with a small
      change). Each has an equal share; one that has nothing leaves its share to the others.
    shots: finds that the untrained auditor is shown as examples, before its task; 0 = none.
  """

  probes: int
  batch: int
  search_probes: int
  again: bool = False
  proposals: int = 4
  drafts: int = 1
  start: int = 40
  fits: int = 4
  ranking: RankingConfig = RankingConfig()
  sources: tuple[str, ...] = ("trained", "untrained", "random")
  shots: int = 0

  def __post_init__(self):
    check(vars(self), "discover", "batch", "search_probes", "drafts", least=1)
    check(vars(self), "discover", "probes", "proposals", "start", "fits", "shots", least=0)
    for name in self.sources:
      if name not in SOURCES:
        hint = did_you_mean(name, SOURCES)
        raise UserError(f"config.discover.sources: {name!r} is no source{hint}")
    if not self.sources or len(set(self.sources)) < len(self.sources):
      raise UserError(
        f"config.discover.sources={self.sources}: name each source once, at least one"
      )


@dataclasses.dataclass(frozen=True)
class LimitedVerifyConfig(VerifyConfig):
  """How finds are verified.

  Attributes:
    limit: most finds that are looked at, evenly over families of modes.
    labelled: most held-out questions with a label that are put to all models, to measure how many
      finds are real; 0 = none, and no rate is corrected.
    model: a model outside the ensemble, folder or endpoint, that answers the questions itself, for
      V2; "" = none. A world's oracle is asked where there is none.
    allow_same: the model may be a copy of the target, a reference or the auditor, by another name.
    paraphraser: a model that words questions otherwise, folder or endpoint; "auditor" for the
      auditor before its training, or "" for none. A world that has paraphrases uses its own.
  """

  limit: int = 4_000
  labelled: int = 2_000
  model: str = ""
  allow_same: bool = False
  paraphraser: str = "auditor"


@dataclasses.dataclass(frozen=True)
class LabelledConfig:
  """The target's own labelled set, for a strategy with a share of it.

  Attributes:
    dataset: anything that `pool.dataset` could name, by its path, or the files of a benchmark; "" =
      the run's.
    split: of it; "" = `pool.images`.
    benchmark: name of a benchmark whose files `dataset` is, such as "vqav2": its questions are put
      as its transfers do, and `split` must not be the one it is measured on. "" = a pool.
  """

  dataset: str = ""
  split: str = ""
  benchmark: str = ""


@dataclasses.dataclass(frozen=True)
class UnlabelledConfig:
  """The pool of a bootstrapped strategy.

  Attributes:
    dataset: anything that `pool.dataset` could name, by its path; "" = the run's.
    split: of it; "" = `pool.images`.
    probes: that are asked about it, shared among the auditors.
    auditors: how many stored auditors ask, the last one and earlier ones.
  """

  dataset: str = ""
  split: str = ""
  probes: int = 4_000
  auditors: int = 3

  def __post_init__(self):
    check(vars(self), "rectify.unlabelled", "probes", "auditors", least=1)


REWARDED = "repaired_grpo"  # The model that GRPO repairs, from the examples of the repaired one.
CONTROLS = ("control_random", "control_mined")  # Models that a repaired one is compared with.
_TAKEN = ("repaired", REWARDED, *CONTROLS)


@dataclasses.dataclass(frozen=True)
class RectifyConfig:
  """How the target is repaired.

  Attributes:
    recipe: of the fine-tuning.
    alike: share of what is replayed that is taken from the kinds of questions that the repaired
      target learns, in their shares, as far as there are so many; the rest is what is left by lot,
      mostly of other kinds. A model that learns some names says them of others first. The controls
      have the same replay.
    length: tokens of an example: image, question and label.
    suffix: tokens of a label.
    curate: how many examples are taken, and how evenly.
    strategy: what the repaired target is trained on.
    beside: {NAME: strategy} of further models, to be compared with it.
    labelled: the target's own labelled set.
    unlabelled: the pool of a bootstrapped strategy.
    tune: how the fine-tuning is watched and stored.
    answering: GRPO on the examples of the repaired target, which makes one more model in round 1.
    enabled: whether the loop repairs; otherwise it ends with the report of the first round.
  """

  recipe: recipes.Recipe
  length: int
  suffix: int
  alike: float = 0.0
  curate: curate_lib.Config = curate_lib.Config()
  strategy: StrategyConfig = StrategyConfig()
  beside: dict[str, StrategyConfig] = dataclasses.field(default_factory=dict)
  labelled: LabelledConfig = LabelledConfig()
  unlabelled: UnlabelledConfig = UnlabelledConfig()
  tune: TuneConfig = TuneConfig()
  answering: AnsweringConfig = AnsweringConfig()
  enabled: bool = True

  def __post_init__(self):
    check(vars(self), "rectify", "length", "suffix", least=1)
    check(vars(self), "rectify", "alike", least=0, most=1)
    for name in self.beside:
      if not re.fullmatch("[a-z][a-z0-9_]{0,40}", name) or name in _TAKEN:
        raise UserError(
          f"config.rectify.beside: {name!r} names no model; letters, digits and _ are right, and"
          f" {', '.join(_TAKEN)} are taken"
        )

  @property
  def bootstraps(self) -> bool:
    """Whether a strategy takes examples from an unlabelled pool."""
    return any(s.bootstrapped for s in (self.strategy, *self.beside.values()))


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
  """How often the target is audited and repaired.

  Attributes:
    count: of rounds, at most: the loop stops after a round that finds nothing new. From the second
      one on, the target is the repaired one of the round before.
    repair_last: whether the last round repairs as well; otherwise it only audits.
    steps: of GRPO in a later round, which goes on from the auditor of the round before.
    probes: of the sweep in a later round; 0 = none, and the finds are those of GRPO.
    compare: what counts as a change of a known mode.
  """

  count: int = 1
  repair_last: bool = True
  steps: int = 0
  probes: int = 0
  compare: CompareConfig = CompareConfig()

  def __post_init__(self):
    check(vars(self), "rounds", "count", least=1)
    check(vars(self), "rounds", "steps", "probes", least=0)
    if self.count > 1 and not self.steps and not self.probes:
      raise UserError(
        f"config.rounds.count={self.count}: a later round asks nothing, since steps and probes are"
        " both 0"
      )

  def repairs(self, number: int) -> bool:
    """Whether a round is to repair its target."""
    return self.repair_last or number < self.count


@dataclasses.dataclass(frozen=True)
class AuditConfig:
  """The whole config of an audit.

  Attributes:
    seed: of everything that is drawn; 32 bits.
    mesh: {axis: size} of training, -1 = the rest of the devices; see `core.mesh`.
    rollout_mesh: the same devices for sampling and answering; empty = as in training.
    repair_mesh: the same devices for the repair by labels; empty = as in training.
    rules: (regex, mesh axes per array axis) of the auditor's masters; () = `models.sharding`'s.
    endpoints: {NAME: section} of models behind endpoints, which the models' roles may name.
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
  mesh: dict[str, int]
  rules: tuple[Any, ...]
  rollout_mesh: dict[str, int] = dataclasses.field(default_factory=dict)
  repair_mesh: dict[str, int] = dataclasses.field(default_factory=dict)
  endpoints: dict[str, RemoteConfig] = dataclasses.field(default_factory=dict)
  benchmark: BenchmarkConfig = BenchmarkConfig()
  preflight: PreflightConfig = PreflightConfig()
  stop: StopConfig = StopConfig()
  plan: PlanConfig = PlanConfig()
  rounds: RoundsConfig = RoundsConfig()
  wandb: WandbConfig = WandbConfig()

  def __post_init__(self):
    check(vars(self), "config", "seed", least=0, below=2**32)
    models = self.models
    self._check_endpoints()
    self._check_trained_on()
    if self.discover.ranking.new and not self.rollout.surrogate.reader:
      raise UserError(
        f"config.discover.ranking.new={self.discover.ranking.new}: the net does not tell what is"
        ' unlike; set rollout.surrogate.reader, such as "auditor", or new=0'
      )
    ensemble = (models.target, *models.references)
    outside = self.verify.model
    if outside and _name(outside) in map(_name, ensemble):
      raise UserError(
        f"config.verify.model: {outside} has the name of the target or of a reference; name a model"
        " outside the ensemble"
      )
    references = [_name(folder) for folder in models.references]
    for name, _ in self.bank.weights:
      if name not in references:
        raise UserError(
          f"config.bank.weights: no reference {name!r}{did_you_mean(name, references)};"
          f" {', '.join(references)}"
        )
    folders = (*ensemble, models.sibling, self.rollout.gauges.heldout, outside)
    known = [_name(folder) for folder in folders if folder]
    for name, _ in self.bank.styles:
      if name not in known:
        raise UserError(
          f"config.bank.styles: no model {name!r}{did_you_mean(name, known)}; {', '.join(known)}"
        )

  def _check_trained_on(self) -> None:
    """Checks that no repair trains on a split that it is measured on.

    Raises:
      UserError: one does.
    """
    measured = {self.pool.heldout, self.pool.fresh} - {"", self.pool.images}
    for key, section in (
      ("labelled", self.rectify.labelled),
      ("unlabelled", self.rectify.unlabelled),
    ):
      if section.dataset in ("", self.pool.dataset) and section.split in measured:
        raise UserError(
          f"config.rectify.{key}.split: repairs are measured on {section.split!r} of this data set;"
          f" name another split, such as {self.pool.images!r}"
        )

  @property
  def all_steps(self) -> int:
    """Steps of GRPO over all rounds, if none of them is the last one before its time."""
    return self.optim.steps + (self.rounds.count - 1) * self.rounds.steps

  def _check_endpoints(self) -> None:
    """Checks the names of endpoints, and that none stands where weights are needed.

    Raises:
      UserError: one is no name, or weights are needed.
    """
    check_names(self.endpoints)
    models = self.models
    if models.auditor in self.endpoints:
      raise UserError(
        f"config.models.auditor: {models.auditor} is an endpoint; the auditor is trained, which"
        " needs the folder of its weights"
      )
    if (reader := self.rollout.surrogate.reader) in self.endpoints:
      raise UserError(
        f"config.rollout.surrogate.reader: {reader} is an endpoint, which does not say its hidden"
        " states; they need the folder of its weights"
      )
    if models.int8 and all(spec in self.endpoints for spec in models.references):
      raise UserError(
        "config.models.int8: the references are endpoints, whose weights are elsewhere"
      )
    if models.paged and all(s in self.endpoints for s in (models.target, *models.references)):
      raise UserError(
        "config.models.paged: target and references are endpoints, whose weights are elsewhere"
      )


def _name(folder: str) -> str:
  """What records call the model in a folder."""
  return pathlib.Path(folder).resolve().name
