# SPDX-License-Identifier: Apache-2.0
"""A folder outside the package adds a reward term, a strategy, a judge, a world and more."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image

from auditdm_jax.core.image_store import Images
from auditdm_jax.scenes.mix import Mix

ROOT = pathlib.Path(__file__).parents[1]

SCORING = """
def lenient(prediction, references):
  return 1.0 if prediction in references else 0.5


def by_length(example):
  return ["long" if len(example.question.split()) > 5 else "short"]
"""


def _folder(path: pathlib.Path, *, seed: int, images: int) -> None:
  """Images of the scenes world with questions, as anybody's own data."""
  mix = Mix(seed=seed, scenes=200, images=images, per_image=3)
  draw = mix.draw(0)
  path.mkdir(parents=True)
  rows = []
  for i, question, answer in zip(draw.image, draw.texts, draw.answers, strict=True):
    Image.fromarray(mix.pixels(i, i + 1)[0]).save(path / f"{i:03d}.png")
    rows.append({"image": f"{i:03d}.png", "question": question, "answer": answer})
  (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _assert_the_camera_took(rows, folder: pathlib.Path) -> None:
  """The renderer leaves most pixels of an edited image alone, the camera of the example few."""
  pool = [np.asarray(Image.open(path)) for path in (folder / "data/own/train").glob("*.png")]
  source = {Images.id_of(image): image for image in pool}
  made = Images(folder / "run/images", fan_out=True)
  edits = [r["probe"] for r in rows if r["probe"]["strategy"] == "edit" and r["verdict"]]
  assert edits
  for probe in edits:
    same = source[probe["source_image_id"]] == made.get(probe["image_id"])
    assert same.mean() < 0.3


def test_things_of_ones_own_run_a_loop_and_no_line_of_the_package_changes(tmp_path):
  shutil.copytree(ROOT / "examples", tmp_path / "examples")
  (tmp_path / "scoring.py").write_text(SCORING)
  for seed, (split, images) in enumerate({"train": 30, "heldout": 12, "fresh": 20}.items()):
    _folder(tmp_path / "data/own" / split, seed=seed, images=images)
  weights = ROOT / "data/scenes/weights"
  flags = [
    f"models.auditor={weights}/auditor",
    f"models.target={weights}/target_easy",
    f"models.references=('{weights}/ref_paligemma2','{weights}/ref_gemma3')",
    "models.sibling=",
    "pool.builder=",
    f"pool.data_dir={tmp_path}/data",
    "pool.dataset=own",
    "pool.images=train",
    "pool.heldout=heldout",
    "pool.fresh=fresh",
    f"taxonomy.skills={ROOT}/data/scenes/skills.yaml",
    "reward.terms=(('examples.own_reward:brevity',0.25),)",
    "rollout.strategies=('examples.own_strategy:SHARPEN',)",
    "rollout.task.draft=ask",
    "rollout.task.question-after-draft=ask",
    "rollout.prompts.sharpen=2",
    "rollout.prompts.question=2",
    "rollout.prompts.edit=1",
    "rollout.prompts.generate=0",
    "rollout.prompts.edit-only=0",
    "rollout.max_new_tokens.draft=11",
    "benchmark.scorer=scoring:lenient",
    "benchmark.groups=scoring:by_length",
    "images.backend=examples.own_image_backend:backend",
    "judge.rules=examples.own_judge:same",
    "world.name=examples.own_world:WORLD",
    "world.gaps=",
    "optim.steps=2",
    "checkpoints.harvest=(1,)",
    "discover.probes=96",
    "discover.batch=48",
    "discover.search_probes=16",
    "verify.limit=8",
    "rectify.recipe.steps=2",
    "rectify.curate.size=8",
    "rounds.count=1",
  ]
  command = [
    sys.executable,
    "-m",
    "auditdm_jax",
    "loop",
    f"--config={ROOT}/configs/scenes.py",
    f"--workdir={tmp_path}/run",
    *(f"--config.{flag}" for flag in flags),
  ]
  done = subprocess.run(
    command,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  run = tmp_path / "run"
  rows = [json.loads(x) for x in (run / "records/train/completions-0.jsonl").open()]
  sharp = [r for r in rows if r["probe"]["strategy"] == "sharpen"]
  assert sharp and all([t["kind"] for t in r["turns"]] == ["draft", "question"] for r in sharp)
  asked = [r for r in rows if r["verdict"]]
  assert asked and all(0 < r["parts"]["brevity"] < 1 for r in asked)
  _assert_the_camera_took(rows, tmp_path)
  table = json.loads((run / "evaluate/done.json").read_text())["result"]["tables"]["target_easy"]
  assert {"all", "long", "short"} <= table.keys() and table["all"]["rate"] > 0.5
  summary = json.loads((run / "summary.json").read_text())
  assert "sharpen" in summary["strategies"]
  assert "dark backgrounds" in summary["gaps"]
