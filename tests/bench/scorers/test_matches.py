# SPDX-License-Identifier: Apache-2.0
"""Scores against the values that the published scorers give for the same answers."""

import pytest

from auditdm_jax.bench import scorers
from auditdm_jax.bench.scorers import vqa
from auditdm_jax.core.config import UserError


def votes(**counts):
  """votes(red=2, blue=8) -> the ten answers; a blank is written as "_"."""
  return [word.replace("_", " ") for word, n in counts.items() for _ in range(n)]


@pytest.mark.parametrize(
  ("prediction", "references", "expected"),
  [
    ("red", votes(red=1, blue=9), 0.3),
    ("red", votes(red=2, blue=8), 0.6),
    ("red", votes(red=3, blue=7), 0.9),
    ("red", votes(red=4, blue=6), 1.0),
    ("yes", votes(Yes=10), 0.0),  # All ten agree: nothing is normalised.
    ("yes", votes(Yes=9, no=1), 1.0),
    (" none\n", ["0"] * 6 + ["none"] * 4, 1.0),
    ("The Dogs.", votes(dogs=6, dog=4), 1.0),
    ("t-shirt", votes(t_shirt=5, shirt=5), 1.0),
    ("1,000", ["1000"] * 5 + ["1k"] * 5, 1.0),
    ("red/blue", votes(red_blue=5, red=5), 1.0),
    ("dont", ["don't"] * 5 + ["do not"] * 5, 1.0),
    ("three", ["3"] * 9 + ["3."], 1.0),
  ],
)
def test_vqa_accuracy_is_the_official_one(prediction, references, expected):
  assert scorers.vqa_accuracy(prediction, references) == pytest.approx(expected)


def test_contractions_follow_the_official_table():
  table = vqa.contractions()
  assert table["youd've"] == table["you'dve"] == "you'd've"
  assert table["somebody'd"] == "somebodyd" and table["twas"] == "'twas"
  assert table["y'allll"] == "y'all'll" and "ive" not in table and "let's" not in table


@pytest.mark.parametrize(
  ("prediction", "references", "expected"),
  [
    ("race", votes(race=3, drive=7), 1.0),
    ("race", votes(race=1, drive=9), 1 / 3),
    ("racing", votes(race=10), 0.0),
    ("left,right", votes(leftright=5, left_right=5), 0.0),
  ],
)
def test_vote_accuracy_leaves_nobody_out(prediction, references, expected):
  assert scorers.vote_accuracy(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("prediction", "reference", "exact", "normalized"),
  [
    ("Yes", "yes", 0.0, 1.0),
    ("t-shirt", "t shirt", 0.0, 0.0),
    ("t-shirt", "tshirt", 0.0, 1.0),
    (" two. ", "two", 0.0, 1.0),
    ("(b)", "B", 0.0, 1.0),
    ("b) leaf", "B", 0.0, 0.0),
    ("", "", 1.0, 1.0),
  ],
)
def test_matches(prediction, reference, exact, normalized):
  assert scorers.exact_match(prediction, [reference]) == exact
  assert scorers.normalized_match(prediction, [reference]) == normalized


NUMBERS_AND_SIGNS = (
  "3.5 35,1/2 12,3:15 315,< >,A+ A,A- A,-5 5,5% 5,$5 5,$5 £5,.5 5,10-12 1012,7-2 72,C# C,C++ C"
  ",5' 5\",1.5 15,? !,>5 5,≥5 5,+5 -5,-$5 $5,5+ 5,12/25 1225,3.14 314,5* 5"
  ",#1 1,½ 12,10² 102,1:2 1/2,a&b ab"
)


@pytest.mark.parametrize("pair", NUMBERS_AND_SIGNS.split(","))
def test_punctuation_of_numbers_and_signs_stays(pair):
  one, other = pair.split(" ")
  assert scorers.normalized_match(one, [other]) == scorers.normalized_match(other, [one]) == 0.0
  assert scorers.normalized_match(f" {one} ", [one.upper()]) == 1.0


@pytest.mark.parametrize(
  "prediction,reference",
  [
    *(("red .", "red"), ("“red”", "red"), ("'Red'", "red"), ("red。", "red"), ("**red**", "red")),
    *(
      ("1,000,000", "1000000"),
      (".5", "0.5"),
      ("−5", "-5"),
      ('"5"', "5"),
      ("5′", "5'"),
      ("3.", "3"),
    ),
    *(("don’t", "dont"), ("x-ray", "xray"), ("St. John", "st john"), ("red  car", "Red car")),
  ],
)
def test_punctuation_of_words_goes(prediction, reference):
  assert scorers.normalized_match(prediction, [reference]) == 1.0


@pytest.mark.parametrize(
  ("prediction", "reference", "expected"),
  [
    ("10.5", "10", 1.0),  # Exactly 5 per cent counts.
    ("10.6", "10", 0.0),
    ("2020", "2019", 1.0),  # So do years.
    ("0.12", "12%", 1.0),
    ("12", "12%", 0.0),
    ("nan", "10", 0.0),
    ("0.0", "0", 0.0),
    ("0", "0", 1.0),
    ("-9.6", "-10", 1.0),
    ("1,000", "1000", 0.0),
    ("Blue", "blue", 1.0),
    ("", "10", 0.0),
  ],
)
def test_relaxed_accuracy(prediction, reference, expected):
  assert scorers.relaxed_accuracy(prediction, [reference]) == expected


@pytest.mark.parametrize(
  ("prediction", "references", "expected"),
  [
    ("abcd", ["abcx", "zzzz"], 0.75),
    ("x", [""], 0.0),
    ("", ["x"], 0.0),
    ("", [""], 1.0),
    (" 12  March ", ["12 march"], 1.0),
    ("ab", ["ax"], 0.5),  # Exactly one half is kept.
    ("abc", ["axx"], 0.0),
    ("größe", ["grösse"], 1 - 2 / 6),
  ],
)
def test_anls(prediction, references, expected):
  assert scorers.anls(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("a", "b", "distance"),
  [("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("é", "e", 1)],
)
def test_edit_distance(a, b, distance):
  assert scorers.edit_distance(a, b) == scorers.edit_distance(b, a) == distance


SCORERS = (
  scorers.exact_match,
  scorers.normalized_match,
  scorers.vqa_accuracy,
  scorers.vote_accuracy,
  scorers.relaxed_accuracy,
  scorers.anls,
)


@pytest.mark.parametrize("scorer", SCORERS)
def test_references_that_are_none_or_one(scorer):
  for none in ([], ()):
    with pytest.raises(UserError, match="an answer without references cannot be scored"):
      scorer("red", none)
  assert scorer("a", "cat") == 0.0  # One reference, not three letters.
  assert scorer("cat", "cat") == scorer("cat", ["cat"])
