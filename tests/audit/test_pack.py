# SPDX-License-Identifier: Apache-2.0
"""Packs come back as they were written, and whatever is wrong with one is said in one line."""

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit import pack as pack_lib
from auditdm_jax.audit.judge import JudgeConfig
from auditdm_jax.audit.pack import Pack, PackedMode, PackedModel, PackedProbe, PackHeader
from auditdm_jax.audit.probe import probe_id
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.text.styles import Style

PICTURES = [np.random.default_rng(i).integers(0, 256, (9, 7, 3), np.uint8) for i in range(3)]
BY_ID = {Images.id_of(p): p for p in PICTURES}


def _probe(i: int, **fields) -> PackedProbe:
  image_id, question = list(BY_ID)[i % 3], f"what is number {i}?"
  given = {"role": "control", "expected": "red", "said": "red"} | fields
  return PackedProbe(
    probe_id=probe_id(image_id, question), image_id=image_id, question=question, **given
  )


def _pack(**header) -> Pack:
  fields = {
    "target": PackedModel(name="target", identity="1" * 64),
    "references": (PackedModel(name="ref", identity="2" * 64),),
    "modes": (PackedMode(mode_id="m-1", name="number one"),),
    "style": Style(prefix="Q: ", max_new_tokens=5),
    "abstentions": ("unanswerable",),
  }
  probes = [_probe(0, role="failure", said="blue", mode_id="m-1", grade="V1", k=4, n=4)]
  probes += [_probe(i, references={"ref": "red"}) for i in range(1, 6)]
  return Pack(PackHeader(**fields | header), tuple(probes), BY_ID.__getitem__)


def test_a_pack_comes_back(tmp_path):
  (tmp_path / "words.yaml").write_text("synonyms: [[crimson, red]]\n")
  rules = JudgeConfig(plurals=False, synonyms=str(tmp_path / "words.yaml"))
  pack = _pack(judge=rules)
  pack_lib.write(tmp_path / "p", pack)
  got = pack_lib.read(tmp_path / "p")
  assert got.probes == pack.probes and got.names == {"m-1": "number one"}
  assert got.header.style == pack.header.style and got.header.judge.plurals is False
  assert pathlib.Path(got.header.judge.synonyms).read_text() == "synonyms: [[crimson, red]]\n"
  for image_id, picture in BY_ID.items():
    np.testing.assert_array_equal(got.load(image_id), picture)
  assert [p.groups for p in got.probes[:2]] == [
    ("m-1", pack_lib.TOGETHER),
    (pack_lib.CONTROLS,),
  ]
  both = _probe(7, role="failure", is_control=True)
  assert both.groups == (pack_lib.NO_MODE, pack_lib.CONTROLS)
  assert pack_lib.roles_of([both, *got.probes]) == {"failure": 2, "control": 6}
  # What it wrote, it writes again.
  pack_lib.write(tmp_path / "again", got)
  assert pack_lib.read(tmp_path / "again").header.sha256 == got.header.sha256
  with pytest.raises(UserError, match="is there already"):
    pack_lib.write(tmp_path / "p", pack)


def _header(root: pathlib.Path, **changes) -> None:
  data = json.loads((root / "pack.json").read_text())
  (root / "pack.json").write_text(json.dumps(data | changes))


def _rows(root: pathlib.Path, change) -> None:
  """Changes rows, with a header that knows of it: as one who forges a pack."""
  rows = [json.loads(line) for line in (root / "probes.jsonl").read_text().splitlines()]
  rows = change(rows)
  raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
  (root / "probes.jsonl").write_bytes(raw)
  _header(root, probes=len(rows), sha256=hashlib.sha256(raw).hexdigest())


def _first(**changes):
  return lambda rows: [rows[0] | changes, *rows[1:]]


def _image(root: pathlib.Path) -> pathlib.Path:
  return root / "images" / f"{next(iter(BY_ID))}.png"


def _link(root: pathlib.Path) -> None:
  outside = root.parent / "outside.png"
  os.rename(_image(root), outside)
  _image(root).symlink_to(outside)


def _bomb(root: pathlib.Path) -> None:
  Image.new("1", (20_000, 20_000)).save(_image(root))


BROKEN = {
  "no header": (lambda r: (r / "pack.json").unlink(), "it has no pack.json"),
  "no json": (lambda r: (r / "pack.json").write_text("{"), "not JSON"),
  "deep": (lambda r: (r / "pack.json").write_text("[" * 100_000), "not JSON"),
  "no pack": (lambda r: (r / "pack.json").write_text('{"a": 1}'), "not the header of a pack"),
  "newer": (lambda r: _header(r, version=2), "version 2; this code reads version 1"),
  "unknown key": (lambda r: _header(r, modus=()), "modus: unknown key .did you mean 'modes'"),
  "wrong type": (lambda r: _header(r, max_new_tokens="8"), "max_new_tokens: expected int"),
  "brings code": (lambda r: _header(r, judge={"rules": "os:abort"}), "a pack brings no code"),
  "brings a model": (lambda r: _header(r, judge={"model": "/etc"}), "a pack brings no model"),
  "brings a path": (lambda r: _header(r, judge={"synonyms": "../x"}), "a pack's table is"),
  "odd mode": (
    lambda r: _header(r, modes=[{"mode_id": "../m", "name": "x"}]),
    "no id of a mode",
  ),
  "no probes": (lambda r: (r / "probes.jsonl").unlink(), "missing, or no file"),
  "changed": (
    lambda r: (r / "probes.jsonl").write_text((r / "probes.jsonl").read_text().replace("b", "c")),
    "changed after it was written",
  ),
  "empty": (lambda r: _rows(r, lambda rows: []), "no probes"),
  "torn": (lambda r: _header(r, probes=99), "6 lines where pack.json says 99"),
  "row of no keys": (lambda r: _rows(r, lambda rows: [3]), "line 1: expected a section"),
  "missing key": (lambda r: _rows(r, lambda rows: [{"role": "control"}]), "line 1 has none of"),
  "odd role": (lambda r: _rows(r, _first(role="other")), "role: 'other' is not one of"),
  "traversal": (lambda r: _rows(r, _first(image_id="../../etc/passwd")), "no hash of an image"),
  "not its id": (lambda r: _rows(r, _first(probe_id="0" * 32)), "not that of image and question"),
  "unknown mode": (lambda r: _rows(r, _first(mode_id="m-9")), "none of the modes"),
  "long": (lambda r: _rows(r, _first(said="x" * 9_999)), "a text of more than 2,000 characters"),
  "twice": (lambda r: _rows(r, lambda rows: [*rows, rows[0]]), "is there twice"),
  "no image": (lambda r: _image(r).unlink(), "missing, or no file"),
  "other image": (
    lambda r: Image.fromarray(PICTURES[0][::-1]).save(_image(r)),
    "its content is not what its name says",
  ),
  "no picture": (lambda r: _image(r).write_bytes(b"GIF89a"), "cannot be read"),
  "bomb": (_bomb, "too large|cannot be read"),
  "link": (_link, "leads out of the pack"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_pack_is_refused_in_one_line(way, tmp_path):
  root = pack_lib.write(tmp_path / "p", _pack())
  damage, message = BROKEN[way]
  damage(root)
  with pytest.raises(UserError, match=message) as error:
    pack_lib.read(root)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_texts_that_are_no_utf8_travel(tmp_path):
  pack = _pack()
  odd = dataclasses.replace(pack.probes[0], said="half \ud800 and \x00")
  pack_lib.write(tmp_path / "p", dataclasses.replace(pack, probes=(odd,)))
  assert pack_lib.read(tmp_path / "p").probes == (odd,)


def test_edits_of_one_image_are_one_unit():
  edits = [_probe(i, source="train/7", made=True) for i in range(2)]
  assert edits[0].image_id != edits[1].image_id and len({p.unit for p in edits}) == 1
  assert _probe(0).unit == _probe(3).unit == _probe(0).image_id
