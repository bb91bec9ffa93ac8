# SPDX-License-Identifier: Apache-2.0
"""The pages that have a script of their own, in a real browser, opened from files."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit import label_files
from auditdm_jax.audit.report import label_page, write
from auditdm_jax.audit.sampling import Sampled
from tests.audit.report import sample

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
HUGE = "W" * 1_000_000
MANY_LINES = "line\n" * 100_000
MARKS = "a" + "\u0301" * 5_000


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as tools:
    # Containers of tests run as root, where Chromium has no sandbox.
    opened = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    yield opened
    opened.close()


@pytest.fixture
def page(browser):
  """A page that fails the test for whatever it logs, asks for or cannot load."""
  context = browser.new_context(viewport={"width": 375, "height": 800})
  opened, faults = context.new_page(), []
  opened.on("console", lambda message: faults.append(message.text))
  opened.on("pageerror", lambda error: faults.append(str(error)))
  opened.on("dialog", lambda dialog: (faults.append("a dialog"), dialog.dismiss()))
  opened.on(
    "request", lambda r: None if r.url.startswith(("file:", "blob:")) else faults.append(r.url)
  )
  yield opened
  context.close()
  assert not faults


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  data = sample.report_data(folder, modes=1, cards=1)
  finds = sample.find_list(folder)
  row = finds.shown[0]
  huge = dataclasses.replace(
    row.card,
    question=HUGE,
    consensus=MANY_LINES,
    answers={"easy": HUGE, HUGE: MARKS},
    strategy=HUGE,
    command=HUGE,
    lineage={"instruction": HUGE},
  )
  finds = dataclasses.replace(
    finds, shown=[dataclasses.replace(row, card=huge, mode=HUGE, why=HUGE), *finds.shown[1:]]
  )
  mode = data.modes[0]
  modes = [dataclasses.replace(mode, name=HUGE, definition=HUGE, cards=[huge])]
  data = dataclasses.replace(data, title=HUGE, target=HUGE, finds=finds, modes=modes)
  return write.write_report(folder / "report", data).parent


def _shown(page):
  return page.locator(".find:visible")


def test_failures_are_filtered_searched_and_sorted(page, report):
  page.goto((report / "failures.html").as_uri())
  assert _shown(page).count() == 12
  page.select_option("select[data-filter=grade]", "V0")
  assert _shown(page).count() == 4 and "4 of 12" in page.inner_text("#status")
  page.fill("#search", "COLOR is")
  sync_api.expect(page.locator("#status")).to_have_text("1 of 12 shown")
  page.fill("#search", "nothing like that")
  page.wait_for_selector("#nothing:visible")
  page.click("#again")
  assert _shown(page).count() == 12
  page.select_option("#sort", "mode")
  modes = _shown(page).evaluate_all("rows => rows.map((row) => row.dataset.mode)")
  assert modes[-1].startswith("WWW") and modes[:-1] == sorted(modes[:-1])


def test_a_permanent_link_shows_its_failure_whatever_is_filtered(page, report):
  page.goto((report / "failures.html").as_uri())
  last = page.locator(".find").last.get_attribute("id")
  page.goto((report / "failures.html").as_uri() + f"#{last}")
  box = page.locator(f"[id='{last}']").bounding_box()
  assert 0 <= box["y"] < 800
  page.fill("#search", "nothing like that")
  page.wait_for_selector("#nothing:visible")
  first = page.locator(".find").first.get_attribute("id")
  page.evaluate("id => { location.hash = id; }", first)
  page.wait_for_selector(f"[id='{first}']:visible")
  page.click(f"[id='{first}'] figure a")
  assert page.locator(".zoom:visible").bounding_box() == dict(x=0, y=0, width=375, height=800)
  page.locator(".zoom:visible").click()
  assert page.locator(".zoom:visible").count() == 0


def test_hostile_and_huge_text_stays_text_of_bounded_size(page, report):
  for path in sorted(report.rglob("*.html")):
    assert path.stat().st_size < 200_000
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    size = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollHeight]")
    assert size[0] <= 375 and size[1] < 60_000, (path, size)
    scripts = page.locator("script").count()
    assert scripts == (path.name == "failures.html")
    assert page.locator("[onerror]").count() == 0


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser, report):
  context = browser.new_context()
  page = context.new_page()
  text = (report / "failures.html").read_text().replace("</body>", "<script>x = 1</script></body>")
  (report / "changed.html").write_text(text)
  page.goto((report / "changed.html").as_uri())
  assert page.evaluate("[typeof x, document.getElementById('filters').hidden]") == [
    "undefined",
    False,
  ]
  (report / "changed.html").unlink()
  context.close()


def test_what_is_folded_on_the_screen_is_printed(page, report):
  mode = next((report / "modes").glob("*.html"))
  page.goto(mode.as_uri())
  seen = "document.querySelector('.lineage').checkVisibility()"
  assert not page.evaluate(seen)
  page.emulate_media(media="print")
  assert page.evaluate(seen) and page.locator("nav:visible").count() == 0


def _drawn(i, first):
  common = dict(stratum="s", draw=0, drawn=3, size=3, probability=1.0)
  return Sampled(key=f"{i:032x}", first=first, **common)


@pytest.fixture
def labelling(tmp_path):
  """Three finds to label, the second of which is hostile; and their sample."""
  image = tmp_path / "i.png"
  Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(image)
  drawn = [_drawn(0, "consensus"), _drawn(1, "target"), _drawn(2, "target")]
  texts = ["how many ?", sample.HOSTILE + HUGE, MANY_LINES]
  finds = [label_page.Shown(d.key, image, t, t, "two") for d, t in zip(drawn, texts)]
  name = label_files.sample_id(drawn)
  return label_page.write(tmp_path / "page", finds, sample=name, rater=""), drawn


def _counted(page, text):
  sync_api.expect(page.locator("#count")).to_contain_text(text)


def test_finds_are_labelled_by_keyboard_kept_and_saved(page, labelling, tmp_path):
  path, drawn = labelling
  page.goto(path.as_uri())
  page.keyboard.press("a")  # Nothing is shown yet: the page says first what is asked.
  _counted(page, "0 of 3")
  page.keyboard.press("Enter")
  page.wait_for_selector(".item:visible")
  for key in ("a", "3", "ArrowLeft", "b", "u"):
    page.keyboard.press(key)
  _counted(page, "3 of 3 labelled, 1 unclear")
  page.wait_for_selector("#done:visible")
  page.reload()
  _counted(page, "3 of 3 labelled, 1 unclear")
  page.keyboard.press("ArrowLeft")
  assert page.locator("[data-say=unclear]").get_attribute("aria-pressed") == "true"
  page.keyboard.press("n")
  page.keyboard.press("s")
  _counted(page, "Give your name")
  page.keyboard.type("ann b.")  # The letters are a name here, not labels.
  page.keyboard.press("Enter")
  with page.expect_download() as saved:
    page.keyboard.press("s")
  file = tmp_path / saved.value.suggested_filename
  saved.value.save_as(file)
  assert file.name == "labels-ann-b..json" and json.loads(file.read_text())["rater"] == "ann b."
  labels = label_files.read(file, drawn)
  assert [x.choice for x in labels] == ["consensus", "consensus", "neither"]
  assert {x.rater for x in labels} == {"ann b."}


def test_the_label_page_says_nothing_of_who_answered(page, labelling):
  path, _ = labelling
  text = path.read_text().lower() + (path.parent / "label.csv").read_text().lower()
  assert "consensus" not in text and "target" not in text.replace("event.target", "")
  page.goto(path.as_uri())
  page.keyboard.press("Enter")
  page.keyboard.press("a")
  page.wait_for_selector(f".item[data-find='{1:032x}']:visible")
  size = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollHeight]")
  assert size[0] <= 375 and size[1] < 3_000 and page.locator("script").count() == 1


def test_the_label_table_is_read_back(labelling, tmp_path):
  path, drawn = labelling
  rows = (path.parent / "label.csv").read_text(encoding="utf-8-sig")
  assert "<script>" in rows and pathlib.Path(path.parent / "images").is_dir()
  file = tmp_path / "filled.csv"
  lines = rows.splitlines()
  file.write_text("\n".join([*lines[:1], lines[1] + " b "]), encoding="utf-8")
  assert [x.choice for x in label_files.read(file, drawn, rater="bob")] == ["target"]
