# SPDX-License-Identifier: Apache-2.0
"""A run whose images a FLUX pipeline makes."""

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("diffusers")

from tests.images import tiny_pipelines  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = '{"edit": 2, "generate": 1, "edit-only": 1}'


@pytest.mark.slow
def test_training_with_diffusion_and_again(tmp_path):
  """Random weights draw noise, but every caption and instruction becomes an image, the same."""
  model = tiny_pipelines.build(tmp_path, guidance=False)
  for name in ("first", "second"):
    command = [
      sys.executable,
      "-m",
      "auditdm_jax",
      "train",
      "--config=configs/scenes.py:images=diffusion",
      f"--workdir={tmp_path / name}",
      f"--config.pool.data_dir={tmp_path / 'data'}",
      f"--config.images.model.generate={model.generate}",
      f"--config.images.model.edit={model.edit}",
      f"--config.rollout.prompts={PROMPTS}",
      "--config.optim.steps=2",
      "--config.checkpoints.harvest=()",
      "--config.grpo.group_size=4",
    ]
    assert subprocess.run(command, cwd=ROOT, timeout=900).returncode == 0
  first, second = (_images(tmp_path / name) for name in ("first", "second"))
  assert len(first) > 16
  assert first == second
  lines = (tmp_path / "first" / "images.log").read_text().splitlines()
  events = [json.loads(line) for line in lines if line.startswith("{")]
  texts = [event for event in events if "text" in event]
  assert texts and not any("circle" in event["text"] for event in texts)  # Hashes only.


def _images(workdir: pathlib.Path) -> set[str]:
  return {path.name for path in (workdir / "images").rglob("*.png")}
