# SPDX-License-Identifier: Apache-2.0
"""Small inline SVG drawings, with colours from style.css, so that they follow the theme.

No `style` attribute is used: the pages' content security policy forbids inline styles.
"""

from collections.abc import Sequence

import markupsafe

from auditdm_jax.audit.diversity import HillEstimate
from auditdm_jax.audit.report import data
from auditdm_jax.audit.report import text as text_lib

_PLOT = dict(width=360, height=200, left=38, right=14, top=10, bottom=34)


def escape(text: str) -> markupsafe.Markup:
  return markupsafe.escape(text_lib.safe(text))


def percent(value: float | None) -> str:
  """`61.7 %`, with a narrow no-break space; more digits only below one per cent; None is `–`."""
  if value is None:
    return "–"
  digits = 2 if 0 < value < 0.01 else 1
  return f"{100 * value:.{digits}f}\u202f%"


def points(change: float) -> str:
  """A change of a share in points, with its sign."""
  rounded = round(100 * change, 1) + 0.0
  return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def count(k: float) -> str:
  """A number of successes; a sum of scores or of weighted ones has one digit more."""
  return f"{k:,.0f}" if k == int(k) else f"{k:,.1f}"


def rate_text(rate: data.Rate) -> str:
  """`61.7 % (617/1000, 95 % interval 58.6–64.7 %)`, and `–, n = 0` where nothing was counted."""
  if not rate.n:
    return f"{percent(None)}, n = 0"
  low, high = rate.ci95
  counts = f"{count(rate.k)}/{rate.n:,}"
  interval = f"95\u202f% interval {100 * low:.1f}–{100 * high:.1f}\u202f%"
  return f"{percent(rate.rate)} ({counts}, {interval})"


def estimate_text(found: HillEstimate) -> str:
  """`7.9 [6.9, 9.4]`."""
  low, high = found.ci95
  return f"{found.value:.1f} [{low:.1f}, {high:.1f}]"


def interval_bar(rate: data.Rate, *, tone: str = "bad") -> markupsafe.Markup:
  """A track from 0 to 1 with the interval as a band and the rate (n > 0) as a mark."""
  low, high = (200 * min(max(x, 0.0), 1.0) for x in rate.ci95)
  mark = 200 * min(rate.value, 1.0)
  return markupsafe.Markup(
    '<svg class="interval {tone}" viewBox="-2 0 204 16" role="img" aria-label="{label}">'
    '<rect class="track" x="0" y="6" width="200" height="4" rx="2"/>'
    '<rect class="fill" x="0" y="6" width="{mark:.1f}" height="4" rx="2"/>'
    '<rect class="band" x="{low:.1f}" y="3" width="{width:.1f}" height="10" rx="3"/>'
    '<rect class="mark" x="{edge:.1f}" y="1" width="2.5" height="14" rx="1"/></svg>'
  ).format(
    tone=tone,
    label=rate_text(rate),
    low=low,
    width=max(high - low, 1.0),
    mark=mark,
    edge=mark - 1.25,
  )


def way_bar(rate: data.Rate, base: data.Rate | None) -> markupsafe.Markup:
  """A row of the picture of modes: interval, rate and the rate outside all modes, from 0 to 1.

  It is stretched to the width there is; lines keep their own.
  """
  low, high = (100 * min(max(x, 0.0), 1.0) for x in rate.ci95)
  lines = [(f"{x}", "grid") for x in (0, 25, 50, 75, 100)]
  if base is not None and base.n:
    lines.append((f"{100 * base.value:.1f}", "base"))
  drawn = [(x, 0, 24, name) for x, name in lines]
  drawn.append((f"{100 * min(rate.value, 1.0):.1f}", 4, 20, "mark"))
  stroke = markupsafe.Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
  parts = [stroke.format(name, x, x, top, end) for x, top, end, name in drawn]
  band = markupsafe.Markup('<rect class="band" x="{:.1f}" y="7" width="{:.1f}" height="10"/>')
  return markupsafe.Markup(
    '<svg class="way bad" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" '
    'aria-label="{}">{}{}{}</svg>'
  ).format(
    rate_text(rate),
    markupsafe.Markup("").join(parts[:-1]),
    band.format(low, max(high - low, 0.5)),
    parts[-1],
  )


def share_bar(count: int, total: int) -> markupsafe.Markup:
  """A plain bar of `count` out of `total`."""
  width = 200 * count / total if total else 0.0
  return markupsafe.Markup(
    '<svg class="share" viewBox="0 0 200 10" preserveAspectRatio="none" aria-hidden="true">'
    '<rect class="track" width="200" height="10" rx="2"/>'
    '<rect class="fill" width="{:.1f}" height="10" rx="2"/></svg>'
  ).format(width)


def _ticks(top: float) -> list[float]:
  """Returns two to six round numbers from 0 to at least `top` (> 0)."""
  step = next(m * 10**e for e in range(12) for m in (1, 2, 5) if top <= 5 * m * 10**e)
  return [float(step * i) for i in range(-int(-top // step) + 1)]


def line_chart(
  curves: Sequence[tuple[str, Sequence[float], Sequence[float | None]]],
  *,
  title: str,
  x_label: str = "GRPO step",
  as_percent: bool = False,
) -> markupsafe.Markup:
  """Draws (name, x, y) curves on shared axes that start at 0. The legend is the caller's.

  Args:
    curves: a None among y is a gap in the line.
    title: what the picture shows, for readers who cannot see it.
    x_label: text under the axis.
    as_percent: the y axis is 0 to 100 per cent of a share in [0, 1].
  """
  p = _PLOT
  highest = max((y for _, _, ys in curves for y in ys if y is not None), default=1.0)
  y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if as_percent else _ticks(max(highest, 1.0))
  x_top = max((x for _, xs, _ in curves for x in xs), default=0) or 1
  x_ticks = [tick for tick in _ticks(x_top) if tick <= x_top]
  y_top = y_ticks[-1]

  def at(x, y):
    inner_w, inner_h = p["width"] - p["left"] - p["right"], p["height"] - p["top"] - p["bottom"]
    return p["left"] + inner_w * x / x_top, p["top"] + inner_h * (1 - min(y, y_top) / y_top)

  parts = []
  for tick in y_ticks:
    (x0, y0), (x1, _) = at(0, tick), at(x_top, tick)
    label = f"{100 * tick:.0f}" if as_percent else f"{tick:g}"
    parts.append(f'<line class="grid" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y0:.1f}"/>')
    parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{label}</text>')
  for tick in x_ticks:
    x0, y0 = at(tick, 0)
    parts.append(f'<text x="{x0:.1f}" y="{y0 + 15:.1f}" text-anchor="middle">{tick:g}</text>')
  for i, (_, xs, ys) in enumerate(curves):
    path, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
      if y is None:
        pen = "M"
        continue
      px, py = at(x, y)
      path.append(f"{pen}{px:.1f} {py:.1f}")
      pen = "L"
    parts.append(f'<path class="curve c{i % 6}" d="{" ".join(path)}"/>')
  middle = (p["left"] + p["width"] - p["right"]) / 2
  parts.append(
    f'<text x="{middle:.0f}" y="{p["height"] - 2}" text-anchor="middle">{escape(x_label)}</text>'
  )
  return markupsafe.Markup(
    f'<svg class="chart" viewBox="0 0 {p["width"]} {p["height"]}" role="img" '
    f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
  )
