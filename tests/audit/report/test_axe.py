# SPDX-License-Identifier: Apache-2.0
"""Axe finds nothing serious on any page, light and dark, on a telephone and on a screen.

axe-core (MPL-2.0) comes from the npm registry, so this is not part of the default run:

    python -m pytest -m network tests/audit/report/test_axe.py
"""

import dataclasses
import shutil
import subprocess
import tarfile

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit.report import data as data_lib
from auditdm_jax.audit.report import label_page, write
from auditdm_jax.bench import forest, sheets
from tests.audit.report import sample

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
  pytest.mark.network,
  pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine"),
]
AXE = "axe-core@4.14.1"
FOUND = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
  .filter((rule) => ["serious", "critical"].includes(rule.impact))
  .map((rule) => `${rule.id}: ${rule.nodes.map((node) => node.html).join(" ")}`.slice(0, 400)))"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
  """The script."""
  folder = tmp_path_factory.mktemp("axe")
  subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, check=True, timeout=120)
  with tarfile.open(next(folder.glob("*.tgz"))) as package:
    member = package.extractfile("package/axe.min.js")
    assert member is not None
    return member.read().decode()


def _ledger():
  rows = [
    data_lib.LedgerRow(
      name=sample.HOSTILE,
      status=status,
      old=sample.rate(10, 40),
      new=sample.rate(20, 40),
      change_ci95=(-0.1, 0.4),
      needs_more=7,
    )
    for status in ("new", "regressed", "fixed", "improved", "unchanged", "unsure")
  ]
  change = data_lib.LedgerChange(
    mode="m", question="how many ?", expected="two", old="two", new="three", worse=True
  )
  return data_lib.LedgerView(
    old="a", new="b", verdict="Regression.", probes="p", left_out=1, rows=rows, changes=[change]
  )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """A whole report with a comparison, one of a run that goes on, labels, and an index of runs."""
  folder = tmp_path_factory.mktemp("pages")
  data = sample.report_data(folder, modes=2, cards=2)
  whole = dataclasses.replace(data, finds=sample.find_list(folder), ledger=_ledger())
  stages = [data_lib.StageRow(name="train", is_done=i == 0, note="9 probes") for i in range(3)]
  cards = data.modes[0].cards
  going = data_lib.ReportData(
    title="t", target="t", created="now", so_far="so far", stages=stages, newest=cards
  )
  write.write_report(folder / "whole", whole)
  write.write_report(folder / "going", going)
  Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "i.png")
  shown = [label_page.Shown("0" * 32, folder / "i.png", "how many ?", "two", "three")]
  label_page.write(folder / "labels", shown, sample="s", rater="")
  rows = [
    data_lib.RunRow(
      name="a", target="t", started="2026-01-02", state="finished", headline="x", link="./a"
    ),
    data_lib.RunRow(name="b", target="", started="", state="stopped", headline="", link=""),
  ]
  index = data_lib.ExtraPage(
    name="Runs", path="index.html", template="runs.html", values={"rows": rows}, files={}
  )
  write.write_page(folder / "runs", index, created="now")
  sheet = sheets.Sheet(
    title="Values", about="x", head=("figure", "plain"), rows=(("success, %", "1.5 [−0.9, 4.0]"),)
  )
  values = {"title": "Sweep", "lead": "x", "plot": "table.svg", "sheets": [sheet]}
  swept = data_lib.ExtraPage(
    name="Sweep",
    path="table.html",
    template="benchmarks.html",
    values=values,
    files={"table.svg": forest.plot([], legend=(), label="x", nothing="nothing")},
  )
  write.write_page(folder / "sweep", swept, created="now")
  return sorted(folder.rglob("*.html"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_serious_is_found(axe, pages, scheme, width):
  found = []
  with sync_api.sync_playwright() as tools:
    browser = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    context = browser.new_context(
      viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    for path in pages:
      page = context.new_page()
      page.goto(path.as_uri())
      # What is off the screen is laid out while axe looks at it, which then sees mixed colours.
      page.add_style_tag(content=".find { content-visibility: visible !important; }")
      page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
      page.evaluate(axe)
      found += [f"{path.name}: {what}" for what in page.evaluate(FOUND)]
      assert page.evaluate("document.documentElement.scrollWidth") <= width, path
      page.close()
    browser.close()
  assert len(pages) >= 10 and not found, "\n".join(found)
