# SPDX-License-Identifier: Apache-2.0
"""One table of all benchmarks: each model's value, its difference to the baseline, the paper's row.

Values are the metric's times the benchmark's scale. Differences are on the units of both models.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses

from auditdm_jax.audit import rates
from auditdm_jax.audit.rates import Rate
from auditdm_jax.bench import compare
from auditdm_jax.bench.compare import Estimate, PairedChange
from auditdm_jax.bench.results import BenchResult, ResultRows
from auditdm_jax.bench.scorers import Metric, Scored
from auditdm_jax.bench.specs.base import BenchmarkSpec, MetricName, PaperRow

MetricOf = Callable[[BenchResult], Metric]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleCell:
  """A model's value.

  Attributes:
    role: of the model.
    model: its name.
    metric: how it was scored, which depends on whose prompt it was asked.
    found: the value and its interval, scaled.
    predictions: behind the value.
    invalid: of them, those that could not be read, which are wrong.
    unanswered: items left out since no reply came.
    cut: replies that reached the limit.
  """

  role: str
  model: str
  metric: MetricName
  found: Estimate
  predictions: int
  invalid: int
  unanswered: int
  cut: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleChange:
  """A model's difference to the baseline.

  Attributes:
    role: of the model.
    found: the difference, scaled.
    q: p, adjusted for as many benchmarks as the table has (Benjamini and Hochberg).
  """

  role: str
  found: PairedChange
  q: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchRow:
  """A benchmark under one metric.

  Attributes:
    entry: the key of the config.
    title: for people.
    split: of the benchmark.
    part: "512 of 10,240, drawn by image", "" for the whole split.
    primary: name of the metric's value.
    scale: what the metric's value is multiplied by.
    cells: one per model that was scored, the baseline first.
    changes: of the others.
    paper: the published row of this split, if there is one.
    notes: what to know before comparing.
  """

  entry: str
  title: str
  split: str
  part: str
  primary: str
  scale: float
  cells: tuple[RoleCell, ...]
  changes: tuple[RoleChange, ...]
  paper: PaperRow | None
  notes: tuple[str, ...]

  def cell(self, role: str) -> RoleCell | None:
    """Returns a model's value, or None."""
    return next((c for c in self.cells if c.role == role), None)

  def change(self, role: str) -> RoleChange | None:
    """Returns a model's difference, or None."""
    return next((c for c in self.changes if c.role == role), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetting:
  """What a model lost and gained over all benchmarks whose units are right or wrong.

  Attributes:
    role: of the model.
    lost: of the units that the baseline has right, those that the model has not.
    gained: of the units that the baseline has wrong, those that the model has right.
    benchmarks: titles of those that count.
  """

  role: str
  lost: Rate
  gained: Rate
  benchmarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchTable:
  """All benchmarks of a config.

  Attributes:
    baseline: the role that others are compared with.
    roles: of all models, the baseline first.
    rows: one per benchmark and metric.
    forgetting: one per model but the baseline.
  """

  baseline: str
  roles: tuple[str, ...]
  rows: tuple[BenchRow, ...]
  forgetting: tuple[Forgetting, ...]


def tabulate(
  results: Sequence[Mapping[str, ResultRows]],
  specs: Sequence[BenchmarkSpec],
  metric_of: MetricOf,
  *,
  baseline: str,
  roles: Sequence[str],
  draws: int = 2_000,
  seed: int = 0,
  forgets: Collection[str] | None = None,
) -> BenchTable:
  """Makes the table.

  Args:
    results: per row of the table, results by role.
    specs: the benchmark of each row.
    metric_of: how a result was scored.
    baseline: the role that others are compared with.
    roles: in the order of the columns.
    draws: of bootstraps and tests.
    seed: of the draws.
    forgets: entries that count for forgetting, where others are parts of them; None = all.
  """
  order = (baseline, *(r for r in roles if r != baseline))
  rows, kinds = [], []
  for by_role, spec in zip(results, specs, strict=True):
    metrics = {role: metric_of(r.head) for role, r in by_role.items()}
    row = _row(by_role, spec, metrics, baseline=baseline, order=order, draws=draws, seed=seed)
    rows.append(row)
    known = by_role.get(baseline)
    # The shares of right and wrong units are told once a benchmark, as its prompt is scored.
    counts = known is not None and not known.head.override and _is_right_or_wrong(known)
    kinds.append(counts and (forgets is None or row.entry in forgets))
  counted = [(by, spec) for by, spec, right in zip(results, specs, kinds, strict=True) if right]
  return BenchTable(
    baseline=baseline,
    roles=order,
    rows=tuple(_adjusted(rows, order[1:])),
    forgetting=tuple(
      row for role in order[1:] if (row := _forgetting(counted, baseline, role)) is not None
    ),
  )


def _row(
  by_role: Mapping[str, ResultRows],
  spec: BenchmarkSpec,
  metrics: Mapping[str, Metric],
  *,
  baseline: str,
  order: Sequence[str],
  draws: int,
  seed: int,
) -> BenchRow:
  there = [role for role in order if role in by_role]
  head = by_role[there[0]].head
  cells = tuple(_cell(by_role[r], metrics[r], spec.scale, draws, seed) for r in there)
  changes = []
  for role in there:
    if role == baseline or baseline not in by_role:
      continue
    found = compare.change(
      metrics[baseline],
      dict(by_role[baseline].units),
      dict(by_role[role].units),
      draws=draws,
      seed=seed,
    )
    if found is not None:
      changes.append(RoleChange(role=role, found=_scaled_change(found, spec.scale), q=found.p))
  return BenchRow(
    entry=head.asked.entry,
    title=spec.title,
    split=head.asked.split,
    part=head.asked.part,
    primary=head.primary,
    scale=spec.scale,
    cells=cells,
    changes=tuple(changes),
    paper=next((row for row in spec.paper if row.split == head.asked.split), None),
    notes=tuple(_notes(by_role, spec, order)),
  )


def _cell(rows: ResultRows, metric: Metric, scale: float, draws: int, seed: int) -> RoleCell:
  head, found = rows.head, compare.estimate(metric, [*rows.units.values()], draws=draws, seed=seed)
  low, high = found.ci95
  return RoleCell(
    role=head.asked.role,
    model=head.asked.model.name,
    metric=head.metric,
    found=dataclasses.replace(
      found,
      value=None if found.value is None else found.value * scale,
      ci95=(low * scale, high * scale),
    ),
    predictions=head.predictions,
    invalid=head.invalid,
    unanswered=head.unanswered,
    cut=head.asked.cut,
  )


def _scaled_change(found: PairedChange, scale: float) -> PairedChange:
  low, high = found.ci95
  return dataclasses.replace(
    found,
    change=found.change * scale,
    ci95=(low * scale, high * scale),
    detectable=found.detectable * scale,
  )


def _notes(
  by_role: Mapping[str, ResultRows], spec: BenchmarkSpec, order: Sequence[str]
) -> list[str]:
  heads = [by_role[r].head for r in order if r in by_role]
  first, notes = heads[0], []
  if first.asked.part:
    notes.append(f"part of {first.asked.split}: {first.asked.part}")
  if len({h.asked.family for h in heads}) > 1:
    named = ", ".join(f"{h.asked.role} {h.asked.family}" for h in heads)
    notes.append(f"the models are asked in different words: {named}")
  if len({h.metric for h in heads}) > 1:
    named = ", ".join(f"{h.asked.role} {h.metric.name}/{h.metric.variant}" for h in heads)
    notes.append(f"and scored by different rules: {named}")
  if len({(h.asked.split, h.asked.items, h.units) for h in heads}) > 1:
    notes.append("the models were scored on different items; differences are on those of both")
  if first.asked.prompt.beam > 1:
    notes.append(f"greedy; published values are of beam {first.asked.prompt.beam}")
  if first.unscorable:
    notes.append(f"of {first.unscorable:,} items no answer is known")
  if missing := [role for role in order if role not in by_role]:
    notes.append(f"not scored: {', '.join(missing)}")
  others = sorted({row.split for row in spec.paper} - {first.asked.split})
  if others:
    notes.append(f"the paper reports {', '.join(others)}")
  return notes


def _adjusted(rows: Sequence[BenchRow], roles: Sequence[str]) -> list[BenchRow]:
  """Fills in q: for each model over the rows of the table."""
  out = list(rows)
  for role in roles:
    places = [i for i, row in enumerate(out) if row.change(role) is not None]
    p = [c.found.p for i in places if (c := out[i].change(role)) is not None]
    for i, q in zip(places, rates.benjamini_hochberg(p) if p else [], strict=True):
      changes = tuple(
        dataclasses.replace(c, q=float(q)) if c.role == role else c for c in out[i].changes
      )
      out[i] = dataclasses.replace(out[i], changes=changes)
  return out


def _is_right_or_wrong(rows: ResultRows) -> bool:
  """Returns whether units are scored in [0, 1], of which most are one of both."""
  scores = [row.score for row in rows.units.values()]
  return (
    all(0 <= x <= 1 for x in scores)
    and sum(x in (0.0, 1.0) for x in scores) * 2 >= len(scores)
    and not rows.head.primary.startswith("cider")
  )


def _forgetting(
  counted: Sequence[tuple[Mapping[str, ResultRows], BenchmarkSpec]], baseline: str, role: str
) -> Forgetting | None:
  old: list[Scored] = []
  new: list[Scored] = []
  images: list[str] = []
  titles: list[str] = []
  seen: set[tuple[str, str, str]] = set()  # Benchmarks may be parts of one another.
  for by_role, spec in counted:
    if role not in by_role:
      continue
    asked = by_role[baseline].head.asked
    source = spec.same_images[0] if spec.same_images else asked.path
    before, after = by_role[baseline].units, by_role[role].units
    for key in (k for k in before if k in after):
      if (name := (asked.path, asked.split, key)) not in seen:
        seen.add(name)
        old.append(before[key])
        new.append(after[key])
        images.append(f"{source}/{before[key].image}")
    titles.append(spec.title)
  if not old:
    return None
  lost, gained = compare.forgotten(old, new, images)
  return Forgetting(role=role, lost=lost, gained=gained, benchmarks=tuple(titles))
