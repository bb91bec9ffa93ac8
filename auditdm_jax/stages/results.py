# SPDX-License-Identifier: Apache-2.0
"""What finished stages leave for others, in STAGE/done.json; a loop's is `audit.summary`."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from auditdm_jax.audit.confirm import Status
from auditdm_jax.audit.health import Health
from auditdm_jax.audit.precision import FindPrecision, LabelPrecision
from auditdm_jax.audit.preflight import Ensemble, Problem
from auditdm_jax.audit.rates import NOTHING, Rate
from auditdm_jax.audit.stability import UNSTABLE
from auditdm_jax.audit.summary import Accuracy, Kinds
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.audit.verify import Tally, View

REPAIRED = "repaired"  # The model that goes on to the next round.

Groups = Mapping[str, Rate]  # By group of the benchmark: "all", "gaps", "rest", "skill: …".


@dataclasses.dataclass(frozen=True)
class Empty:
  """A stage whose end is all there is to know."""


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a part of a run asks, and how long the models take to answer.

  Attributes:
    probes: questions.
    answers: of all models; fewer where a cascade leaves some out.
    seconds: to encode the images and to answer, one model after the other, as measured. Sampling,
      made images and updates come on top of it.
  """

  probes: int
  answers: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class Preflight:
  """What a run was checked for before it trained.

  Attributes:
    ensemble: what target and references did with the questions.
    answers_per_s: by model, images included.
    service: what the image service is and takes; "" if the run makes no images.
    step: cost of a step of GRPO.
    training: cost of all steps.
    sweep: cost of discovery.
    warnings: what the target does instead of answering, and what to change.
    later: cost of GRPO and the sweeps of all later rounds.
    unlabelled: cost of asking about an unlabelled pool, in all rounds that repair.
  """

  ensemble: Ensemble
  answers_per_s: Mapping[str, float]
  service: str
  step: Cost
  training: Cost
  sweep: Cost
  warnings: tuple[Problem, ...]
  later: Cost = Cost(0, 0, 0.0)
  unlabelled: Cost = Cost(0, 0, 0.0)


@dataclasses.dataclass(frozen=True)
class Trained:
  """A training run: updates, completions drawn, probes put to the bank, the best checkpoint."""

  steps: int
  completions: int
  probes: int
  best: int | None


@dataclasses.dataclass(frozen=True)
class Searched:
  """Search success of the untrained and of the trained auditor, and the kinds of their finds.

  None is what was not trained, and kinds without an oracle.
  """

  prompt_only: Rate
  prompt_only_modes: Kinds | None
  trained: Rate | None
  trained_modes: Kinds | None


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """Benchmark tables by model, the planted gaps that an audit can find, the ensemble's health."""

  tables: Mapping[str, Groups]
  auditable: tuple[str, ...]
  health: Health


@dataclasses.dataclass(frozen=True)
class Discovered:
  """Queries of the sweep, and by arm what it proposed and what came of it."""

  arms: Mapping[str, Any]
  queries: int


@dataclasses.dataclass(frozen=True)
class Controlled:
  """Random questions that were asked."""

  probes: int


@dataclasses.dataclass(frozen=True)
class Found:
  """Counts of a mode on the attempts that it was discovered on."""

  k: int
  n: int


@dataclasses.dataclass(frozen=True)
class FreshDraw:
  """The probes that modes were measured on.

  Attributes:
    proposer: who asked.
    for_all: probes that were asked whatever they are.
    for_modes: further ones, about modes that lacked some.
    looked_at: questions that these were chosen from.
    of_finds: how many of `for_modes` ask what verified finds of a mode asked, about fresh images.
  """

  proposer: str
  for_all: int
  for_modes: int
  looked_at: int
  of_finds: int = 0


@dataclasses.dataclass(frozen=True)
class ModeRow:
  """A mode with its rate on fresh probes, see `audit.confirm.ModeTest`.

  Attributes:
    found: counts of its discovery, which are biased upwards.
    fresh: failure rate on fresh probes; None if there were none.
    confirmed: fresh failures that the oracle confirms.
    gap: planted gap of most of these.
    gap_share: its share of them.
    status: "confirmed", "not confirmed" or "too few".
    base: failure rate of fresh probes outside all modes.
    ratio: of both rates; None where it cannot be told.
    ratio_ci95: its interval; None as an upper end is no limit.
    q: of the test that the rate is above the base, over all modes.
    images: that its fresh probes are about.
    consensus: of fresh questions that may be the mode's, those with a consensus.
    needs: fresh probes that are missing.
    stability: mean Jaccard index over bootstrap samples of the images; None if it was not measured.
    family: modes of one family share a word.
  """

  mode_id: str
  name: str
  definition: str
  skills: tuple[str, ...]
  found: Found
  fresh: Rate | None
  confirmed: int
  gap: str | None
  gap_share: float
  status: Status = "too few"
  base: Rate | None = None
  ratio: float | None = None
  ratio_ci95: tuple[float, float | None] = (0.0, None)
  q: float = 1.0
  images: int = 0
  consensus: Rate | None = None
  needs: int = 0
  stability: float | None = None
  family: str = ""

  @property
  def holds(self) -> bool:
    """Whether it is for the first page: confirmed, and found again on other draws of images."""
    steady = self.stability is None or self.stability >= UNSTABLE
    return self.status == "confirmed" and steady


@dataclasses.dataclass(frozen=True)
class Verified:
  """Verified failures in numbers.

  Attributes:
    funnel: finds left after each gate and trial.
    taxonomy: the frozen modes.
    modes: the same with their rates.
    labelled: how many finds are real, on questions with labels; None if there are no labels.
    gates: by gate, what became of it.
    sides: by who was asked outside the ensemble, whose side was taken on verified failures.
    fresh: who proposed the probes that modes are confirmed on; None if no mode was named.
  """

  funnel: Mapping[str, int]
  taxonomy: Taxonomy
  modes: tuple[ModeRow, ...]
  labelled: FindPrecision | None = None
  gates: Mapping[str, Tally] = dataclasses.field(default_factory=dict)
  sides: Mapping[str, View] = dataclasses.field(default_factory=dict)
  fresh: FreshDraw | None = None


@dataclasses.dataclass(frozen=True)
class Bootstrapped:
  """Probes about unlabelled images, the new finds among them, and those that were verified."""

  probes: int
  finds: int
  verified: int


@dataclasses.dataclass(frozen=True)
class RepairedModel:
  """A tuned target.

  Attributes:
    table: of the benchmark.
    examples: that it learned.
    sources: how many of them are from where.
    labels: how many of their consensus labels are right, by each who knows.
    left_out: failures whose consensus was not sure enough, by why.
  """

  table: Groups
  examples: int
  sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
  labels: tuple[LabelPrecision, ...] = ()
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Repairs:
  """The repaired target and its controls by name, and why others could not be made.

  Attributes:
    models: those that the run made, and those that were imported.
    failed: by name of a model, what went wrong.
    tried: whether the run has repaired what it could; otherwise all models were imported.
  """

  models: Mapping[str, RepairedModel]
  failed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tried: bool = True


def accuracy_of(table: Groups, *, of: RepairedModel | None = None) -> Accuracy:
  """Returns accuracy over all questions, on the gaps and on the rest; an empty group has n = 0.

  Args:
    table: of the benchmark.
    of: the repaired model that it is of, if it is of one.
  """
  every, gaps, rest = (table.get(name, NOTHING) for name in ("all", "gaps", "rest"))
  found = Accuracy(every, gaps, rest)
  if of is None:
    return found
  return dataclasses.replace(found, examples=of.examples, sources=of.sources, labels=of.labels)
