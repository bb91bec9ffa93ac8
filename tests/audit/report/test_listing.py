# SPDX-License-Identifier: Apache-2.0
"""The list of all finds: what the page shows of many, why finds fell out, and the downloads."""

import csv
import json

from auditdm_jax.audit.attempt import Failure, Gate, Stability
from auditdm_jax.audit.report import data, listing
from auditdm_jax.audit.report import text as text_lib
from tests.audit.report import sample

FAILED = Gate(name="answerable", passed=False, value=0.0, limit=">= 1", note="says\nthree things")
UNASKED = Gate.unmeasured("both_ways", "nobody")


def _find(i, **more):
  return sample.failure(i, f"question {i}", **more)


def test_a_page_shows_what_is_linked_and_a_random_part_of_the_rest(monkeypatch):
  monkeypatch.setattr(listing, "MOST_ROWS", 40)
  finds = [_find(i, grade="V0" if i % 2 else "V1") for i in range(400)]
  linked = {f.probe.probe_id for f in finds[:10]}
  page = listing.shown(finds, linked)
  ids = {f.probe.probe_id for f in page}
  assert len(ids) == 40 and linked <= ids
  assert [f.verified for f in page] == sorted((f.verified for f in page), reverse=True)
  rest = [i for i, f in enumerate(finds) if f.probe.probe_id in ids - linked]
  assert min(rest) < 120 and max(rest) > 280  # Not the first ones.
  assert len(listing.shown(finds[:20], linked)) == 20


def test_each_find_that_fell_out_says_why():
  gates, stable = (FAILED, UNASKED), Stability(k=2, n=4)
  required = ("answerable", "both_ways")
  out = [
    _find(0, grade="V0", gates=gates, stability=stable),
    _find(1, grade="V0", gates=(UNASKED,), stability=stable),
    _find(2, grade="V1", gates=gates),
    _find(3, grade="V0", label="wrong", gates=gates, stability=stable),
  ]
  assert [listing.reasons(f, required) for f in out] == [
    ["answerable: says\nthree things"],
    ["shows again in 2 of 4 trials"],
    [],
    ["a person says that it is no error of the target"],
  ]
  # A gate that V1 does not need is no reason.
  assert listing.reasons(out[0], ()) == ["shows again in 2 of 4 trials"]
  assert dict(listing.tally(out, required))["does not show again"] == 1


def test_the_downloads_hold_all_finds_whole(tmp_path):
  long = sample.failure(1, "=" + "W" * 100_000, mode_id="m", stability=Stability(k=2, n=4))
  hostile = sample.failure(2, sample.HOSTILE, grade="V0", gates=(FAILED,))
  finds = data.FindList(failures=[long, hostile], total=2, shown=[], modes={"m": "hats"})
  listing.write_downloads(tmp_path, finds)
  rows = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
  assert [Failure.from_dict(row) for row in rows] == [long, hostile] and rows[0]["mode"] == "hats"
  csv.field_size_limit(1 << 20)
  with (tmp_path / "failures.csv").open(encoding="utf-8-sig", newline="") as f:
    table = list(csv.DictReader(f))
  assert table[0]["question"].startswith("'=WW") and len(table[0]["question"]) < 32_767
  assert table[0]["shows_again"] == "2 of 4" and table[0]["step"] == "-1"
  assert "\u202e" not in table[1]["question"] and "\x00" not in table[1]["question"]


def test_text_is_bounded_and_what_hides_is_shown():
  assert text_lib.safe("W" * 5_000).startswith("W" * 2_000 + " … (3,000 more")
  assert text_lib.safe("a\n" * 1_000).count("\n") < 45
  assert text_lib.safe("a\u202eb\x1b\u2800\u3164") == "a⟨U+202E⟩b⟨U+001B⟩⟨U+2800⟩⟨U+3164⟩"
  assert len(text_lib.safe("a" + "\u0301" * 1_000)) < 10
  assert text_lib.safe("naïve café 猫 👩\u200d🚀 e\u0301") == "naïve café 猫 👩\u200d🚀 e\u0301"
