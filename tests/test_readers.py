# SPDX-License-Identifier: Apache-2.0
"""Other programs read what `convert` writes; each in its own environment, named by a variable.

python -m venv tf4 && tf4/bin/pip install transformers==4.57.6 torch
TRANSFORMERS4_PYTHON=tf4/bin/python python -m pytest -m slow tests/test_readers.py
"""

import os
import subprocess

import pytest

from benchmarks import readers

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("TRANSFORMERS4_PYTHON")

# What is run there: the same model as transformers 5 saves it, read back by 4.57.
_MISSING = """
import sys, transformers
_, report = transformers.AutoModelForImageTextToText.from_pretrained(
  sys.argv[1], output_loading_info=True
)
print(len(report["missing_keys"]))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  if not PYTHON:
    pytest.skip("TRANSFORMERS4_PYTHON names no interpreter with transformers 4.57.6")
  folder = tmp_path_factory.mktemp("readers")
  version, found = readers.measure("transformers", PYTHON, folder)
  assert version.startswith("transformers 4.57.6"), version
  return folder, {(d.model, d.case, d.asked): d.value for d in found}


@pytest.mark.parametrize("asked", ["labels", "prompt"])
def test_transformers_4_gives_our_log_probabilities(measured, asked):
  _, found = measured
  ours = {k: v for k, v in found.items() if k[2] == asked}
  assert {k[:2] for k in ours} == {
    (model, case) for model in readers.MODELS for case in ("text", "image", "flat", "batch")
  }
  assert max(ours.values()) < 2e-4, ours


def test_the_check_sees_a_prompt_that_is_masked_otherwise(measured):
  _, found = measured
  assert found["gemma3", "batch", "no types"] > 0.1


def test_it_does_not_find_the_tower_that_transformers_5_writes(measured, tmp_path):
  """The reason for the released names; if this fails, they are not needed any more."""
  transformers = pytest.importorskip("transformers")
  folder, _ = measured
  model = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder / "gemma3" / "hf")
  model.save_pretrained(tmp_path)
  counts = [
    int(subprocess.check_output([PYTHON, "-c", _MISSING, str(path)], text=True).split()[-1])
    for path in (folder / "gemma3" / "hf", tmp_path)
  ]
  tower = len(list(model.model.vision_tower.parameters()))
  assert counts == [0, tower]
