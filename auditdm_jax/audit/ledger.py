# SPDX-License-Identifier: Apache-2.0
"""A comparison for people and machines: ledger.md, ledger.json and junit.xml.

Names, questions and answers come from models and files of others. Each is cut to one bounded line
without what a terminal, Markdown or XML would obey.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import os
import pathlib
import re
from typing import Any
import xml.etree.ElementTree as ET

from auditdm_jax.audit import compare, pack
from auditdm_jax.audit.compare import Comparison, LedgerLine
from auditdm_jax.audit.rates import Rate
from auditdm_jax.core import jsonio, paths

_SHOWN = 160  # Characters of a text that came from elsewhere.
_LISTED = 20  # Changed probes of a line that are listed; ledger.json has all of them.
_MARKUP = re.compile(r"[\\`*_\[\]|#~]")
_WORSE = ("new", "regressed")
_MOST_LEFT_OUT = 0.1  # Of the probes; if there are more, the rest is no comparison of the models.


@dataclasses.dataclass(frozen=True)
class ComparedModel:
  """One of the two models: its name, the hash of its weights or endpoint, and who answered.

  Attributes:
    name: what it is called.
    identity: hash of its weights or of its endpoint.
    asked: False if the answers were recorded earlier.
    unanswered: probes that it gave no answer to, which are left out.
  """

  name: str
  identity: str
  asked: bool
  unanswered: int


@dataclasses.dataclass(frozen=True)
class ChangedProbe:
  """A probe that only one of the models fails."""

  mode_id: str
  probe_id: str
  image_id: str
  question: str
  expected: str
  old: str
  new: str
  worse: bool


@dataclasses.dataclass(frozen=True)
class Ledger:
  """All that a comparison has to say.

  Attributes:
    old: the model that is compared with.
    new: the model that is compared.
    comparison: the lines by mode; `pack.CONTROLS` is the forgetting row.
    names: of modes, by id.
    changes: probes that only one of them fails.
    probes: where the probes are from.
    left_out: probes that could not be compared: without both answers, or with an undecided judge.
    notes: what a reader has to know.
  """

  old: ComparedModel
  new: ComparedModel
  comparison: Comparison
  names: Mapping[str, str]
  changes: Sequence[ChangedProbe]
  probes: str
  left_out: int
  notes: Sequence[str]

  @property
  def is_thin(self) -> bool:
    """Whether so many probes were left out that the others may tell another story."""
    lines = self.comparison.entries
    compared = sum(line.new.n for line in lines if line.mode_id != pack.TOGETHER)
    return self.left_out > _MOST_LEFT_OUT * (compared + self.left_out)

  def exit_code(self, *, strict: bool) -> int:
    """Returns 0, 1 or 3 as `Comparison.exit_code`; a thin comparison is unsure."""
    code = self.comparison.exit_code(strict=strict)
    return 3 if strict and not code and self.is_thin else code

  def name(self, mode_id: str) -> str:
    """What a line is called."""
    return line_name(mode_id, self.names)


def line_name(mode_id: str, names: Mapping[str, str]) -> str:
  """What a line is called, be it of a mode or of more or less than one."""
  own = {
    pack.CONTROLS: "outside all modes (forgetting)",
    pack.NO_MODE: "failures of no mode",
    pack.TOGETHER: "all modes together",
  }
  return own.get(mode_id) or shown(names.get(mode_id, mode_id))


def shown(text: str, *, limit: int = _SHOWN) -> str:
  """Returns a text as one bounded line of printable characters."""
  line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
  return line if len(line) <= limit else line[: limit - 1] + "…"


def write(folder: str | os.PathLike, ledger: Ledger, *, strict: bool) -> None:
  """Writes ledger.md, ledger.json and junit.xml into a folder, which is made."""
  root = pathlib.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  paths.write_bytes(root / "ledger.md", markdown(ledger, strict=strict).encode())
  jsonio.write_json(root / "ledger.json", as_dict(ledger, strict=strict))
  paths.write_bytes(root / "junit.xml", junit(ledger, strict=strict))


def as_dict(ledger: Ledger, *, strict: bool) -> dict[str, Any]:
  """Returns the whole ledger for JSON."""
  return {
    "version": 1,
    "exit_code": ledger.exit_code(strict=strict),
    "old": ledger.old,
    "new": ledger.new,
    "probes": ledger.probes,
    "left_out": ledger.left_out,
    "notes": list(ledger.notes),
    "counts": ledger.comparison.counts(),
    "entries": [
      {"name": ledger.name(line.mode_id), **dataclasses.asdict(line)}
      for line in ledger.comparison.entries
    ],
    "changes": list(ledger.changes),
  }


def text(ledger: Ledger) -> str:
  """Returns the lines for a terminal."""
  rows = [("status", "old", "new", "change [95 %]", "mode")]
  rows += [_cells(ledger, line) for line in ledger.comparison.entries]
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  lines = [
    "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]).rstrip() for row in rows
  ]
  lines += [_left_out(ledger)] if ledger.left_out else []
  return "\n".join([*lines, *(f"note: {shown(n, limit=400)}" for n in ledger.notes)])


def _cells(ledger: Ledger, line: LedgerLine) -> tuple[str, ...]:
  """Status, old rate, new rate, change and name of a line."""
  status = f"{line.status}: {line.needs_more} more" if line.needs_more else line.status
  low, high = line.change_ci95
  change = f"{100 * line.change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
  return status, _rate(line.old), _rate(line.new), change, ledger.name(line.mode_id)


def _rate(rate: Rate) -> str:
  return f"{rate.k:g}/{rate.n}"


def markdown(ledger: Ledger, *, strict: bool) -> str:
  """Returns ledger.md."""
  code = ledger.exit_code(strict=strict)
  verdict = {0: "no regression", 1: "regression", 3: "unsure"}[code]
  lines = [
    f"# {_md(ledger.new.name)} compared with {_md(ledger.old.name)}: {verdict}",
    "",
    f"{compare.summary_counts(ledger.comparison.counts())}. Probes: {_md(ledger.probes)}."
    f" {_left_out(ledger)}; these are in no line.",
    "",
    "| status | failures of old | of new | change in points, 95 % | q | mode |",
    "|---|---|---|---|---|---|",
  ]
  for line in ledger.comparison.entries:
    status, old, new, change, name = _cells(ledger, line)
    cells = (status, old, new, change, f"{line.q:.2g}", _md(name))
    lines.append(f"| {' | '.join(cells)} |")
  for side, who in (("Old", ledger.old), ("New", ledger.new)):
    how = "asked now" if who.asked else "answers recorded by the audit"
    lines += ["", f"{side}: {_md(who.name)}, {_md(who.identity)}, {how}."]
  lines += [f"\n{_md(note, limit=400)}" for note in ledger.notes]
  for worse, title in ((True, "Only the new model fails"), (False, "Only the old model fails")):
    own = [c for c in ledger.changes if c.worse == worse]
    if own:
      lines += ["", f"## {title}: {len(own)}", ""]
      lines += [f"- {_md(_told(c))} (`{_md(c.probe_id)}`)" for c in own[:_LISTED]]
      lines += [f"- and {len(own) - _LISTED} more in ledger.json"] if len(own) > _LISTED else []
  return "\n".join(lines) + "\n"


def _told(change: ChangedProbe) -> str:
  """A changed probe in one line."""
  return (
    f"{shown(change.question)} expected: {shown(change.expected)};"
    f" old: {shown(change.old)}; new: {shown(change.new)}"
  )


def _md(value: str, *, limit: int = 4 * _SHOWN) -> str:
  """A text that Markdown and the HTML in it leave alone."""
  plain = html.escape(shown(value, limit=limit), quote=False)
  return _MARKUP.sub(lambda m: f"&#{ord(m[0])};", plain)


def junit(ledger: Ledger, *, strict: bool) -> bytes:
  """Returns junit.xml: a test case for each line, failed if it is new or regressed.

  An unsure line is skipped, or with `strict` failed.
  """
  entries = ledger.comparison.entries
  failed = {line.mode_id for line in entries if _fails(line, strict=strict)}
  unsure = {line.mode_id for line in entries if line.status == "unsure"} - failed
  thin = ledger.is_thin and strict
  counts = {
    "tests": len(entries) + thin,
    "failures": len(failed) + thin,
    "errors": 0,
    "skipped": len(unsure),
  }
  totals = {key: str(n) for key, n in counts.items()}
  root = ET.Element("testsuites", totals)
  suite = ET.SubElement(
    root, "testsuite", {"name": _xml(f"{ledger.old.name} to {ledger.new.name}"), **totals}
  )
  for line in entries:
    status, old, new, change, name = _cells(ledger, line)
    label = f"{name} ({line.mode_id})"
    case = ET.SubElement(suite, "testcase", {"classname": "auditdm.compare", "name": _xml(label)})
    said = f"{status}: failures {old} to {new}, change {change} points, q {line.q:.2g}"
    if line.mode_id in failed:
      case_failed = ET.SubElement(case, "failure", {"type": line.status, "message": _xml(said)})
      own = [c for c in ledger.changes if c.mode_id == line.mode_id and c.worse]
      case_failed.text = "\n".join(_xml(f"{c.probe_id}: {_told(c)}") for c in own[:_LISTED])
    elif line.mode_id in unsure:
      ET.SubElement(case, "skipped", {"message": _xml(said)})
    else:
      ET.SubElement(case, "system-out").text = _xml(said)
  if thin:
    case = ET.SubElement(suite, "testcase", {"classname": "auditdm.compare", "name": "left out"})
    ET.SubElement(case, "failure", {"type": "unsure", "message": _left_out(ledger)})
  ET.indent(root)
  return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _left_out(ledger: Ledger) -> str:
  return (
    f"{ledger.left_out} probes could not be compared: {ledger.new.unanswered} without an answer of"
    f" the new model, {ledger.old.unanswered} of the old one"
  )


def _fails(line: LedgerLine, *, strict: bool) -> bool:
  return line.status in _WORSE or (strict and line.status == "unsure")


def _xml(value: str) -> str:
  """A text that XML 1.0 may hold: no control characters, half surrogate pairs or noncharacters."""
  return shown(value, limit=4 * _SHOWN)
