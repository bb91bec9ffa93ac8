# SPDX-License-Identifier: Apache-2.0
"""Files of labels come from outside: what is right is read, what is not is named in one line."""

import json

import pytest

from auditdm_jax.audit import label_files
from auditdm_jax.audit.sampling import Sampled
from auditdm_jax.core.config import UserError

DRAWN = [
  Sampled(key=key, stratum="s", draw=0, drawn=3, size=9, probability=1 / 3, first=first)
  for key, first in (("aa", "consensus"), ("bb", "target"), ("cc", "target"))
]
SAMPLE = label_files.sample_id(DRAWN)
HEAD = f'{label_files.KEY},image,question,A,B,"{label_files.SAID}"\n'


def _page(labels, **changed):
  data = {"format": label_files.FORMAT, "sample": SAMPLE, "rater": "ann", "labels": labels}
  return json.dumps(data | changed)


def _read(tmp_path, text, **options):
  path = tmp_path / "labels"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return label_files.read(path, DRAWN, **options)


def test_page_and_table_say_the_same(tmp_path):
  said = [("aa", "A"), ("bb", "A"), ("cc", "unclear")]
  page = _read(tmp_path, _page([{"find": k, "said": w} for k, w in said]))
  assert [x.choice for x in page] == ["consensus", "target", "unclear"]
  table = HEAD + "".join(f'{k},i,"q, a",x,y,{w.lower()} \n' for k, w in said)
  assert _read(tmp_path, table, rater="ann") == page
  semicolons = table.replace('"q, a"', "q").replace(f'"{label_files.SAID}"', label_files.SAID)
  head, *rows = semicolons.replace("A, B, both, neither, unclear", "#").split("\n")
  text = "\n".join([head.replace(",", ";"), *(row.replace(",", ";") for row in rows)])
  text = text.replace("#", "A, B, both, neither, unclear")
  assert _read(tmp_path, b"\xef\xbb\xbf" + text.encode(), rater="ann") == page


def test_finds_without_a_label_are_left_out(tmp_path):
  found = _read(tmp_path, HEAD + "aa,i,q,x,y,\nbb,i,q,x,y,neither\n", rater="ann")
  assert [(x.key, x.choice) for x in found] == [("bb", "neither")]


ONE = {"find": "aa", "said": "A"}
BAD = {
  "no file of labels": b"\x89PNG\r\n",
  "no text": "ä".encode("latin-1"),
  "neither JSON": "{" * 10,
  "deep": '{"a":' * 100_000,
  "no column": "a,b\n1,2\n",
  "its format": _page([ONE], format="x" * 10_000),
  "another sample": _page([ONE], sample="x"),
  "no list": _page({"aa": "A"}),
  "has not the texts": _page([{"find": "aa", "said": 1}]),
  "no find of this run": _page([{"find": "../../etc" * 1_000, "said": "A"}]),
  "is none of": _page([{"find": "aa", "said": "<script>" * 1_000}]),
  "second and different": _page([ONE, {"find": "aa", "said": "B"}]),
  "the rater is": _page([ONE], rater="a" * 41),
  "a name has": _page([ONE], rater={"a": 1}),
  "1 to 40": _page([ONE], rater="an\u202en"),
  "no find is labelled": _page([]),
  "--rater=NAME": HEAD + "aa,i,q,x,y,A\n",
}


@pytest.mark.parametrize("why", BAD)
def test_what_is_wrong_is_said_in_one_bounded_line(tmp_path, why):
  with pytest.raises(UserError) as error:
    _read(tmp_path, BAD[why])
  said = str(error.value)
  assert "\n" not in said and len(said) < 400 and str(tmp_path) in said
  if why not in ("no file of labels", "no text", "deep"):
    assert why in said


def test_no_cell_is_a_formula():
  assert [label_files.csv_cell(x) for x in ("=1", "+1", "-1", "@x", "a=1", "")] == [
    "'=1",
    "'+1",
    "'-1",
    "'@x",
    "a=1",
    "",
  ]
