# SPDX-License-Identifier: Apache-2.0
"""Every recorded case equals what the published implementation gave for it.

`scorer_cases.jsonl` was made by running the implementations; `more_cases.jsonl` likewise, by
`references.py` on answers of `made_cases.py`.
"""

import json
import pathlib

import pytest

from auditdm_jax.bench.scorers import cases, yes_no
from auditdm_jax.bench.scorers.cases import score_case
from auditdm_jax.core.config import UserError

HERE = pathlib.Path(__file__).parent
LABELS = "vlmk_yorn_labels"  # Words, not a score.


def load(path):
  lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() also splits in a text.
  return [json.loads(line) for line in lines if line]


RECORDED = load(HERE.parent / "scorer_cases.jsonl")
MORE = load(HERE / "more_cases.jsonl")


def approx(case):
  """1e-6, and 1e-3 for CIDEr."""
  tolerance = 1e-3 if case["metric"] == "CIDEr-D" else 1e-6
  expected = case["expected"]
  if isinstance(expected, dict):
    return {name: pytest.approx(value, abs=tolerance) for name, value in expected.items()}
  return pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("case", [*RECORDED, *MORE], ids=lambda case: case["id"])
def test_a_case_equals_its_reference(case):
  assert score_case(case) == approx(case)


OTHERS = [
  case | {"reference": other, "expected": expected}
  for case in RECORDED
  for other, expected in case.get("others", {}).items()
  if other != LABELS
]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case['id']}-{case['reference']}")
def test_a_case_equals_the_other_implementations(case):
  assert score_case(case) == approx(case)


def test_labels_of_vlmevalkit():
  cases_of_mme = [case for case in RECORDED if LABELS in case.get("others", {})]
  assert cases_of_mme
  for case in cases_of_mme:
    labels = [yes_no.one_of_the_words(x).capitalize() or "Unknown" for x in case["prediction"]]
    assert ",".join(labels) == case["others"][LABELS]


def test_own_tokens_are_those_that_the_cases_give():
  for case in RECORDED:
    if case["benchmark"] == "cococap":
      lines = cases.as_java_lines([[x] for x in case["prediction"]])
      assert [line for (line,) in lines] == case["args"]["tokenized_predictions"]


def test_every_implementation_of_every_benchmark_is_there():
  assert len(cases._FAMILIES) == 16
  for families in cases._FAMILIES.values():
    assert set(families.values()) <= set(cases.IMPLEMENTATIONS)


def test_an_unknown_id_of_a_known_family_is_scored_as_its_family():
  case = next(case for case in RECORDED if case["id"] == "gqa-01")
  assert score_case(case | {"reference": "lmms_gqa"}) == case["others"]["lmms_em"]


GOOD = next(case for case in RECORDED if case["id"] == "gqa-01")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"reference": "lmm_em"}, r"no implementation 'lmm_em' \(did you mean 'lmms_em'\?\) of gqa"),
    ({"benchmark": "gqaa", "reference": "x"}, r"no benchmark 'gqaa' \(did you mean 'gqa'\?\)"),
    ({"prediction": 3}, "gqa-01: its fields do not fit 'bv_vqa'"),
    ({"references": []}, "without references cannot be scored"),
    ({"reference": "lmms_pope", "prediction": ["yes"], "references": ["maybe"]}, "not yes or no"),
    ({"reference": "lmms_mme", "prediction": ["yes"], "references": ["no"]}, "fields do not fit"),
    ({"reference": "vlmk_circ", "prediction": ["A"], "references": ["A", "B"]}, "do not fit"),
  ],
)
def test_a_case_that_cannot_be_scored_says_why(change, message):
  with pytest.raises(UserError, match=message):
    score_case(GOOD | change)


def test_a_case_needs_its_fields():
  with pytest.raises(UserError, match="'reference' is missing"):
    score_case({name: GOOD[name] for name in GOOD if name != "reference"})
