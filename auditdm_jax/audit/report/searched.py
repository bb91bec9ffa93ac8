# SPDX-License-Identifier: Apache-2.0
"""Pictures of a search: what it found by queries, and what its surrogate predicted."""

from collections.abc import Callable, Mapping

import markupsafe

from auditdm_jax.audit.report import charts
from auditdm_jax.audit.summary import Summary, Yield, YieldPoint

_EXACT = "exact predictions"


def yield_charts(summary: Summary, finds: str) -> list[tuple[str, markupsafe.Markup]]:
  """Returns (caption, picture) of what each arm had found by queries; what nobody told is left out.

  Args:
    summary: the audit.
    finds: what real failures are called.
  """
  wanted: list[tuple[str, Callable[[YieldPoint], float | None], bool]] = [
    ("Planted gaps found", lambda p: p.gaps, False),
    ("Confirmed failure modes", lambda p: None if p.gaps is not None else p.modes, False),
    (f"{finds}, distinct", lambda p: p.confirmed, False),
    ("Real ones among new finds, %", lambda p: p.precision.rate, True),
  ]
  return [
    (caption, _chart(summary.yields, value, caption, as_percent=as_percent))
    for caption, value, as_percent in wanted
    if any(value(p) is not None for arm in summary.yields.values() for p in arm.points)
  ]


def _chart(
  arms: Mapping[str, Yield],
  value: Callable[[YieldPoint], float | None],
  caption: str,
  *,
  as_percent: bool,
) -> markupsafe.Markup:
  return charts.line_chart(
    [
      (name, [p.queries for p in arm.points], [*map(value, arm.points)])
      for name, arm in arms.items()
    ],
    title=f"{caption} over queries",
    x_label="queries",
    as_percent=as_percent,
  )


def calibration_chart(summary: Summary) -> tuple[list[str], markupsafe.Markup]:
  """Returns the names of the lines and the picture of predictions against finds, bin by bin."""
  lines = [(_EXACT, [0.0, 100.0], [0.0, 1.0])] + [
    (c.where, [100 * b.predicted for b in c.bins], [b.found.rate for b in c.bins])
    for c in summary.calibration
    if c.chosen == "all"
  ]
  picture = charts.line_chart(
    lines, title="Finds by predicted probability", x_label="predicted, %", as_percent=True
  )
  return [name for name, _, _ in lines], picture
