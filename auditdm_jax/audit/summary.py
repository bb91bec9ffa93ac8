# SPDX-License-Identifier: Apache-2.0
"""What a loop found, as values: the content of summary.json and the source of the report."""

from collections.abc import Mapping
import dataclasses

from auditdm_jax.audit.rates import Rate


@dataclasses.dataclass(frozen=True)
class Coverage:
  """How far unique confirmed finds reach.

  Attributes:
    confirmed: finds that the oracle confirms, each question about an image once.
    per_gap: confirmed finds by planted gap.
    gaps_auditable: planted gaps that an audit can find.
    gaps_found: auditable gaps with enough confirmed finds.
    effective_modes: exponential of the entropy over nameable modes.
    effective_skills: the same over skills.
  """

  confirmed: int
  per_gap: Mapping[str, int]
  gaps_auditable: int
  gaps_found: int
  effective_modes: float
  effective_skills: float


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Held-out accuracy of a model, on planted gaps and on the rest; `examples` it was tuned on."""

  all: Rate
  gaps: Rate
  rest: Rate
  examples: int | None = None


@dataclasses.dataclass(frozen=True)
class Search:
  """Search success of the auditor before and after its training."""

  prompt_only: Rate
  trained: Rate


@dataclasses.dataclass(frozen=True)
class Kinds:
  """How many kinds of failure confirmed finds show, see `Coverage`."""

  effective_modes: float
  effective_skills: float
  per_gap: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class SearchModes:
  """The kinds of failure that the auditor found before and after its training."""

  prompt_only_modes: Kinds
  trained_modes: Kinds


@dataclasses.dataclass(frozen=True)
class GapScore:
  """One planted gap: the target's accuracy in it, and the confirmed finds of the audit."""

  target: Rate | None
  auditable: bool
  finds: int


@dataclasses.dataclass(frozen=True)
class ModeScores:
  """Modes against the oracle: auditable gaps that have a mode, and modes that are borne out."""

  recall: Rate
  precision: Rate
  found: int


@dataclasses.dataclass(frozen=True)
class Arm:
  """One source of probes; `verified` is the share of confirmed finds among its queries."""

  queries: int
  verified: Rate
  confirmed_unique: int
  gaps_found: int
  effective_modes: float
  effective_skills: float
  unseen_mass: float | None


@dataclasses.dataclass(frozen=True)
class StrategyRow:
  """One way of making probes.

  Attributes:
    verified: confirmed finds among its probes.
    only_here: nameable modes that no other strategy found.
    faithful: made images that show what was asked for.
    exposed_by_image: confirmed finds by gap that took the new image.
  """

  verified: Rate
  only_here: int
  faithful: Rate | None = None
  exposed_by_image: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class CurvePoint:
  """Search success over some steps of GRPO, up to `step`."""

  step: int
  success: float | None
  n: int
  ci95: tuple[float, float]
  effective_modes: float
  effective_skills: float


@dataclasses.dataclass(frozen=True)
class Queries:
  """How often the models were asked; completions that repeat a probe of their step count once in
  `grpo_distinct`.
  """

  grpo: int
  grpo_distinct: int
  discover: int
  total: int
  control_random: int
  verify_looked_at: int


@dataclasses.dataclass(frozen=True)
class ModeChange:
  """A known mode before and after the repair, see `audit.compare`."""

  mode_id: str
  name: str
  status: str
  before: Rate
  after: Rate
  change_ci95: tuple[float, float]
  q: float


@dataclasses.dataclass(frozen=True)
class NewMode:
  """A mode that the first round did not have, with the counts of its discovery."""

  name: str
  definition: str
  k: int
  n: int


@dataclasses.dataclass(frozen=True)
class SecondRound:
  """The audit of the repaired target.

  Attributes:
    success: search success of the auditor of the first round.
    modes: the known modes on the same fresh probes.
    first_steps: search success of the first steps of GRPO against the repaired target.
    last_steps: the same of the last steps.
    finds_by_gap: confirmed unique finds.
    new_modes: modes by name that the first round did not have.
  """

  success: Rate
  modes: tuple[ModeChange, ...]
  first_steps: Rate
  last_steps: Rate
  finds_by_gap: Mapping[str, int]
  new_modes: tuple[NewMode, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
  """A whole loop.

  Attributes:
    precision: verified failures that the oracle confirms; None without an oracle.
    rectify: accuracy by model: baseline, larger sibling, repaired, controls.
    reaudit: `second_round.success`.
    arms: by arm, with the sum and the control.
    seconds: by stage.
  """

  target: str
  search: Search
  search_modes: SearchModes
  precision: Rate | None
  coverage: Coverage
  gaps: Mapping[str, GapScore]
  modes: ModeScores
  rectify: Mapping[str, Accuracy]
  reaudit: Rate | None
  second_round: SecondRound | None
  arms: Mapping[str, Arm]
  strategies: Mapping[str, StrategyRow]
  curve: tuple[CurvePoint, ...]
  queries: Queries
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
