# SPDX-License-Identifier: Apache-2.0
"""What an audit found, as values: the content of summary.json and the source of the report.

What was not measured is None: a stage that did not run, or a count that only an oracle can make.
"""

from collections.abc import Mapping
import dataclasses

from auditdm_jax.audit.calibration import Calibration
from auditdm_jax.audit.diversity import Diversity, Spread
from auditdm_jax.audit.hacks import ArmHacks
from auditdm_jax.audit.labels import LabelScores
from auditdm_jax.audit.precision import FindPrecision, GradePrecision, LabelPrecision
from auditdm_jax.audit.rates import Corrected, Rate
from auditdm_jax.audit.rounds import is_new

ALL_ARMS = "all of the above"  # Their sum, among the arms.


@dataclasses.dataclass(frozen=True)
class Coverage:
  """How far unique confirmed finds reach.

  Attributes:
    confirmed: finds that the oracle confirms, each question about an image once.
    per_gap: confirmed finds by planted gap.
    gaps_auditable: planted gaps that an audit can find.
    gaps_found: auditable gaps with enough confirmed finds.
    queries_to_gaps: after how many queries the first of these was found, the second and so on.
    modes: how many nameable modes the finds show; None where they are too few to tell.
    skills: the same of skills.
  """

  confirmed: int
  per_gap: Mapping[str, int]
  gaps_auditable: int
  gaps_found: int
  queries_to_gaps: tuple[int, ...]
  modes: Spread | None
  skills: Spread | None


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Held-out accuracy of a model, on planted gaps and on the rest.

  Attributes:
    examples: that it was tuned on; None if it was not.
    sources: how many of them are from where.
    labels: how many of their consensus labels are right, by each who knows, the best first.
  """

  all: Rate
  gaps: Rate
  rest: Rate
  examples: int | None = None
  sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
  labels: tuple[LabelPrecision, ...] = ()


@dataclasses.dataclass(frozen=True)
class Search:
  """Search success of the auditor before and after its training, if it was trained."""

  prompt_only: Rate
  trained: Rate | None


@dataclasses.dataclass(frozen=True)
class Kinds:
  """The kinds of failure that confirmed finds show.

  Attributes:
    modes: nameable modes, the untrained auditor's against the trained one's; None where either has
      too few finds.
    per_gap: confirmed finds by planted gap.
  """

  modes: Diversity | None
  per_gap: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class SearchModes:
  """The kinds of failure that the auditor found before and after its training."""

  prompt_only_modes: Kinds | None
  trained_modes: Kinds | None


@dataclasses.dataclass(frozen=True)
class GapScore:
  """One planted gap: the target's accuracy in it, and the confirmed finds of the audit."""

  target: Rate | None
  auditable: bool
  finds: int


@dataclasses.dataclass(frozen=True)
class ModeScores:
  """How many modes there are, and what the oracle says of them.

  Attributes:
    recall: auditable gaps that have a confirmed mode; None without an oracle.
    precision: confirmed modes that the oracle bears out; None without an oracle.
    found: all modes.
    confirmed: those that fresh probes confirm.
    families: families of these: modes that share a word are one.
    per_gap: confirmed modes for each gap that has any; None without an oracle.
  """

  recall: Rate | None
  precision: Rate | None
  found: int
  confirmed: int = 0
  families: int = 0
  per_gap: float | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
  """One source of probes.

  Attributes:
    queries: that it took; a disagreement that was asked again took two.
    verified: the share of real failures among its probes, see `Summary`; None where nobody checked.
    queries_to_gaps: see `Coverage`.
    modes: nameable modes of its confirmed finds against those of the other arms; None where they
      are too few.
    corrected: its distinct questions on which the target is wrong, see `Summary`.
  """

  queries: int
  verified: Rate | None
  confirmed_unique: int | None
  gaps_found: int | None
  queries_to_gaps: tuple[int, ...] | None
  modes: Diversity | None
  corrected: Corrected | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The sweep, whose success is that of its ranking and not that of an auditor.

  Attributes:
    success: the share of real failures among its probes, see `Summary`.
    proposals: what was proposed for them, malformed replies and repeats included.
    images: those that the proposals of a batch go back to, on average.
    predicted: mean probability of a find that the surrogate gave to what it ranked; None if all
      was drawn by lot.
    found: the share of finds among these.
    flops: of the auditors that wrote the proposals, and of the surrogate.
    returned: the share of disagreements that returned in other words, of those that were asked so;
      None if none was.
  """

  success: Rate
  proposals: int
  images: float
  predicted: float | None
  found: Rate
  flops: Mapping[str, float]
  returned: Rate | None = None

  @property
  def selection(self) -> str:
    """What its success must be named with."""
    each = self.proposals / max(self.success.n, 1)
    if self.predicted is None:
      return f"drawn by lot from {each:.1f} proposals for each"
    return f"best of {each:.1f} proposals, ranked over {self.images:,.0f} images"


@dataclasses.dataclass(frozen=True)
class YieldPoint:
  """What an arm had found after so many queries.

  Attributes:
    queries: that it had taken.
    answers: of all models to them.
    finds: distinct questions about an image on which the target conflicts with the consensus.
    confirmed: those of them that are real failures, see `Summary`; None where nobody checked.
    gaps: auditable gaps with enough of these; None without an oracle.
    modes: confirmed modes with enough of these; None where modes were not looked for.
    precision: share of real failures among the new finds that were checked since the last point.
  """

  queries: int
  answers: int
  finds: int
  confirmed: int | None
  gaps: int | None
  modes: int | None
  precision: Rate


@dataclasses.dataclass(frozen=True)
class Yield:
  """What an arm found by queries, and what that cost.

  Attributes:
    points: the last one is that of all its queries.
    seconds: that the stages of the arm took; None if they were not timed.
    flops: useful operations by phase; None where they were not counted.
  """

  points: tuple[YieldPoint, ...]
  seconds: float | None = None
  flops: Mapping[str, float] | None = None

  @property
  def seconds_per_find(self) -> float | None:
    """For each distinct confirmed find."""
    return self._per_find(self.seconds)

  @property
  def flops_per_find(self) -> float | None:
    """The same in operations; None where the answers are not counted, as those of endpoints."""
    counted = self.flops is not None and "answers" in self.flops
    return self._per_find(sum(self.flops.values()) if self.flops and counted else None)

  def _per_find(self, cost: float | None) -> float | None:
    confirmed = self.points[-1].confirmed
    return cost / confirmed if cost is not None and confirmed else None


@dataclasses.dataclass(frozen=True)
class StrategyRow:
  """One way of making probes.

  Attributes:
    verified: the share of real failures among its probes, see `Summary`.
    only_here: nameable modes that no other strategy found.
    faithful: made images that show what was asked for.
    exposed_by_image: confirmed finds by gap that took the new image.
  """

  verified: Rate
  only_here: int | None
  faithful: Rate | None = None
  exposed_by_image: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class CurvePoint:
  """Search success over some steps of GRPO, up to `step`.

  `effective_modes` is the Hill number of order 1 of the confirmed finds, as if each point had as
  many as the one with the fewest; points with too few have none.
  """

  step: int
  success: float | None
  n: int
  ci95: tuple[float, float]
  effective_modes: float | None


@dataclasses.dataclass(frozen=True)
class Queries:
  """How many questions about an image the audit put to the models together.

  Completions that repeat a probe of their step count once in `grpo_distinct`. How often each model
  answered, also in benchmarks, verification and controls, is `cost` in the manifest.

  Probes about an unlabelled pool (`bootstrap`) are not in the total.
  """

  grpo: int
  grpo_distinct: int
  discover: int
  total: int
  control_random: int | None
  verify_looked_at: int
  bootstrap: int = 0


@dataclasses.dataclass(frozen=True)
class Compared:
  """The distinct questions about an image, and what became of them.

  Attributes:
    asked: those that were put to the models.
    failures: verified failures among those that can be compared: the references agree, or in a
      cascade the target with the first of them.
    left_out: those that cannot, by the reason of their verdict.
    not_looked_at: conflicts beyond the limit of verification; `failures` is a lower bound then.
  """

  asked: int
  failures: Rate
  left_out: Mapping[str, int]
  not_looked_at: int

  @property
  def verdict(self) -> str:
    """What the audit amounts to, in one sentence."""
    rate = self.failures
    if not rate.n:
      why = ", ".join(f"{reason} {n:,}" for reason, n in self.left_out.items())
      return f"none of {self.asked:,} questions can be compared{f': {why}' if why else ''}"
    if rate.k:
      low, high = rate.ci95
      found = f"{rate.k:,} failures verified among {rate.n:,} questions that can be compared"
      found += f": {rate.value:.1%} [{low:.1%}, {high:.1%}]"
      return f"{found}, a lower bound" if self.not_looked_at else found
    if self.not_looked_at:
      return f"no failure found, but {self.not_looked_at:,} conflicts were not looked at"
    of = f"{rate.n:,} questions that can be compared"
    return f"no failure found: looked at {of}, failure rate below {rate.ci95[1]:.2%} (95 %)"


@dataclasses.dataclass(frozen=True)
class ModeChange:
  """A known mode before and after a repair, see `audit.compare`; `round` is where it was found."""

  mode_id: str
  name: str
  status: str
  before: Rate
  after: Rate
  change_ci95: tuple[float, float]
  q: float
  round: int = 1


@dataclasses.dataclass(frozen=True)
class TracedMode:
  """A mode of a later round, and what it is to those of the rounds before, see `audit.rounds`.

  Attributes:
    relation: same, split, merged, new, missed, not confirmed, or too few.
    status: what fresh probes say: confirmed, not confirmed, or too few.
    parents: names of the earlier modes with a part in it.
    covered: its members that fall under any earlier mode.
    before: failure rate of the target of the round before on its fresh probes; None without any.
    after: the same of the round's target.
    k: failures of its discovery.
    n: attempts of its discovery.
  """

  mode_id: str
  name: str
  definition: str
  relation: str
  status: str
  parents: tuple[str, ...]
  covered: Rate
  before: Rate | None
  after: Rate | None
  k: int
  n: int


@dataclasses.dataclass(frozen=True)
class RestChange:
  """Failure rates on fresh probes outside all modes: what a repair made worse."""

  before: Rate
  after: Rate
  change_ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class RoundRow:
  """One round in numbers; None is what was not measured.

  Attributes:
    confirmed: modes that fresh probes confirm.
    new: those of them that no earlier round had.
    gaps_found: planted gaps with enough confirmed finds in this round.
    false_positive: unique finds that the oracle does not confirm; without one, labelled finds that
      are not real.
    queries: probes that were put to the models.
    examples: that its repair learned.
    labels: of their labels, those that are right, by who knows best.
    repaired: its confirmed modes that its repair fixes or improves.
    kept: modes that earlier repairs fixed or improved, and that its repaired target still has so.
    rest: outside all its modes, before and after its repair.
    accuracy: of its repaired target on the benchmark.
  """

  round: int
  confirmed: int
  new: int
  gaps_found: int | None
  false_positive: Rate | None
  queries: int
  examples: int | None = None
  labels: Rate | None = None
  repaired: Rate | None = None
  kept: Rate | None = None
  rest: RestChange | None = None
  accuracy: Accuracy | None = None


@dataclasses.dataclass(frozen=True)
class Reaudited:
  """What a round's repair changed.

  Attributes:
    number: of the round.
    success: search success of the round's auditor against the repaired target.
    modes: all modes known so far, of earlier rounds too, on their fresh probes.
    rest: fresh probes of the round outside all its modes; None if there are none.
    queries: probes that it took.
  """

  number: int
  success: Rate
  modes: tuple[ModeChange, ...]
  rest: RestChange | None = None
  queries: int = 0


@dataclasses.dataclass(frozen=True)
class LaterRound:
  """The audit of a repaired target.

  Attributes:
    number: of the round.
    first_steps: search success of the first steps of GRPO.
    last_steps: the same of the last steps.
    finds_by_gap: confirmed unique finds.
    finds: unique finds that the oracle confirms; None without one.
    found: modes of the round.
    queries: probes of the round.
  """

  number: int
  first_steps: Rate
  last_steps: Rate
  finds_by_gap: Mapping[str, int]
  finds: Rate | None
  found: tuple[TracedMode, ...]
  queries: int

  @property
  def new(self) -> tuple[TracedMode, ...]:
    """Modes that no earlier round had, and that hold."""
    return tuple(m for m in self.found if is_new(m.relation))

  @property
  def confirmed(self) -> int:
    """How many modes fresh probes confirm."""
    return sum(m.status == "confirmed" for m in self.found)


@dataclasses.dataclass(frozen=True)
class Summary:
  """An audit as far as it has come.

  A real failure is a find that the oracle confirms; without an oracle, one that was verified (V1).

  Attributes:
    compared: distinct questions, and how many of them are verified failures.
    search: shares of real failures among the probes of one auditor on fresh images.
    precision: verified failures that the oracle confirms; None without an oracle.
    find_precision: how many finds are real, by who knows best; None = nobody knows, and every
      number is conditional on the references.
    corrected: share of the distinct questions that can be compared on which the target is wrong,
      after correction for the references' errors; None without labelled questions.
    grades: how many finds are real grade by grade, by each who knows.
    coverage: by the oracle.
    rectify: accuracy by model: baseline, larger sibling, repaired, controls.
    reaudit: search success of the first round's auditor against the repaired target.
    reaudits: what the repairs of the rounds changed, in their order.
    later: the rounds after the first one.
    stopped: why there are no more rounds; "" if there are as many as were wanted.
    sweep: what the sweep's success is worth; None without one.
    calibration: what the surrogate predicted in training and in the sweep, against what was found.
    hacks: by arm, finds that are no failures, by what makes them look like one.
    yields: by arm, what was found after how many queries, and its cost.
    arms: by arm, with their sum, and the control if there was one.
    seconds: by stage.
    labels: what people say of a random sample of finds; None without labels.
    right_failures: questions that can be compared, and that are verified failures and right
      by people; the target is wrong on at least so many.
    rounds: a row for each round.
  """

  target: str
  compared: Compared
  search: Search | None
  search_modes: SearchModes | None
  precision: Rate | None
  coverage: Coverage | None
  gaps: Mapping[str, GapScore]
  modes: ModeScores
  rectify: Mapping[str, Accuracy]
  reaudit: Rate | None
  reaudits: tuple[Reaudited, ...]
  later: tuple[LaterRound, ...]
  arms: Mapping[str, Arm]
  strategies: Mapping[str, StrategyRow]
  curve: tuple[CurvePoint, ...]
  queries: Queries
  find_precision: FindPrecision | None = None
  corrected: Corrected | None = None
  grades: tuple[GradePrecision, ...] = ()
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  labels: LabelScores | None = None
  right_failures: Rate | None = None
  rounds: tuple[RoundRow, ...] = ()
  stopped: str = ""
  sweep: Sweep | None = None
  calibration: tuple[Calibration, ...] = ()
  hacks: Mapping[str, ArmHacks] = dataclasses.field(default_factory=dict)
  yields: Mapping[str, Yield] = dataclasses.field(default_factory=dict)

  @property
  def alarms(self) -> tuple[str, ...]:
    """What a reader must know before any number, in sentences."""
    known = self.find_precision
    if known is None or not known.real.n:
      return (
        "No label, no person and no oracle says which finds are real: every number is conditional"
        " on the references being right.",
      )
    alarms = [known.sentence] if known.mostly_wrong or known.cannot_judge else []
    if self.corrected and self.corrected.rate is None and not known.cannot_judge:
      alarms.append(
        "By the labels, this ensemble flags a right target nearly as often as a wrong one: no"
        " corrected rate is given."
      )
    return tuple(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in alarms)
