# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of `answer` and of sampling in groups, against transformers' `generate`.

One random Gemma 3 checkpoint of 98 M parameters, one process, the two sides in turns; what is
compiled in the first call of each is not counted. `generate` has its static cache. The greedy
answers of both sides must be the same texts.

Both use all cores. On a machine that does other things at the same time, torch's threads wait for
one another much longer than XLA's, and the ratios are several times too high: pin to an idle core.

COMMAND
  python -m pytest -s -m perf tests/perf/test_answer.py
  taskset -c 1 python -m pytest -s -m perf tests/perf/test_answer.py
"""

import json
import sys

import numpy as np
import pytest

from tests.perf import apart

pytestmark = pytest.mark.perf

TOKENS = {"batch 1": 64, "batch 32": 32 * 64, "4 prompts x 8 samples": 32 * 64}
# Of the tokens per second of transformers; the project's, on an idle machine.
GOALS = {"batch 1": 2.0, "batch 32": 2.0, "4 prompts x 8 samples": 3.0}


@pytest.fixture(scope="module")
def speed(tmp_path_factory) -> dict:
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  printed = apart.run(sys.executable, "answer_speed", tmp_path_factory.mktemp("gemma3"))
  return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("name", list(GOALS))
def test_tokens_per_second_against_transformers(speed, name):
  case = speed["cases"][name]
  rate = {side: TOKENS[name] / np.median(case[side]) for side in ("theirs", "ours")}
  ratio = rate["ours"] / rate["theirs"]
  spread = {side: f"{min(case[side]):.2f} to {max(case[side]):.2f} s" for side in rate}
  print(
    f"\n{name}, {speed['parameters'] / 1e6:.0f} M parameters, {speed['device']}: "
    f"{rate['ours']:.0f} tokens/s ({spread['ours']}), "
    f"transformers {rate['theirs']:.0f} ({spread['theirs']}), ratio {ratio:.2f}; "
    f"first call {case['first']['ours']:.0f} s, transformers {case['first']['theirs']:.0f} s"
  )
  assert case.get("equal", 1.0) == 1.0, "greedy answers differ"
  assert ratio >= GOALS[name]
