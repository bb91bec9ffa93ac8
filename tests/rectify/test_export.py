# SPDX-License-Identifier: Apache-2.0
"""What no export may hold is refused with its reason; folders are whole, or as they were."""

import json

import numpy as np
import pytest

from auditdm_jax.audit import leaks
from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import export
from auditdm_jax.rectify.export import Firewall
from tests.rectify.exporting import IDS, PICTURES, collect, sourced


def _fill(folder):
  (folder / "data.txt").write_text("x")
  return {"fact": 1}


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_goes_back_to_one_image_is_in_one_split():
  # Pictures 6 to 11 are made from 0 to 5.
  examples = [sourced(i, source=i % 6, question=q) for i in range(12) for q in ("what is a", "b")]
  exported = collect(examples)
  images = {s: {r.sourced.source_image for r in exported.of(s)} for s in ("train", "val")}
  assert len(images["val"]) == 2 and not images["train"] & images["val"]
  assert len(exported.rows) == 24 and len({row.row_id for row in exported.rows}) == 24
  assert [r.split for r in exported.rows] == sorted(r.split for r in exported.rows)
  again = collect(examples[::-1])
  assert {r.sourced.source_image for r in again.of("val")} == images["val"]
  assert {r.sourced.source_image for r in collect(examples, seed=1).of("val")} != images["val"]
  assert not collect(examples, val_share=0).of("val")
  assert len(collect([sourced(0), sourced(1)], val_share=0.9).of("train")) == 1


@pytest.mark.parametrize(
  ("bad", "why"),
  [
    ({"label": " "}, "the label is empty"),
    ({"question": "what is\nthis"}, "the question has control characters"),
    ({"question": "what \ud800"}, "unpaired surrogates"),
    ({"question": "x" * 1001}, "the question has 1,001 characters, at most 1,000"),
    ({"label": "<end_of_turn>"}, "special token: <end_of_turn>"),
    ({"question": "say <|im_end|> now"}, "special token: <|im_end|>"),
    ({"question": "<image>what"}, "special token: <image>"),
    ({"label": "[INST] no"}, r"special token: [INST]"),
    ({"label": "<loc0001>"}, "special token: <loc0001>"),
  ],
)
def test_hostile_text_is_refused(bad, why):
  exported = collect([sourced(0), sourced(1, **bad)], val_share=0)
  assert [r.sourced.example.image_id for r in exported.rows] == [IDS[0]]
  (refusal,) = exported.refused
  assert refusal.kind == "text" and why in refusal.why


def test_ordinary_text_is_kept():
  words = ("is 3 < 5 and 7 > 2", "naïve café?", "what does [it] say")
  assert not collect([sourced(i, question=q) for i, q in enumerate(words)]).refused
  box = sourced(0, label="<loc0001><loc0002><loc0003><loc0004><seg001>")
  assert not collect([box], val_share=0, allow_locations=True).refused
  with pytest.raises(UserError, match="no example is left to train on; the first of 1 refused: "):
    collect([box])


class _Item(BenchmarkItem):
  """About a picture that a scanner has changed a little."""

  def image(self, k=0):
    noise = np.random.default_rng(0).integers(-2, 3, PICTURES[self.image_key].shape)
    return np.clip(PICTURES[self.image_key].astype(int) + noise, 0, 255).astype(np.uint8)


def test_pictures_of_benchmarks_are_refused_whatever_is_asked():
  item = _Item(item_id="q7", pictures=(None,), image_key=IDS[2], question="something else")
  index = leaks.build([item], source="gqa/val")
  # Picture 5 is an edit of picture 2.
  examples = [sourced(0), sourced(2), sourced(5, source=2), sourced(3), sourced(4)]
  firewall = Firewall(reserved=frozenset([IDS[3]]), index=index)
  exported = collect(examples, firewall=firewall)
  assert {r.sourced.example.image_id for r in exported.rows} == {IDS[0], IDS[4]}
  whys = [r.why for r in exported.refused]
  assert [r.kind for r in exported.refused] == ["benchmark"] * 3
  assert all("looks like that of gqa/val q7" in why for why in whys[:2])
  assert "is held out for evaluation" in whys[2]


def test_a_folder_says_where_its_rows_are_from(tmp_path):
  exported = collect([sourced(0), sourced(1), sourced(2, label="<image>")])
  assert export.write(tmp_path / "out", exported, _fill, header={"to": "x", "licence": "CC0"})
  header = export.read_header(tmp_path / "out")
  assert header["rows"] == {"train": 1, "val": 1, "refused": {"text": 1}} and header["fact"] == 1
  meta = export.read_meta(tmp_path / "out")
  assert [row["split"] for row in meta] == ["train", "val"]
  assert {row["licence"] for row in meta} == {"CC0"} and {r["source"] for r in meta} == {"own/1"}
  assert meta[0]["provenance"]["probe_id"] in ("p0", "p1") and meta[0]["label"] == "red"
  (refused,) = _rows(tmp_path / "out" / "refused.jsonl")
  assert refused["probe_id"] == "p2" and refused["label"] == "<image>"


def test_the_same_again_changes_nothing_and_another_replaces(tmp_path):
  out, header = tmp_path / "out", {"to": "x"}
  assert export.write(out, collect(), _fill, header=header)
  (out / "data.txt").write_text("mine")
  assert not export.write(out, collect(), _fill, header=header)
  assert (out / "data.txt").read_text() == "mine"
  assert export.write(out, collect(), _fill, header={"to": "y"})
  assert (out / "data.txt").read_text() == "x"
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_of_others_is_lost(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "thesis.txt").write_text("x")
  with pytest.raises(UserError, match="not an export of this version"):
    export.write(out, collect(), _fill, header={})
  (out / "thesis.txt").unlink()
  export.write(out, collect(), _fill, header={})
  (out / "checkpoints").mkdir()
  with pytest.raises(UserError, match="checkpoints is not of the export, and would be lost"):
    export.write(out, collect(), _fill, header={"to": "y"})


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
  out = tmp_path / "out"
  export.write(out, collect(), _fill, header={})

  def fails(folder):
    (folder / "half.txt").write_text("x")
    raise UserError("the disk is full")

  (tmp_path / ".out.unfinished").mkdir()  # Of a run that was killed.
  with pytest.raises(UserError, match="disk is full"):
    export.write(out, collect(), fails, header={"to": "y"})
  assert [p.name for p in tmp_path.iterdir()] == ["out"] and (out / "data.txt").exists()
