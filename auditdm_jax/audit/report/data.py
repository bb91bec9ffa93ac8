# SPDX-License-Identifier: Apache-2.0
"""What a report shows, as plain frozen values: nothing here knows how it was measured or is drawn.

Every section may be left empty; an empty section is left out of the pages.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from auditdm_jax.audit.attempt import Failure, Gate
from auditdm_jax.audit.confirm import ConfirmConfig
from auditdm_jax.audit.diversity import Diversity
from auditdm_jax.audit.health import Health
from auditdm_jax.audit.rates import Corrected, Rate
from auditdm_jax.audit.summary import RoundRow, Summary

LIMITS = (
  (
    "Consensus is not truth",
    "A failure is a conflict between the target and a consensus of reference models. When the "
    "references share an error, the target is blamed for being right, and a weakness that all "
    "models share is never seen. The co-error table says how often the references are wrong "
    "together, where that can be measured.",
  ),
  (
    "What was not asked is not known",
    "The audit finds failures that the auditor, its strategies and its image pool can reach. "
    "The absence of a mode from this report is not evidence of its absence from the model.",
  ),
  (
    "Rates belong to their probes",
    "A mode's rate is measured on fresh probes drawn from the mode as it is defined here. It "
    "is not the rate of the error in anyone's traffic, and rates of two modes do not add up.",
  ),
  (
    "Names are descriptions",
    "A mode is a rule over questions and answers with a readable name. The name describes "
    "what its members share; it does not claim a cause inside the model.",
  ),
  (
    "Made images are made images",
    "Generated and edited images can contain something else than what was asked for. The "
    "gates remove many of these, not all, and a failure on a made image may not carry over to "
    "photographs.",
  ),
  (
    "Repair is measured where it was measured",
    "Accuracy after fine-tuning is that of the held-out benchmark shown. Skills that the "
    "benchmark does not cover may have changed in either direction.",
  ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunnelRow:
  """One stage that probes pass on their way to a verified failure."""

  name: str
  count: int
  note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateRow:
  """One gate over the finds that it is about; `passed` counts only those where it was measured."""

  name: str
  passed: Rate
  failed: int
  unmeasured: int
  required: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutsideRow:
  """Somebody outside the ensemble: on how many verified failures it sides with the consensus.

  `others` counts the rest by whose side was taken, `unmeasured` those without an answer.
  """

  name: str
  agrees: Rate
  others: Mapping[str, int]
  unmeasured: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorthRow:
  """Some finds, how many of them are real, and who knows."""

  name: str
  rate: Rate
  by: str
  note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """One failure, with all that is needed to believe or to doubt it.

  `original` is the image the probe started from, `edited` the image that was asked about when it
  is not the original. The difference image is made by the report.
  """

  probe_id: str
  question: str
  target: str
  answers: Mapping[str, str | None]
  consensus: str
  grade: str
  original: pathlib.Path | None
  edited: pathlib.Path | None = None
  strategy: str = ""
  truth: str | None = None
  truth_by: str = "independent judge"
  gates: Sequence[Gate] = ()
  lineage: Mapping[str, str] = dataclasses.field(default_factory=dict)
  command: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindRow:
  """A find in the list of all; `why` says what verification or a person had against it."""

  card: Card
  mode_id: str = ""
  mode: str = ""
  arm: str = ""
  why: str = ""
  label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindList:
  """The finds that verification looked at.

  Attributes:
    failures: all of them, read anew each time.
    total: their number.
    shown: what fits a page; the downloads have the rest.
    required: the gates that V1 needs.
    modes: names by id.
    not_looked_at: finds beyond the limit of verification.
  """

  failures: Iterable[Failure]
  total: int
  shown: Sequence[FindRow]
  required: Sequence[str] = ()
  modes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  not_looked_at: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostRow:
  """What a run spent on something: answers of a model, tokens, requests or seconds."""

  name: str
  amount: float
  unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRow:
  """A line of a comparison of two models; rates are failure rates."""

  name: str
  status: str
  old: Rate
  new: Rate
  change_ci95: tuple[float, float]
  needs_more: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerChange:
  """A question that only one of two models fails."""

  mode: str
  question: str
  expected: str
  old: str
  new: str
  worse: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerView:
  """A comparison of two models that was left in the folder of the run."""

  old: str
  new: str
  verdict: str
  probes: str
  left_out: int
  rows: Sequence[LedgerRow]
  changes: Sequence[LedgerChange] = ()
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModeView:
  """A failure mode: its frozen definition, its rate on fresh probes and some of its members.

  `base` is the failure rate outside all modes, `ratio` that of both in words. A mode that does not
  hold (`holds`) is folded below the others; `status` says why.
  """

  mode_id: str
  name: str
  skill: str
  definition: str
  members: int
  rate: Rate | None = None
  base: Rate | None = None
  ratio: str = ""
  status: str = ""
  holds: bool = True
  cards: Sequence[Card] = ()
  notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmRow:
  """One source of probes, for instance an auditor checkpoint or random questions.

  `gaps_after` has the queries after which it had found the first planted gap, the second and so on;
  `varied` compares its confirmed finds with those of the other arms.
  """

  name: str
  queries: int
  confirmed: Rate | None
  gaps_found: int | None = None
  gaps_after: Sequence[int] = ()
  modes_found: int | None = None
  varied: Diversity | None = None
  corrected: Corrected | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """A GRPO run; `success` is in [0, 1], `effective_modes` as in `summary.CurvePoint`.

  None is a step of which there is nothing to tell.
  """

  name: str
  steps: Sequence[int]
  success: Sequence[float | None]
  effective_modes: Sequence[float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrategyView:
  """A way of making probes; `faithful` counts made images that show what was asked for."""

  name: str
  confirmed: Rate
  faithful: Rate | None = None
  only_here: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifyRow:
  """Held-out accuracy of the baseline, the repaired target, a control or a larger sibling.

  `labels` says how many of its consensus labels are right.
  """

  name: str
  all: Rate
  gaps: Rate | None = None
  rest: Rate | None = None
  examples: int | None = None
  queries: int | None = None
  labels: str = ""
  note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundModeRow:
  """One mode before and after a repair; `origin` says which round or earlier modes it is from."""

  name: str
  before: Rate | None
  after: Rate | None
  status: str
  origin: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundView:
  """One round.

  Attributes:
    name: its number.
    row: its numbers.
    rest: what its repair changed outside all its modes.
    seconds: that it took; None if it was not measured.
    found: its modes, traced to earlier ones; the first round has none.
    changed: all modes known so far, before and after its repair.
  """

  name: str
  row: RoundRow
  rest: str
  seconds: float | None
  found: Sequence[RoundModeRow] = ()
  changed: Sequence[RoundModeRow] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtraPage:
  """A page that another part of the program fills.

  Attributes:
    name: in the list of pages.
    path: its file in the report's folder.
    template: of the page.
    values: what it shows.
    files: what lies beside it, by name: text of this program's own making.
  """

  name: str
  path: str
  template: str
  values: Mapping[str, Any]
  files: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRow:
  """A run, or a sweep of runs, in a list.

  Attributes:
    name: of its folder, below the folder of the list.
    target: the audited model's name, of a sweep its config; "" = not known.
    started: when its first stage did, in ISO's form; "" = not known.
    state: how far it is.
    headline: what its last report says it found; "" = there is none.
    link: address of that report, relative to the list; "" = there is none.
  """

  name: str
  target: str
  started: str
  state: str
  headline: str
  link: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRow:
  """A stage of a run that goes on; `seconds` that it took, None = not known."""

  name: str
  is_done: bool
  note: str = ""
  seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
  """Everything that `write_report` needs.

  `not_measured` are pairs of what a reader may look for, and why it is not there. `too_small` says
  which numbers rest on few. `of_finds` fresh probes ask what finds of a mode asked. `code` is the
  version of the program.

  The report of a run that goes on has `stages`; before its failures are verified it has no summary,
  but what is known `so_far` in one sentence, and the `newest` conflicts.
  """

  title: str
  target: str
  created: str
  summary: Summary | None = None
  stages: Sequence[StageRow] = ()
  so_far: str = ""
  newest: Sequence[Card] = ()
  references: Sequence[str] = ()
  funnel: Sequence[FunnelRow] = ()
  gates: Sequence[GateRow] = ()
  outside: Sequence[OutsideRow] = ()
  worth: Sequence[WorthRow] = ()
  modes: Sequence[ModeView] = ()
  level: float = ConfirmConfig.level
  of_finds: int = 0
  arms: Sequence[ArmRow] = ()
  curves: Sequence[Curve] = ()
  strategies: Sequence[StrategyView] = ()
  rectify: Sequence[RectifyRow] = ()
  rounds: Sequence[RoundView] = ()
  health: Health | None = None
  pages: Sequence[ExtraPage] = ()
  finds: FindList | None = None
  ledger: LedgerView | None = None
  cost: Sequence[CostRow] = ()
  too_small: Sequence[str] = ()
  code: str = ""
  not_measured: Sequence[tuple[str, str]] = ()
  methods: Sequence[tuple[str, str]] = ()
  limits: Sequence[tuple[str, str]] = LIMITS
  commands: Sequence[str] = ()
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
