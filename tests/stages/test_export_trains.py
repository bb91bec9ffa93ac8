# SPDX-License-Identifier: Apache-2.0
"""An export is trained, evaluated and saved by an unmodified big_vision, and comes back.

The package is not on PyPI, and wants TensorFlow, which this project does without. So it runs in an
environment of its own (jax 0.10.2, flax 0.12.8, TensorFlow 2.21 on Python 3.11 are known to work):

  git clone https://github.com/google-research/big_vision /src/big_vision
  python -m venv /src/env
  /src/env/bin/pip install jax flax optax einops overrides sentencepiece clu tensorflow-cpu \\
    tensorflow-datasets ml_collections editdistance psutil absl-py pillow importlib_resources chex
  BIG_VISION=/src/big_vision BIG_VISION_PYTHON=/src/env/bin/python \\
    python -m pytest -m slow -s tests/stages/test_export_trains.py
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from auditdm_jax.models import weights
from auditdm_jax.text import styles
from auditdm_jax.vlm import load_vlm
from tests.stages import verified

PACKAGE = os.environ.get("BIG_VISION", "")
PYTHON = os.environ.get("BIG_VISION_PYTHON", sys.executable)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not PACKAGE, reason="BIG_VISION names no clone of big_vision"),
]


def _run(*command: object, cwd: pathlib.Path) -> str:
  """Runs a command on one CPU device; returns what it printed."""
  env = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", "XLA_FLAGS": ""}
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return done.stdout + done.stderr


def _ours(*flags: object) -> str:
  return _run(sys.executable, "-m", "auditdm_jax", *flags, cwd=verified.ROOT)


# One of each evaluator; each has another prompt, resizing or search.
@pytest.mark.parametrize(
  ("recipe", "style", "metric"),
  [
    ("chartqa", styles.BARE, "relaxed_accuracy"),
    ("gqa-448", styles.PALIGEMMA, "exact_match"),
    ("cococap", styles.PALIGEMMA, "normalized_match"),
  ],
)
def test_three_steps_and_back(tmp_path, recipe, style, metric):
  npz = verified.write_paligemma(tmp_path / "pt")
  run = verified.write_run(tmp_path, target=str(npz), images=12)
  told = _ours("export", f"--workdir={run}", "--to=big_vision", f"--recipe={recipe}",
               "--val_share=0.25", "--licence=CC0")  # fmt: skip
  assert "18 examples of 9 source images, for validation 6 of 3" in told
  folder, out = run / "export" / "big_vision", tmp_path / "bv"
  log = _run(
    *(PYTHON, "-m", "big_vision.trainers.proj.paligemma.train"),
    *("--config", f"{folder / 'bv_config.py'}:batch_size=6", "--config.total_epochs=1.0"),
    *("--workdir", out),
    cwd=pathlib.Path(PACKAGE),
  )
  assert "Running for 3 steps" in log
  assert (out / "checkpoint.bv-LAST").read_text() == "000000003"
  rows = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
  answers = json.loads((out / "val_answers.json").read_text())
  said = {row["id"]: row.get("answer", row.get("caption")) for row in answers}
  assert said.keys() == {row["id"] for row in rows}
  metrics = [json.loads(x) for x in (out / "big_vision_metrics.txt").read_text().splitlines()]
  measured = {key for row in metrics for key in row}
  assert "val/pplx/avg" in measured and any(k.startswith("val/answers/") for k in measured)

  told = _ours("import", f"--workdir={run}", f"--from={out}")
  assert f"val_answers.json, {metric}" in told.replace("auditdm_jax.bench.scorers:", "")
  assert "repaired, all: " in told
  back = load_vlm(run / "rectify" / "repaired")
  start = weights.open_model(npz).tree
  moved = {k for k, v in weights.open_model(run / "rectify" / "repaired").tree.items()
           if not np.array_equal(v.whole(), start[k].whole())}  # fmt: skip
  assert any(k.startswith("llm/") for k in moved)
  assert any(k.startswith("img/") for k in moved) == (recipe != "gqa-448")
  assert back.config.text.final_softcap == 0.0 and back.style == style
  if recipe != "cococap":  # Which is a beam search there.
    pictures = [folder / "images" / row["image"] for row in rows]
    limit = {"chartqa": 48, "gqa-448": 32}[recipe]
    ours = back.answer(pictures, [row["prefix"] for row in rows], max_new_tokens=limit)
    lower = (lambda text: text.lower()) if recipe == "chartqa" else str
    # A blank in front, which `answer` takes off, is of the first word's piece.
    same = [lower(a) == said[row["id"]].strip() for a, row in zip(ours, rows, strict=True)]
    print(f"{recipe}: {sum(same)} of {len(same)} greedy answers are big_vision's own")
    assert sum(same) >= len(same) - 1  # Its cache is in bf16, and ties are possible.
