# SPDX-License-Identifier: Apache-2.0
"""Readers of letters and of MMMU's open answers at the edges of their rules.

What the published code reads was run for test_cases.py; here are the rules themselves.
"""

import hypothesis
from hypothesis import strategies as st
import pytest

from auditdm_jax.bench.scorers import choices, mmmu, table
from auditdm_jax.bench.scorers.rows import Item, Variant
from auditdm_jax.core.config import UserError

OPTIONS = {"A": "cat", "B": "dog", "C": "bird", "D": "fish"}
READERS = (
  choices.first_character,
  choices.lmms_letter,
  choices.vlmevalkit_letter,
  choices.mmbench_letter,
  choices.mmmu_letter,
  choices.mmt_letter,
)
PIECES = st.sampled_from(
  [*"ABCDEZ(). :,'*", "cat", "dog", "the answer is ", "Answer is ", "é", "\n", "I choose "]
)


@pytest.mark.parametrize("reader", READERS)
@hypothesis.given(st.lists(PIECES, max_size=12).map("".join))
def test_a_reader_finds_a_letter_of_the_options_or_none(reader, text):
  assert reader(text, OPTIONS) in (*OPTIONS, "", "E")
  assert reader(text, OPTIONS) == reader(text, OPTIONS)


@pytest.mark.parametrize(
  ("text", "first", "lmms", "vlmk", "mmbench", "mmmu", "mmt"),
  [
    ("B", "B", "B", "B", "B", "B", "B"),
    ("b", "B", "", "", "", "", ""),
    ("(B) dog", "", "B", "B", "B", "B", "B"),
    ("B.", "B", "B", "B", "B", "B", "B"),
    ("", "", "", "", "", "", ""),
    ("It is a dog", "", "", "B", "B", "", ""),
    ("Both", "B", "B", "", "B", "", ""),  # lmms-eval takes any B at last.
    ("A dog", "A", "A", "A", "A", "A", "A"),  # The article.
    ("I see a dog, not a cat, in it", "", "", "", "", "A", ""),  # MMMU takes the last text.
    ("cat or dog", "C", "", "", "", "", ""),
    ("(A) or (B)", "", "B", "", "B", "B", "A"),  # MMT looks for " B ", which is not there.
    ("A B", "A", "A", "", "A", "B", "B"),
    ("x answer is **C** as B is not", "", "B", "C", "B", "B", "B"),
    ("B w w w", "B", "B", "B", "B", "B", "B"),
    ("B w w w w", "B", "B", "", "B", "B", "B"),  # Not among VLMEvalKit's last five words.
    ("Cannot determine the answer B", "C", "B", "", "B", "B", "B"),
  ],
)
def test_readers(text, first, lmms, vlmk, mmbench, mmmu, mmt):
  found = tuple(reader(text, OPTIONS) for reader in READERS)
  assert found == (first, lmms, vlmk, mmbench, mmmu, mmt)


def test_options_without_texts_are_read_by_their_letters():
  item = Item(key="a", prediction="D", references=("d",))
  metric = table.metric("choice_accuracy", Variant.VLMEVALKIT)
  assert metric.reduce(metric.score([item]))["mean"] == 1.0
  with pytest.raises(UserError, match="a choice has one right letter, not"):
    metric.score([Item(key="a", prediction="D", references=("A", "B"))])


@pytest.mark.parametrize(
  ("prediction", "reference", "score"),
  [
    ("12.344", "12.341", 1),  # Equal to two decimals.
    ("12.344", "12.349", 0),
    ("so it is 1,000", "1000", 1),
    ("x = 7", "7", 1),
    ("x = 7\nso I am done.", "7", 0),  # "=" counts in the last line only.
    ("the answer is a red car.", "Red car", 1),  # A reference within the text.
    ("a red", "red car", 0),
    ("the result is x", "x", 1),
    ("the result is x2", "x", 0),  # A single character needs a blank beside it.
    ("the result is x or y", "x", 1),
    ("", "7", 0),
    ("-7", "7", 0),
    ("7e2 m", "700", 1),
  ],
)
def test_open_answers(prediction, reference, score):
  assert mmmu.open_accuracy(prediction, [reference]) == score
  assert mmmu.open_accuracy_of_lmms_eval(prediction, [reference]) == 0


def test_mmmu_in_its_variants():
  items = [
    Item(key="open", prediction="42", references=("42",), category="Math"),
    Item(key="mc", prediction="B", references=("B",), options=("x", "y"), category="Art"),
    Item(key="mc2", prediction="?", references=("B",), options=("x", "y"), category="Art"),
  ]
  values = {v: table.metric("mmmu_accuracy", v) for v in (Variant.OFFICIAL, Variant.LMMS_EVAL)}
  official, lmms = (metric.reduce(metric.score(items)) for metric in values.values())
  assert official == {"micro": pytest.approx(2 / 3), "macro": 0.75, "invalid": 1}
  assert lmms == {"micro": pytest.approx(1 / 3), "macro": 0.25, "invalid": 1}
  vlmk = table.metric("mmmu_accuracy", Variant.VLMEVALKIT)
  assert [row.score for row in vlmk.score(items)] == [1, 1, 0]  # The open answer as option A.
