# SPDX-License-Identifier: Apache-2.0
"""The judge's rules, one line per rule, and its three outcomes."""

import pytest

from auditdm_jax.audit.judge import Judge, JudgeConfig, Same

SAME = [
  ("Red", "red."), ("a red circle", "The red circle"), ("three", "3"), ("twenty-one", "21"),
  ("two hundred and five", "205"), ("dogs", "dog"), ("boxes", "box"), ("yes", "Yeah!"),
  ("No", "nope"), ("no, it is not there", "No, it is not there."), ("(B)", "b"), ("B", "B. cat"),
  ("option c", "C"), ("5 cm", "5 centimetres"), ("5cm", "5"), ("50 percent", "50%"),
  ("$5", "5 dollars"), ("1,000", "1000"), ("3:15", "3:15"), ("2.50", "2.5"), ("none", "None"),
  ("light-blue", "light blue"), ("the", "the"), ("Ａ ｃａｔ", "cat"),
]  # fmt: skip
DIFFERENT = [
  ("red", "blue"), ("three", "four"), ("yes", "no"), ("none", "no"), ("none", "zero"),
  ("5 cm", "5 m"), ("A", "B"), ("B. cat", "C"), ("3:15", "3:45"), ("", "red"), ("two three", "5"),
  ("glass", "gas"), ("row two", "column two"), ("1999", "2001"), ("-3", "3"),
]  # fmt: skip


@pytest.mark.parametrize("a,b", SAME)
def test_same(a, b):
  assert Judge().same(a, b) and Judge().same(b, a)


@pytest.mark.parametrize("a,b", DIFFERENT)
def test_different(a, b):
  assert not Judge().same(a, b) and not Judge().same(b, a)


def test_normalize_is_idempotent():
  for text in [t for pair in SAME + DIFFERENT for t in pair]:
    once = Judge().normalize(text)
    assert Judge().normalize(once) == once


def test_tolerance_never_blurs_small_counts():
  judge = Judge(JudgeConfig(relative_tolerance=0.05))
  assert judge.same("103", "100") and judge.same("2.04", "2.0")
  assert not judge.same("19", "18") and not judge.same("110", "100")


def test_units_can_be_required():
  assert not Judge(JudgeConfig(units_optional=False)).same("5 cm", "5")


def test_a_model_judge_is_asked_in_both_orders():
  asked = []

  def ask(question, a, b):
    asked.append((a, b))
    return (a, b) in {("couch", "sofa"), ("sofa", "couch"), ("cat", "animal")}

  judge = Judge(ask=ask)
  assert judge.compare("couch", "sofa") is Same.SAME
  assert judge.compare("cat", "animal") is Same.UNDECIDED and not judge.same("cat", "animal")
  assert judge.compare("cat", "dog") is Same.DIFFERENT
  before = len(asked)
  assert judge.compare("Cat", "cat") is Same.SAME and len(asked) == before
