# SPDX-License-Identifier: Apache-2.0
"""Templates to pages: all text escaped and bounded, a content security policy on each.

The policy allows images and the style sheet of the folder, and nothing else. A page with a script
of its own names the hash of that script and allows this one.
"""

import base64
import hashlib
import math
import pathlib
import re
import shutil
from typing import Any

import jinja2
import markupsafe

from auditdm_jax.audit.report import charts, text

_TEMPLATES = pathlib.Path(__file__).parent / "templates"


class Pages:
  """Writes pages into a folder, which gets the style sheet."""

  def __init__(self, root: pathlib.Path, **shared: Any):
    """Takes the folder and what all pages know."""
    self._root, self._shared = root, shared
    self._env = _environment()
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_TEMPLATES / "style.css", root / "style.css")

  def write(self, path: str, template: str, *, script: str = "", **values: Any) -> None:
    """Writes a page.

    Args:
      path: relative to the folder.
      template: file of the page.
      script: file of the page's script; "" for none.
      **values: what this page shows.
    """
    body = (_TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    page = self._env.get_template(template).render(
      here=path,
      root="../" * path.count("/"),
      policy=_policy(body),
      script=markupsafe.Markup(body),
      **{**self._shared, **values},
    )
    target = self._root / path
    target.parent.mkdir(exist_ok=True)
    target.write_text(page, encoding="utf-8")


def _policy(script: str) -> str:
  """The content security policy of a page with such a script."""
  rules = ["default-src 'none'", "img-src 'self'", "style-src 'self'"]
  if script:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules += [f"script-src 'sha256-{digest}'", "require-trusted-types-for 'script'"]
  return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _environment() -> jinja2.Environment:
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalize,
  )
  env.filters.update(slug=slug, short=_short, heat=_heat, name=_name, count=charts.count)
  env.globals.update(
    percent=charts.percent,
    points=charts.points,
    estimate=charts.estimate_text,
    rate_text=charts.rate_text,
    interval_bar=charts.interval_bar,
    share_bar=charts.share_bar,
    way_bar=charts.way_bar,
  )
  return env


def _finalize(value: Any) -> Any:
  plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
  return text.safe(value) if plain else value


def _name(value: str) -> str:
  """A name, which is shorter than a text."""
  return text.clip(" ".join(value.split()), text.NAME)


def slug(value: str) -> str:
  """Returns what of a text may be in a file's name or an address."""
  return re.sub(r"[^a-z0-9]+", "-", value[:400].lower()).strip("-")[:48]


def file_name(mode_id: str) -> str:
  """Returns a safe file name that is distinct for distinct ids."""
  digest = hashlib.sha256(mode_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
  short = slug(mode_id)
  return mode_id if mode_id and mode_id == short else f"{short}-{digest}".lstrip("-")


def _short(value: float | str) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _heat(share: float | None) -> int:
  """Tint 0..4 of a share; 40 % and more is the darkest, none measured has none."""
  return min(math.ceil(10 * share), 4) if share and share > 0.005 else 0
