# SPDX-License-Identifier: Apache-2.0
"""The report is complete, safe against the text it shows, and replaced as a whole."""

import dataclasses
import html.parser
import json
import pathlib
import re

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit import rates
from auditdm_jax.audit.report import charts, pictures, write
from auditdm_jax.audit.report import data as data_lib
from tests.audit.report import sample


class _Page(html.parser.HTMLParser):
  """Collects what a browser would load, follow or run."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.tags, self.attributes, self.links, self.ids = [], [], [], []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [name for name, _ in attrs]
    self.links += [value for name, value in attrs if name in ("href", "src")]
    self.ids += [value for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  out = tmp_path_factory.mktemp("out") / "report"
  write.write_report(out, sample.report_data(folder))
  return out


def _pages(report):
  return {path.resolve(): _Page(path) for path in report.rglob("*.html")}


def test_every_link_leads_to_a_file_of_the_folder(report):
  pages = _pages(report)
  assert len(pages) == 3 + 5
  for path, page in pages.items():
    for link in page.links:
      assert "://" not in link
      name, _, place = link.partition("#")
      file = (path.parent / name).resolve() if name else path.resolve()
      assert file.is_file() and file.is_relative_to(report.resolve()), link
      assert not place or place in pages[file].ids, link


def test_hostile_text_is_shown_and_never_obeyed(report):
  for path, page in _pages(report).items():
    text = path.read_text(encoding="utf-8")
    assert "script" not in page.tags and "b" not in page.tags
    assert not any(name.startswith("on") or name == "style" for name in page.attributes)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert not any(char in text for char in "\u202e\u202c\x00")
  page = next(report.glob("modes/*0*.html")).read_text(encoding="utf-8")
  assert "&lt;script&gt;" in page and "⟨U+202E⟩" in page and "⟨U+D800⟩" in page


def test_mode_files_stay_in_their_folder_and_apart(tmp_path):
  modes = [
    data_lib.ModeView(mode_id=x, name=x, skill="s", definition="", members=0)
    for x in ("../../up", "A", "a", "", "/etc", "a/b", "a b", "nul\0")
  ]
  data = data_lib.ReportData(title="t", target="x", created="now", modes=modes)
  write.write_report(tmp_path / "r", data)
  assert len(list((tmp_path / "r" / "modes").iterdir())) == len(modes)
  assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_numbers_of_the_summary_are_on_the_pages(report):
  index = (report / "index.html").read_text(encoding="utf-8")
  assert "64.0\u202f%" in index and "×2.9" in index and "6 of 6" in index
  assert "from 24.0\u202f%; the rest moved by \N{MINUS SIGN}0.5 points" in index
  assert json.loads((report / "summary.json").read_text())["queries"]["grpo"] == 46080
  methods = (report / "methods.html").read_text(encoding="utf-8")
  assert "queries.grpo" in methods and "<code>curve</code></th><td>2 rows<" in methods


def test_a_gate_that_was_not_measured_neither_passed_nor_failed(report):
  page = next(report.glob("modes/*0*.html")).read_text(encoding="utf-8")
  badges = re.findall(r'class="(badge[^"]*)">(.) (\w+)(.*?)</span></span>', page)
  kinds = {name: {k for k, _, n, _ in badges if n == name} for _, _, name, _ in badges}
  assert kinds["answerable"] == {"badge"} and kinds["paraphrase"] == {"badge pass"}
  assert kinds["locality"] == {"badge pass", "badge fail"}
  assert {text for _, _, n, text in badges if n == "answerable"} == {
    ' <span class="value">not measured'
  }


def test_the_co_error_table_shows_joint_errors(report):
  index = (report / "index.html").read_text(encoding="utf-8")
  matrix = index[index.index('<table class="matrix">') :]
  shown = [float(x) for x in re.findall(r"([\d.]+)\u202f%", matrix)]
  assert shown == [
    40.0,
    1.0,
    0.0,
    0.0,
    1.0,
    5.0,
    4.0,
    2.0,
    0.0,
    4.0,
    8.0,
    6.0,
    0.0,
    2.0,
    6.0,
    6.0,
  ]
  assert matrix.count("φ 0.86") == 2 and "ref-b and ref-c err together (phi 0.86)" in index
  assert "2.0\u202f% (20/1,000" in index and "100.0\u202f% (20/20" in index


def test_limits_are_always_told(report):
  text = (report / "methods.html").read_text(encoding="utf-8")
  assert all(title in text for title, _ in data_lib.LIMITS)


def test_fresh_probes_that_are_worded_as_what_failed_are_told(tmp_path, report):
  data = dataclasses.replace(sample.report_data(tmp_path), of_finds=1_234)
  index = write.write_report(tmp_path / "r", data).read_text(encoding="utf-8")
  said = "1,234 of the probes ask what verified finds of the mode asked"
  assert said in index and "finds of the mode asked" not in (report / "index.html").read_text()


def test_empty_sections_are_left_out(tmp_path):
  data = data_lib.ReportData(title="t", target="x", created="now")
  index = write.write_report(tmp_path / "r", data).read_text(encoding="utf-8")
  assert "<section" not in index and not (tmp_path / "r" / "rounds.html").exists()


def _emptied(value):
  """The same with every rate at n = 0, in records, lists and dicts alike."""
  if isinstance(value, rates.Rate):
    return rates.NOTHING
  if isinstance(value, dict):
    return {key: _emptied(item) for key, item in value.items()}
  if isinstance(value, (tuple, list)):
    return type(value)(_emptied(item) for item in value)
  if dataclasses.is_dataclass(value):
    return dataclasses.replace(value, **{k: _emptied(v) for k, v in vars(value).items()})
  return value


def test_a_rate_of_nothing_is_a_dash(tmp_path):
  data = _emptied(sample.report_data(tmp_path))
  out = write.write_report(tmp_path / "r", data).parent
  index = (out / "index.html").read_text(encoding="utf-8")
  # Modes; arms, the sweep, strategies and one `faithful`; three columns of four repairs; health and
  # its cells; two arms' last finds, and a surrogate with two bins. No rate of hacks is a dash.
  assert index.count("–, n = 0") == 5 + (3 + 2 + 2 + 1) + 3 * 4 + (2 + 4 * 4) + (2 + 3)
  assert index.count('<span class="big">–</span><span class="fine">n = 0</span>') == 3
  assert 'class="interval' not in index
  assert "–, n = 0" in (out / "rounds.html").read_text(encoding="utf-8")
  assert "–, n = 0" in next(out.glob("modes/*.html")).read_text(encoding="utf-8")
  methods = (out / "methods.html").read_text(encoding="utf-8")
  assert re.search(r"modes\.recall</code></th><td>–, n = 0<", methods)


def test_an_earlier_report_is_replaced_and_other_folders_are_not(tmp_path):
  data = data_lib.ReportData(title="first", target="x", created="now")
  out = tmp_path / "report"
  write.write_report(out, data)
  (out / "left-over.html").write_text("")
  write.write_report(out, dataclasses.replace(data, title="second"))
  assert "second" in (out / "index.html").read_text() and not (out / "left-over.html").exists()
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").write_text("dear")
  with pytest.raises(ValueError, match="not written by this program"):
    write.write_report(tmp_path / "mine", data)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "report"]


def test_a_failing_report_leaves_the_old_one(tmp_path):
  data = data_lib.ReportData(title="first", target="x", created="now")
  write.write_report(tmp_path / "r", data)
  broken = dataclasses.replace(data, title="second", methods=(("only one value",),))
  with pytest.raises(ValueError):
    write.write_report(tmp_path / "r", broken)
  assert "first" in (tmp_path / "r" / "index.html").read_text()
  assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_difference_marks_only_what_changed():
  before = np.full((8, 8, 3), 200, np.uint8)
  after = before.copy()
  after[2, 3] = (0, 0, 0)
  shown = pictures.difference(before, after)
  orange = (shown == np.array([255, 140, 0])).all(-1)
  assert orange[2, 3] and orange.sum() == 1


def test_one_file_per_distinct_image(tmp_path):
  album = pictures.Album(tmp_path)
  array = np.zeros((64, 64, 3), np.uint8)
  first = album.add(array, caption="a")
  assert album.add(array, caption="b").path == first.path and (first.width, first.pixelated) == (
    192,
    True,
  )
  wide = album.add(np.zeros((100, 400, 3), np.uint8), caption="c")
  assert (wide.width, wide.height, wide.pixelated) == (224, 56, False)
  assert len(list((tmp_path / "images").iterdir())) == 2


def test_a_card_takes_files_as_they_are_and_only_their_difference_is_made(tmp_path):
  """To encode a photograph takes a second."""
  files = [tmp_path / "a.png", tmp_path / "b.png"]
  for file, color in zip(files, ("red", "blue")):
    Image.new("RGB", (40, 30), color).save(file, compress_level=0)
  shown = pictures.Album(tmp_path / "report").card(*files)
  assert [p.caption for p in shown] == ["original", "asked about", "difference"]
  stored = [(tmp_path / "report" / p.path).read_bytes() for p in shown]
  assert stored[:2] == [file.read_bytes() for file in files]


def test_charts_leave_gaps_and_scale():
  svg = charts.line_chart(
    [("a", [0, 1, 2, 3], [0.0, None, 0.5, 1.0])], title="<t>", as_percent=True
  )
  assert svg.count("M") == 2 and "&lt;t&gt;" in svg and "None" not in svg
  for top in (1, 3.2, 9.4, 120, 1e5):
    ticks = charts._ticks(top)
    assert ticks[0] == 0 and ticks[-1] >= top and 2 <= len(ticks) <= 6
