# SPDX-License-Identifier: Apache-2.0
"""Tokens against those of the Java tokenizer, CIDEr-D against its known edges."""

import json
import pathlib
import random

import pytest

from auditdm_jax.bench.scorers import captions, ptb, table
from auditdm_jax.bench.scorers.rows import Item, Variant
from auditdm_jax.core.config import UserError
from tests.bench.scorers import made_cases

# [caption, tokens of PTBTokenizer 3.4.1 without what pycocoevalcap drops].
RECORDED = [
  json.loads(line)
  for line in (pathlib.Path(__file__).parent / "ptb_captions.jsonl")
  .read_text(encoding="utf-8")
  .split("\n")
  if line
]


@pytest.mark.parametrize(("caption", "expected"), RECORDED)
def test_tokens_as_in_java(caption, expected):
  assert " ".join(ptb.tokens(caption)) == expected


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029", "\t"])
def test_a_line_end_is_a_blank(end):
  assert ptb.tokens(f"a man{end}riding.") == ("a", "man", "riding")


def item(key, prediction, *references):
  return Item(key=key, prediction=prediction, references=references)


OTHER = item("other", "a dog", "a dog on the grass", "two dogs")


@pytest.mark.parametrize(
  ("caption", "score"),
  [("red kites fly high", 10.0), ("red kites fly", 7.5), ("red kites", 5.0), ("kites", 2.5)],
)
def test_a_short_caption_lacks_long_n_grams(caption, score):
  first, _ = captions.cider([item("one", caption, caption), OTHER])
  assert first.score == pytest.approx(score)


def test_one_image_scores_nothing():
  (row,) = captions.cider([item("one", "a man rides", "a man rides")])
  assert row.score == 0.0 and not row.invalid


def test_an_empty_caption_scores_nothing_and_is_invalid():
  first, second = captions.cider([item("one", " . ", "a man"), OTHER])
  assert (first.score, first.invalid) == (0.0, 1) and second.score > 0


def test_scores_do_not_depend_on_other_captions_or_on_order():
  items = [item(str(i), a, a, b) for i, (a, b) in enumerate((("a cat", "one cat"), ("x y", "z")))]
  both = captions.cider([OTHER, *items])
  changed = captions.cider([items[1], item("0", "nothing", "a cat", "one cat"), OTHER])
  assert changed[0].score == both[2].score and changed[2].score == both[0].score


def made_items(n):
  rng = random.Random(0)
  made = [made_cases.captions(rng) for _ in range(n)]
  pairs = [pair for case in made for pair in zip(case["prediction"], case["references"])]
  return [item(str(i), said, *references) for i, (said, references) in enumerate(pairs)]


def test_a_part_with_the_frequencies_of_all_scores_as_in_all():
  items = made_items(10)
  every = {row.key: row.score for row in captions.cider(items)}
  known = captions.frequencies(x.references for x in items)
  part = captions.cider(items[:9], known=known)
  assert {row.key: row.score for row in part} == {x.key: every[x.key] for x in items[:9]}
  own = captions.cider(items[:9])
  assert any(row.score != every[row.key] for row in own)


def test_a_part_is_labelled():
  metric = table.metric("cider_subset", Variant.OFFICIAL)
  assert list(metric.reduce(metric.score(made_items(2)))) == ["cider_subset", "invalid"]


def test_vlmevalkit_has_no_tokenizer():
  items = [item("one", "A dog.", "a dog"), item("two", "x", "y")]
  assert captions.cider(items)[0].score == pytest.approx(5.0)
  assert captions.cider(items, tokenizer=captions.words)[0].score == 0.0


def test_images_are_scored_once_and_have_references():
  with pytest.raises(UserError, match="image one has two captions"):
    captions.cider([item("one", "a", "a"), item("one", "a", "a")])
  with pytest.raises(UserError, match="image one has no reference captions"):
    captions.cider([item("one", "a")])
  with pytest.raises(UserError, match="at least one image"):
    captions.frequencies([])
