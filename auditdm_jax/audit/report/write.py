# SPDX-License-Identifier: Apache-2.0
"""`write_report`: turns `ReportData` into a folder of static pages.

All text is hostile until proven otherwise: questions and answers come from models. Jinja2 escapes
every value, what it would obey is shown instead, all of it is bounded (`text`), and the pages'
content security policy allows images and the style sheet of the folder, and of scripts only that
of the list of failures (`pages`).
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import tempfile
from typing import Any

from auditdm_jax.audit import hacks
from auditdm_jax.audit.rates import NOTHING, Rate
from auditdm_jax.audit.report import charts, first, listing, pages, pictures, searched
from auditdm_jax.audit.report import data as data_lib
from auditdm_jax.audit.report.pictures import Picture
from auditdm_jax.audit.summary import ALL_ARMS, Accuracy, Summary
from auditdm_jax.core import jsonio, paths

_MARKER = "report.json"
_FORMAT = "auditdm-report-1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ModePage:
  mode: data_lib.ModeView
  path: str
  pictures: list[list[Picture]]

  @property
  def thumb(self) -> Picture | None:
    """The image asked about in the first card."""
    first = next((p for p in self.pictures if p), None)
    return first[min(1, len(first) - 1)] if first else None


@dataclasses.dataclass(frozen=True)
class _Tile:
  label: str
  value: str
  note: str
  alarm: bool = False


def write_report(directory: str | os.PathLike, data: data_lib.ReportData) -> pathlib.Path:
  """Writes the report's folder and returns the path of its index.html.

  The folder is built beside its place and renamed into it, so that a reader never sees half of
  one. An earlier report at that place is replaced; the report of a run that goes on does not
  replace a whole one that was made since.

  Raises:
    ValueError: `directory` exists, is not empty and is not a report.
  """
  final = pathlib.Path(directory).absolute()
  _check_replaceable(final)
  final.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
    building = pathlib.Path(scratch) / "new"
    building.mkdir()
    _write_pages(building, data)
    with _alone(final):
      if data.stages and _is_newer(final, data.created):
        return final / "index.html"
      if final.exists():
        final.rename(pathlib.Path(scratch) / "old")
      building.rename(final)
  return final / "index.html"


@contextlib.contextmanager
def _alone(final: pathlib.Path) -> Iterator[None]:
  """Within the block no other process puts a report there; a look at a run may meet its end."""
  folder = os.open(final.parent, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # Some network file systems have no locks.
      fcntl.flock(folder, fcntl.LOCK_EX)
    yield
  finally:
    os.close(folder)


def _is_newer(final: pathlib.Path, created: str) -> bool:
  """Returns whether a whole report is there that was made since."""
  if not (final / _MARKER).is_file():
    return False
  there = jsonio.read_json(final / _MARKER)
  return not there.get("partial") and there["created"] >= created


def _check_replaceable(final: pathlib.Path) -> None:
  if final.exists() and not final.is_dir():
    raise ValueError(f"report: {final} exists and is not a folder")
  if final.exists() and any(final.iterdir()) and not (final / _MARKER).is_file():
    raise ValueError(f"report: {final} is not empty and was not written by this program")


def _write_pages(root: pathlib.Path, data: data_lib.ReportData) -> None:
  album = pictures.Album(root)
  modes = [
    _ModePage(
      mode=mode,
      path=f"modes/{pages.file_name(mode.mode_id)}.html",
      pictures=[album.card(card.original, card.edited) for card in mode.cards],
    )
    for mode in data.modes
  ]
  there = [
    (True, "Summary", "index.html"),
    (data.finds is not None, "All finds", "failures.html"),
    (bool(data.rounds), "Rounds", "rounds.html"),
    (data.ledger is not None, "Compared", "compared.html"),
    (True, "Methods", "methods.html"),
  ]
  extra = [(True, page.name, page.path) for page in data.pages]
  there[-1:-1] = extra
  tabs = [dict(name=name, path=path) for wanted, name, path in there if wanted]
  out = pages.Pages(root, d=data, pages=tabs)
  by_id = {page.mode.mode_id: page for page in modes}
  out.write(
    "index.html",
    "index.html",
    modes=modes,
    tiles=_tiles(data),
    verdict=first.sentence(data),
    ways=[by_id[mode.mode_id] for mode in first.ranked(data.modes)],
    ways_shown=first.SHOWN,
    worst=_worst(data, album, by_id),
    newest=[album.card(card.original, card.edited) for card in data.newest],
    corrected=_corrected(data.summary) if data.summary else "",
    finds=_finds_word(data.summary),
    funnel_top=max((row.count for row in data.funnel), default=0),
    success_chart=charts.line_chart(
      [(c.name, c.steps, c.success) for c in data.curves],
      title="Search success over GRPO steps",
      as_percent=True,
    ),
    modes_chart=charts.line_chart(
      [(c.name, c.steps, c.effective_modes) for c in data.curves],
      title="Effective number of modes over GRPO steps",
    )
    if any(x is not None for c in data.curves for x in c.effective_modes)
    else "",
    **_search(data.summary),
  )
  for i, page in enumerate(modes):
    before, after = modes[i - 1] if i else None, modes[i + 1] if i + 1 < len(modes) else None
    out.write(page.path, "mode.html", v=page, before=before, after=after)
  if data.finds is not None:
    _write_finds(root, out, data.finds, album, {m.mode.mode_id: m.path for m in modes})
  if data.rounds:
    out.write("rounds.html", "rounds.html")
  if data.ledger is not None:
    out.write("compared.html", "compared.html", ledger=data.ledger)
  for page in data.pages:
    _write_extra(root, out, page)
  summary = jsonio.plain(data.summary) if data.summary else {}
  out.write("methods.html", "methods.html", summary_rows=list(_summary_rows(summary)))
  _write_json(root / "summary.json", summary)
  marker = dict(format=_FORMAT, title=data.title, created=data.created, partial=bool(data.stages))
  _write_json(root / _MARKER, marker)


def _search(summary: Summary | None) -> dict[str, Any]:
  """Returns what the part about the search shows in addition to the summary."""
  if summary is None:
    return {}
  names, picture = searched.calibration_chart(summary)
  return dict(
    yield_charts=searched.yield_charts(summary, _finds_word(summary)),
    calibration_names=names,
    calibration_chart=picture,
    hack_limit=hacks.LIMIT,
  )


def write_page(directory: str | os.PathLike, page: data_lib.ExtraPage, *, created: str) -> None:
  """Writes a page by itself, with its style sheet and files."""
  root = pathlib.Path(directory)
  alone = data_lib.ReportData(title=page.name, target="", created=created)
  _write_extra(root, pages.Pages(root, d=alone, pages=[]), page)


def _write_extra(root: pathlib.Path, out: pages.Pages, page: data_lib.ExtraPage) -> None:
  out.write(page.path, page.template, **page.values)
  for name, text in page.files.items():
    paths.write_bytes(root / name, text.encode())


def _worst(
  data: data_lib.ReportData, album: pictures.Album, by_id: Mapping[str, _ModePage]
) -> list[tuple[first.Worst, Picture, str]]:
  """Returns the failures of the first screen, each with its picture and where its card is."""
  rows = []
  for item in first.worst(data):
    path = item.card.edited or item.card.original
    place = by_id[item.mode_id].path if item.mode_id else "failures.html"
    link = f"{place}#{pages.slug(item.card.probe_id)}"
    if path is not None:
      rows.append((item, album.store(path, caption="asked about"), link))
  return rows


def _write_finds(
  root: pathlib.Path,
  out: pages.Pages,
  finds: data_lib.FindList,
  album: pictures.Album,
  mode_pages: Mapping[str, str],
) -> None:
  """Writes the list of all finds and its downloads."""
  asked = [row.card.edited or row.card.original for row in finds.shown]
  shown = [album.store(path, caption="asked about") if path else None for path in asked]
  out.write(
    "failures.html",
    "failures.html",
    script="failures.js",
    finds=finds,
    rows=list(zip(finds.shown, shown, strict=True)),
    fell_out=listing.tally(finds.failures, finds.required),
    mode_pages=mode_pages,
  )
  listing.write_downloads(root, finds)


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")


def _rate(value: Any) -> Rate | None:
  """Returns the rate that a leaf of the summary is, or None."""
  fields = {f.name for f in dataclasses.fields(Rate)}
  return Rate(**value) if isinstance(value, Mapping) and value.keys() == fields else None


def _summary_rows(value: Any, path: str = ""):
  """Yields (dotted path, text) of every leaf of the summary; a rate is one leaf, so is a list."""
  if (rate := _rate(value)) is not None:
    yield path, charts.rate_text(rate)
  elif value is None:
    yield path, "not measured"
  elif isinstance(value, Mapping):
    for key, item in value.items():
      yield from _summary_rows(item, f"{path}.{key}" if path else str(key))
  elif isinstance(value, Sequence) and not isinstance(value, str):
    yield path, f"{len(value):,} rows"
  elif isinstance(value, float):
    yield path, f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
  else:
    yield path, f"{value:,}" if type(value) is int else str(value)


def _tiles(data: data_lib.ReportData) -> list[_Tile]:
  """Returns the few numbers to see first, each only if it was measured."""
  summary = data.summary
  if summary is None:
    return []
  tiles = [_finds_tile(summary), _search_tile(summary)]
  if precision := summary.precision:
    note = f"of verified failures are real, by the oracle (n = {precision.n:,})"
    tiles.append(_rate_tile("Precision", precision, note))
  coverage = summary.coverage
  if coverage and coverage.gaps_auditable:
    spread = f"with {coverage.confirmed:,} confirmed finds"
    if coverage.modes:
      spread = f"finds spread over {charts.estimate_text(coverage.modes.common)} effective modes"
    found = f"{coverage.gaps_found} of {coverage.gaps_auditable}"
    tiles.append(_Tile("Planted gaps found", found, spread))
  elif data.modes:
    held = sum(mode.holds for mode in data.modes)
    tiles.append(_Tile("Failure modes", str(held), f"confirmed, of {len(data.modes)} named"))
  if {"baseline", "repaired"} <= summary.rectify.keys():
    tiles.append(_repair_tile(summary.rectify["baseline"], summary.rectify["repaired"]))
  return tiles


def _finds_tile(summary: Summary) -> _Tile:
  """How many finds are real, which every other number depends on."""
  known, label = summary.find_precision, "Finds that are real"
  if known is None or not known.real.n:
    return _Tile(label, "not known", "all numbers are conditional on the references", alarm=True)
  low, high = (100 * x for x in known.real.ci95)
  note = f"[{low:.1f}, {high:.1f}] of {known.real.n:,} finds, by {known.by}"
  if known.verdict:
    note += f"; {known.verdict}"
  alarm = known.mostly_wrong or known.cannot_judge
  return _Tile(label, charts.percent(known.real.rate), note, alarm)


def _finds_word(summary: Summary | None) -> str:
  """Returns what real failures are called: only an oracle confirms finds."""
  return "Confirmed finds" if summary and summary.precision else "Verified failures"


def _search_tile(summary: Summary) -> _Tile:
  """Search success of the trained auditor; where it was not measured, of all probes."""
  search, word = summary.search, _finds_word(summary).lower()
  if search is None or search.trained is None:
    rate = (search.prompt_only if search else summary.arms[ALL_ARMS].verified) or NOTHING
    whose = "the untrained auditor's probes" if search else f"{rate.n:,} probes"
    least = "at least, " if summary.compared.not_looked_at else ""
    return _rate_tile("Search success", rate, f"{least}of {whose} are {word}")
  note = f"of the trained auditor's probes are {word}"
  after, before = search.trained.rate, search.prompt_only.rate
  if after is not None and before:
    note += f"; {charts.percent(before)} before training (×{after / before:.1f})"
  return _rate_tile("Search success", search.trained, note)


def _corrected(summary: Summary) -> str:
  """Returns what is left of the conflicts once the references' errors are taken out."""
  found = summary.corrected
  if found is None or found.rate is None:
    return ""
  low, high = (100 * x for x in found.ci95)
  return (
    f"The target conflicts with the references on {charts.percent(found.flagged.rate)} of these"
    f" questions. Corrected for the references' errors, it is wrong on {charts.percent(found.rate)}"
    f" [{low:.1f}, {high:.1f}], if they err on the audit's questions as on the labelled ones."
  )


def _rate_tile(label: str, rate: Rate, note: str) -> _Tile:
  return _Tile(label, charts.percent(rate.rate), note if rate.n else "n = 0")


def _repair_tile(before: Accuracy, after: Accuracy) -> _Tile:
  """Accuracy on the planted gaps, next to the rest; on all questions where no gap is known."""
  if not before.gaps.n:
    note = f"from {charts.percent(before.all.rate)}"
    return _rate_tile("Accuracy after repair", after.all, note)
  note = f"from {charts.percent(before.gaps.rate)}"
  if before.rest.n and after.rest.n:
    rest = 100 * (after.rest.value - before.rest.value)
    moved = f"{rest:+.1f}".replace("-", "\N{MINUS SIGN}")
    note += f"; the rest moved by {moved} points"
  return _rate_tile("Gap accuracy after repair", after.gaps, note)
