# SPDX-License-Identifier: Apache-2.0
"""Inspect as it is released scores a model behind `serve` as we score its folder.

Inspect gets a virtual environment of its own, in pytest's cache; PyPI is asked for it once.

COMMAND
  python -m pytest -s -m "slow and network" tests/serving/test_inspect.py
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.bench import scorers
from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.scenes import questions, render, world
from auditdm_jax.vlm import load_vlm
from tests.stages.test_serve import serving

pytestmark = [pytest.mark.slow, pytest.mark.network]

ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "data/scenes/weights/target_easy"
TASK = "tests/serving/inspect_task.py"  # Inspect takes no absolute path.
RELEASE = "inspect-ai==0.3.285"
N = 50


@pytest.fixture(scope="module")
def inspect(request):
  """Returns Inspect's command."""
  folder = pathlib.Path(request.config.cache.mkdir("inspect")) / RELEASE
  python, command = folder / "bin/python", folder / "bin/inspect"
  if not command.is_file():
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = [RELEASE, "openai~=3.57"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
  return command


def examples(folder):
  """Writes images and a file of questions; returns the examples and the images."""
  rng, found, images = np.random.default_rng(0), [], []
  while len(found) < N:
    scene = world.sample_scene(rng)
    question, answer, _ = questions.sample_question(rng, scene)
    image = folder / f"{len(found)}.png"
    images.append(render.render(scene, len(found)))
    Image.fromarray(images[-1]).save(image)
    found.append(
      BenchmarkItem(
        item_id=str(len(found)),
        pictures=(),
        image_key=image.name,
        question=question,
        references=(answer,),
      )
    )
  rows = [
    {"image": str(folder / e.image_key), "question": e.question, "answer": e.references[0]}
    for e in found
  ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return found, images


def test_inspect_scores_the_endpoint_as_we_score_the_folder(inspect, tmp_path):
  asked, images = examples(tmp_path)
  with serving(MODEL) as (_, ready):
    done = subprocess.run(
      [
        inspect,
        "eval",
        TASK,
        "-T",
        f"path={tmp_path}/questions.jsonl",
        "--model",
        f"openai-api/ours/{ready['model']}",
        "--max-connections",
        "8",
        "--log-format",
        "json",
        "--log-dir",
        tmp_path / "logs",
        "--display",
        "plain",
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
      env=os.environ | {"OURS_BASE_URL": ready["base_url"], "OURS_API_KEY": "none"},
    )
  assert done.returncode == 0, done.stdout + done.stderr
  log = json.loads(next((tmp_path / "logs").glob("*.json")).read_text())
  assert log["status"] == "success", log
  theirs = {str(s["id"]): s for s in log["samples"]}

  vlm = load_vlm(MODEL)
  said = vlm.answer(images, [e.question for e in asked], max_new_tokens=1024)
  assert [theirs[e.item_id]["output"]["choices"][0]["message"]["content"] for e in asked] == said
  ours = {
    e.item_id: scorers.normalized_match(text, e.references)
    for e, text in zip(asked, said, strict=True)
  }
  scores = {i: float(s["scores"]["exact"]["value"] == "C") for i, s in theirs.items()}
  assert scores == ours
  print(f"\nours {sum(ours.values()):.0f} of {N}; Inspect {sum(scores.values()):.0f}")
  assert 0 < sum(ours.values()) < N, "some should be right and some should not"
