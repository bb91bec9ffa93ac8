# SPDX-License-Identifier: Apache-2.0
"""Five hundred answers of every benchmark kind, scored by the published code and by ours.

COMMAND
  python -m venv references
  references/bin/pip install lmms-eval==0.7.3 pycocoevalcap==1.2 anls==0.0.2 anls-star==1.0.1 \
    editdistance munkres                     # And Java 8 or newer, for pycocoevalcap.
  git clone https://github.com/GT-Vision-Lab/VQA clones/VQA
  git clone https://github.com/open-compass/VLMEvalKit clones/VLMEvalKit
  git clone https://github.com/google-research/big_vision clones/big_vision
  REFERENCES=references/bin/python CLONES=clones \
    python -m pytest -m slow -s tests/bench/scorers/test_parity.py

Prints a table: implementation, equal, different, and the mean score of each side. What is not
installed or cloned is left out and said.
"""

import collections
import dataclasses
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from auditdm_jax.bench.scorers import score_case
from tests.bench.scorers import made_cases

PROGRAM = pathlib.Path(__file__).parent / "references.py"
N, SEED = 500, 0
# The Java tokenizer looks into the next line: "… of a." before a line that begins with "A" has
# another last token. Captions are scored by themselves here. No other difference is allowed.
DIFFERENT = {"pycocoevalcap": 15}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif("REFERENCES" not in os.environ, reason="REFERENCES names no Python"),
]


@dataclasses.dataclass
class Tally:
  equal: int = 0
  different: int = 0
  missing: int = 0
  theirs: list[float] = dataclasses.field(default_factory=list)
  ours: list[float] = dataclasses.field(default_factory=list)


def reference_scores(cases, tmp_path):
  """{case id: score, None where the implementation is missing}, by the other Python."""
  clones = pathlib.Path(os.environ.get("CLONES", "clones")).absolute()
  text = "".join(json.dumps(case) + "\n" for case in cases)
  done = subprocess.run(
    [os.environ["REFERENCES"], str(PROGRAM), str(clones)],
    input=text,
    capture_output=True,
    encoding="utf-8",
    cwd=tmp_path,  # lmms-eval writes submissions into the folder that it runs in.
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return {row[1]: row[2] for row in map(json.loads, done.stdout.splitlines())}


def is_equal(ours, theirs, tolerance):
  if isinstance(theirs, dict):
    names = ours.keys() == theirs.keys()
    return names and all(is_equal(ours[x], theirs[x], tolerance) for x in theirs)
  return bool(np.allclose(ours, theirs, rtol=0, atol=tolerance))


def first_number(score):
  return next(iter(score.values())) if isinstance(score, dict) else score


def table(tallies):
  lines = [f"\n{'implementation':22}{'equal':>7}{'differ':>8}{'theirs':>10}{'ours':>10}"]
  for name, tally in tallies.items():
    if tally.missing:
      lines.append(f"{name:22}  not installed")
    else:
      means = f"{np.mean(tally.theirs):10.4f}{np.mean(tally.ours):10.4f}"
      lines.append(f"{name:22}{tally.equal:7}{tally.different:8}{means}")
  return "\n".join(lines)


def test_scores_equal_those_of_the_published_code(tmp_path):
  cases = [case for name in made_cases.KINDS for case in made_cases.cases(name, N, seed=SEED)]
  scores = reference_scores(cases, tmp_path)
  tallies = collections.defaultdict(Tally)
  for case in cases:
    theirs, tally = scores[case["id"]], tallies[case["reference"]]
    if theirs is None:
      tally.missing += 1
      continue
    ours = score_case(case)
    equal = is_equal(ours, theirs, 1e-3 if case["metric"] == "CIDEr-D" else 1e-6)
    tally.equal += equal
    tally.different += not equal
    tally.theirs.append(first_number(theirs))
    tally.ours.append(first_number(ours))
  print(table(tallies))
  assert any(tally.equal for tally in tallies.values()), "no implementation is installed"
  for name, tally in tallies.items():
    assert tally.different <= DIFFERENT.get(name, 0), name
