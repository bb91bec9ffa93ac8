# SPDX-License-Identifier: Apache-2.0
"""`write_report`: turns `ReportData` into a folder of static pages.

All text is hostile until proven otherwise: questions and answers come from models. Jinja2 escapes
every value, control and direction characters are shown instead of obeyed, and the pages' content
security policy allows images and the style sheet of the folder and nothing else, scripts
included.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

import jinja2
import markupsafe

from auditdm_jax.audit.rates import NOTHING, Rate
from auditdm_jax.audit.report import charts, pictures
from auditdm_jax.audit.report import data as data_lib
from auditdm_jax.audit.report.pictures import Picture
from auditdm_jax.audit.summary import ALL_ARMS, Accuracy, Summary
from auditdm_jax.core import jsonio, paths

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
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


def write_report(directory: str | os.PathLike, data: data_lib.ReportData) -> pathlib.Path:
  """Writes the report's folder and returns the path of its index.html.

  The folder is built beside its place and renamed into it, so that a reader never sees half of
  one. An earlier report at that place is replaced.

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
    if final.exists():
      final.rename(pathlib.Path(scratch) / "old")
    building.rename(final)
  return final / "index.html"


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
      path=f"modes/{_file_name(mode.mode_id)}.html",
      pictures=[album.card(card.original, card.edited) for card in mode.cards],
    )
    for mode in data.modes
  ]
  pages = [dict(name="Summary", path="index.html")]
  if data.second_round:
    pages.append(dict(name="Second round", path="second-round.html"))
  pages += [dict(name=page.name, path=page.path) for page in data.pages]
  pages.append(dict(name="Methods", path="methods.html"))
  env = environment()

  def write(path, template, **values):
    text = env.get_template(template).render(
      d=data, pages=pages, here=path, root="../" * path.count("/"), alone=False, **values
    )
    target = root / path
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")

  write(
    "index.html",
    "index.html",
    modes=modes,
    tiles=_tiles(data),
    verdict=_sentence(data.summary.compared.verdict) if data.summary else "",
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
  )
  for i, page in enumerate(modes):
    before, after = modes[i - 1] if i else None, modes[i + 1] if i + 1 < len(modes) else None
    write(page.path, "mode.html", v=page, before=before, after=after)
  if data.second_round:
    write("second-round.html", "second-round.html")
  for page in data.pages:
    write(page.path, "page.html", page=page)
    _write_files(root, page)
  summary = jsonio.plain(data.summary) if data.summary else {}
  write("methods.html", "methods.html", summary_rows=list(_summary_rows(summary)))
  shutil.copyfile(_TEMPLATES / "style.css", root / "style.css")
  _write_json(root / "summary.json", summary)
  _write_json(root / _MARKER, dict(format=_FORMAT, title=data.title, created=data.created))


def write_page(directory: str | os.PathLike, page: data_lib.ExtraPage, *, created: str) -> None:
  """Writes a page with its style sheet and files into a folder, on its own."""
  root = pathlib.Path(directory)
  root.mkdir(parents=True, exist_ok=True)
  alone = dict(title=page.name, created=created)
  text = (
    environment()
    .get_template("page.html")
    .render(d=alone, pages=[], here=page.path, root="", page=page, alone=True)
  )
  paths.write_bytes(root / page.path, text.encode())
  shutil.copyfile(_TEMPLATES / "style.css", root / "style.css")
  _write_files(root, page)


def _write_files(root: pathlib.Path, page: data_lib.ExtraPage) -> None:
  for name, text in page.files.items():
    paths.write_bytes(root / name, text.encode())


def environment() -> jinja2.Environment:
  """Returns the templates, which escape what they are given and show hidden characters."""
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalize,
  )
  env.filters.update(slug=_slug, short=_short, heat=_heat)
  env.globals.update(
    percent=charts.percent,
    rate_text=charts.rate_text,
    interval_bar=charts.interval_bar,
    share_bar=charts.share_bar,
  )
  return env


def _finalize(value: Any) -> Any:
  plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
  return charts.visible(value) if plain else value


def _slug(text: str) -> str:
  return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48]


def _file_name(mode_id: str) -> str:
  """A safe file name that is distinct for distinct ids."""
  digest = hashlib.sha256(mode_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
  slug = _slug(mode_id)
  return mode_id if mode_id and mode_id == slug else f"{slug}-{digest}".lstrip("-")


def _short(value: float | str) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _heat(share: float | None) -> int:
  """Tint 0..4 of a share; 40 % and more is the darkest, none measured has none."""
  return min(math.ceil(10 * share), 4) if share and share > 0.005 else 0


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
  tiles = [_search_tile(summary)]
  if precision := summary.precision:
    note = f"of verified failures are real, by the oracle (n = {precision.n:,})"
    tiles.append(_rate_tile("Precision", precision, note))
  coverage = summary.coverage
  if coverage and coverage.gaps_auditable:
    spread = f"finds spread over {coverage.effective_modes:.1f} effective modes"
    found = f"{coverage.gaps_found} of {coverage.gaps_auditable}"
    tiles.append(_Tile("Planted gaps found", found, spread))
  elif data.modes:
    tiles.append(_Tile("Failure modes", str(len(data.modes)), "with a written definition"))
  if {"baseline", "repaired"} <= summary.rectify.keys():
    tiles.append(_repair_tile(summary.rectify["baseline"], summary.rectify["repaired"]))
  return tiles


def _finds_word(summary: Summary | None) -> str:
  """Returns what real failures are called: only an oracle confirms finds."""
  return "Confirmed finds" if summary and summary.precision else "Verified failures"


def _search_tile(summary: Summary) -> _Tile:
  """Search success of the trained auditor; where it was not measured, of all probes."""
  search, word = summary.search, _finds_word(summary).lower()
  if search is None or search.trained is None:
    rate = search.prompt_only if search else summary.arms[ALL_ARMS].verified
    whose = "the untrained auditor's probes" if search else f"{summary.queries.total:,} probes"
    least = "at least, " if summary.compared.not_looked_at else ""
    return _rate_tile("Search success", rate or NOTHING, f"{least}of {whose} are {word}")
  note = f"of the trained auditor's probes are {word}"
  after, before = search.trained.rate, search.prompt_only.rate
  if after is not None and before:
    note += f"; {charts.percent(before)} before training (×{after / before:.1f})"
  return _rate_tile("Search success", search.trained, note)


def _sentence(text: str) -> str:
  return f"{text[:1].upper()}{text[1:]}."


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
