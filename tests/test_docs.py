# SPDX-License-Identifier: Apache-2.0
"""What the pages name is there: links, files, symbols, tests, and messages of errors."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / f"{n}.md" for n in ("README", "SECURITY"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
SYMBOL = re.compile(r"`([\w/]+\.py)::([\w.]+)`")
FOLDERS = {p.name for p in (ROOT / "auditdm_jax").iterdir() if p.is_dir()}
PLACE = re.compile(rf"`((?:{'|'.join(sorted(FOLDERS))})/[\w/]*(?:\.py)?)`")


@functools.cache
def _names(path: pathlib.Path) -> frozenset[str]:
  """Functions, classes and values of a file, and what is defined in its classes as CLASS.NAME."""
  found = set()
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    if isinstance(node, ast.ClassDef):
      found |= {f"{node.name}.{x.name}" for x in node.body if isinstance(x, ast.FunctionDef)}
    if isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      found |= {t.id for t in targets if isinstance(t, ast.Name)}
  return frozenset(found)


def _anchors(page: pathlib.Path) -> set[str]:
  heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
  for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{page.name} links {path}"
    if anchor and target.suffix == ".md":
      assert anchor in _anchors(target), f"{page.name} links {path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_are_there(page):
  for path, name in TEST.findall(page.read_text(encoding="utf-8")):
    assert name in _names(ROOT / path), f"{page.name}: {path} has no {name}"


def test_the_map_names_what_is_there():
  text = (ROOT / "docs/map.md").read_text(encoding="utf-8")
  places, symbols = PLACE.findall(text), SYMBOL.findall(text)
  assert len(places) > 40 and len(symbols) > 20
  for place in places:
    assert (ROOT / "auditdm_jax" / place).exists(), f"docs/map.md names {place}"
  for path, name in symbols:
    file = ROOT / path if (ROOT / path).exists() else ROOT / "auditdm_jax" / path
    assert name in _names(file), f"docs/map.md: {path} has no {name}"


def test_examples_that_are_named_are_there():
  text = (ROOT / "docs/your-own.md").read_text(encoding="utf-8")
  named = re.findall(r"`(examples/\w+\.py)`", text)
  assert len(named) == 8
  assert all((ROOT / path).is_file() for path in named)


@functools.cache
def _messages() -> list[str]:
  """Texts of the package's code, with … for what is filled in."""
  found = []
  for path in (ROOT / "auditdm_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
        found.append("".join(map(str, parts)))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  return found


def test_every_message_of_the_faq_is_one_of_the_code():
  rows = re.findall(r"^\| `(.+?)`", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), re.M)
  assert len(rows) >= 12
  for said in rows:
    pattern = re.compile(".*?".join(map(re.escape, said.split("…"))), re.S)
    assert any(pattern.search(message) for message in _messages()), said


def test_the_guide_has_every_page():
  guide = (ROOT / "docs/README.md").read_text(encoding="utf-8")
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "README.md" or f"({page.name})" in guide, f"no task leads to {page.name}"
